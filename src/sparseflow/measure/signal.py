"""Signal propagation: how large the pre-activations are, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.functional import arguments, logits_of, undisturbed
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
def signal(model: nn.Module, inputs: Any, layers: Mapping[str, Layer]) -> Signal:
    """Measure signal propagation on a batch of inputs (Evci et al. 2022, figure 1).

    Args:
        model: a module that gives one tensor, or several with ``logits`` among them.
        inputs: real inputs, or N(0, 1) noise as in the paper's figure; a tuple of
            them or a mapping of named ones where the model takes several.
        layers: from :func:`sparseflow.maskable`; a layer whose module is called
            more than once reports its last call.

    Raises:
        MeasureError: if the model gives neither a tensor nor logits.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Linear(64, 32)
        >>> result = signal(net, torch.ones(8, 64), sf.maskable(net))
        >>> result.output == result.per_layer["weight"]
        True
    """
    model = bare(model)  # a compiled one ignores hooks that come later
    stds: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, Tensor):
                stds[name] = _std(output)

        return hook

    handles = [layer.module.register_forward_hook(watch(n)) for n, layer in layers.items()]
    try:
        with undisturbed(model):
            args, kwargs = arguments(inputs)
            output = logits_of(model(*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()
    return Signal(_std(output), stds)


def _std(output: Tensor) -> float:
    return float(output.to(torch.complex128 if output.is_complex() else torch.float64).std())
