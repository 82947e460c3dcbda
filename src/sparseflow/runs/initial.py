"""What is measured of a network at initialisation, while it is still a dense module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.parameters import Layer
from sparseflow.core.random import generator
from sparseflow.masks import Masks
from sparseflow.measure import signal

NOISE = 500
"""Examples of N(0, 1) noise for the signal at initialisation (the paper's figure 1)."""


def at_beginning(
    model: nn.Module, layers: Mapping[str, Layer], masks: Masks, images: Tensor, seed: int
) -> dict[str, Any]:
    """Measure how signals propagate through a masked dense network.

    Args:
        model: the network.
        layers: its maskable layers.
        masks: their masks.
        images: real inputs.
        seed: of the noise that is put in as well.
    """
    stream = generator(seed, "noise")
    noise = torch.randn(NOISE, *images.shape[1:], generator=stream).to(images.device)
    dead = sum(int((~layers[n].neurons(m).any(1)).sum()) for n, m in masks.items())
    return {
        "images": asdict(signal(model, images, layers)),
        "noise": asdict(signal(model, noise, layers)),
        "neurons_without_input": dead,
        "active": masks.counts,
    }
