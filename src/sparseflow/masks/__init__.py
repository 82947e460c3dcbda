"""Masks as values: how many weights each layer keeps, and which."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sparseflow.core.parameters import Layer
from sparseflow.core.random import generator
from sparseflow.masks import patterns
from sparseflow.masks.allocation import allocate
from sparseflow.masks.masks import Masks, churn, warn_of_empty

__all__ = ["Masks", "allocate", "churn", "full_masks", "make_masks", "shuffle_masks"]


def make_masks(
    layers: Mapping[str, Layer],
    density: float | Mapping[str, float],
    *,
    allocation: str = "erk",
    pattern: str | patterns.Pattern = "random",
    seed: int = 0,
) -> Masks:
    """Create masks: allocate the number of active weights to layers, then choose the weights.

    Args:
        layers: from :func:`sparseflow.maskable`.
        density: share of weights to keep over all layers, or one for each layer by name.
        allocation: see :func:`allocate`.
        pattern: ``random``, ``magnitude`` (the largest of each layer; with
            ``allocation="magnitude"`` the largest of all layers together),
            ``uneven``, ``constant_fan_in``, or a function
            (layer, k, generator) -> mask.
        seed: of the stream ("mask", layer name).

    Warns:
        UserWarning: naming the layers that are left without a weight, though not
            asked to be: nothing passes through them.

    Example:
        >>> import sparseflow as sf, torch
        >>> layers = sf.maskable(torch.nn.Linear(20, 10))
        >>> make_masks(layers, 0.1).counts
        {'weight': 20}
    """
    chosen = patterns.find_pattern(pattern)
    counts = allocate(layers, density, allocation)
    wanted = density if isinstance(density, Mapping) else dict.fromkeys(layers, density)
    empty = [name for name, count in counts.items() if not count and wanted[name]]
    by = "the densities given" if density is wanted else f"density {density:g}"
    warn_of_empty(empty, f"at {by} with allocation={allocation!r}", "give densities by layer")
    return Masks(
        {
            name: chosen(layer, counts[name], generator(seed, "mask", name)).to(_device(layer))
            for name, layer in layers.items()
        }
    )


def shuffle_masks(
    masks: Masks, seed: int = 0, *, layers: Mapping[str, Layer] | None = None
) -> Masks:
    """Shuffle every mask within its layer: the same counts at random positions.

    Args:
        masks: the masks.
        seed: of the stream ("shuffle", layer name).
        layers: from :func:`sparseflow.maskable`, where embeddings have a row that stands
            for padding: it stays empty.

    Example:
        >>> import sparseflow as sf
        >>> masks = make_masks(sf.maskable(torch.nn.Linear(64, 32)), 0.25)
        >>> shuffled = shuffle_masks(masks, seed=1)
        >>> shuffled.nnz == masks.nnz, shuffled.digest() == masks.digest()
        (True, False)
    """
    padding = {} if layers is None else {n: layer.padding for n, layer in layers.items()}
    return Masks(
        {
            name: patterns.shuffled(mask, generator(seed, "shuffle", name), padding.get(name))
            for name, mask in masks.items()
        }
    )


def full_masks(layers: Mapping[str, Layer]) -> Masks:
    """All weights active: a dense network.

    Example:
        >>> import sparseflow as sf
        >>> full_masks(sf.maskable(torch.nn.Linear(4, 2))).density
        1.0
    """
    ones = {
        name: torch.ones(layer.shape, dtype=torch.bool, device=_device(layer))
        for name, layer in layers.items()
    }
    return Masks({name: layer.without_padding(ones[name], False) for name, layer in layers.items()})


def _device(layer: Layer) -> torch.device:
    """Where a mask lies: with its weight, or on the CPU for one that has no values yet."""
    return torch.device("cpu") if layer.parameter.is_meta else layer.parameter.device
