"""Signal propagation: how large the pre-activations are, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparseflow.core.functional import undisturbed
from sparseflow.core.parameters import Layer
from sparseflow.core.wrappers import bare


@dataclass(frozen=True)
class Signal:
    """Standard deviations over examples and units together.

    Attributes:
        output: of the network's output (before the softmax).
        per_layer: of each maskable layer's pre-activation, by parameter name.
    """

    output: float
    per_layer: dict[str, float]


@torch.no_grad()
def signal(model: nn.Module, inputs: Tensor, layers: Mapping[str, Layer]) -> Signal:
    """Measure signal propagation on a batch of inputs (Evci et al. 2022, figure 1).

    Args:
        model: a module that maps ``inputs`` to one tensor.
        inputs: real inputs, or N(0, 1) noise as in the paper's figure.
        layers: from :func:`sparseflow.maskable`; a layer whose module is called
            more than once reports its last call.
    """
    model = bare(model)  # a compiled one ignores hooks that come later
    stds: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, Tensor):
                stds[name] = float(output.double().std())

        return hook

    handles = [layer.module.register_forward_hook(watch(n)) for n, layer in layers.items()]
    try:
        with undisturbed(model):
            output = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Signal(float(output.double().std()), stds)
