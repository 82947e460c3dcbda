"""Optimisers by name, and learning rates as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from sparseflow.core.errors import SpecError, unknown
from sparseflow.core.parameters import sparse_weights

Rate = Callable[[int], float]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


FUSED = ("sgd", "adam", "adamw", "adagrad")
"""Optimisers that PyTorch can step with one call for all parameters on a CPU."""


def make_optimizer(
    kind: str,
    model: nn.Module,
    lr: float,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Make an optimiser whose weight decay acts on kernels only.

    Kernels are the parameters with two or more axes and the values of truly sparse
    layers; biases and the scales of norms do not decay. ``initial_lr`` is set, so
    that a drop fraction proportional to the learning rate is relative to the peak,
    not to the first step of a warm-up.

    Args:
        kind: one of :data:`OPTIMIZERS`.
        model: its trainable parameters are optimised.
        lr: peak learning rate.
        momentum: of SGD and RMSprop.
        weight_decay: of kernels, as PyTorch counts it.
        fused: step all parameters with one call, where PyTorch can. Equal up to
            rounding, and several times faster for many short parameters, such as
            those of truly sparse layers.

    Raises:
        SpecError: if the optimiser is unknown, or momentum is given to one without it.
    """
    if kind not in OPTIMIZERS:
        raise SpecError(unknown("optimizer", kind, OPTIMIZERS))
    values = {id(layer.values) for layer in sparse_weights(model).values()}
    trained = [p for p in model.parameters() if p.requires_grad]
    kernels = [p for p in trained if p.ndim > 1 or id(p) in values]
    others = [p for p in trained if not (p.ndim > 1 or id(p) in values)]
    groups = [
        {"params": kernels, "weight_decay": weight_decay, "initial_lr": lr},
        {"params": others, "weight_decay": 0.0, "initial_lr": lr},
    ]
    extra = {"momentum": momentum} if kind in ("sgd", "rmsprop") else {}
    if momentum and not extra:
        raise SpecError(f"optimizer {kind} has no momentum={momentum} to set; use 0")
    one_call = {"fused": True} if fused and kind in FUSED else {}
    return OPTIMIZERS[kind](groups, lr=lr, **extra, **one_call)  # type: ignore[call-arg]


def constant_rate(lr: float) -> Rate:
    """The same learning rate at every step."""
    return lambda step: lr


def cosine_rate(lr: float, steps: int) -> Rate:
    """Half a cosine, from ``lr`` at step 0 to 0 at ``steps`` (Loshchilov & Hutter 2017)."""
    return lambda step: lr / 2 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def step_rate(lr: float, milestones: Sequence[int], factor: float = 0.1) -> Rate:
    """``lr`` multiplied by ``factor`` at every milestone."""
    return lambda step: lr * factor ** sum(step >= m for m in milestones)


def with_warmup(rate: Rate, steps: int) -> Rate:
    """``rate`` with a linear warm-up: multiplied by (step + 1) / steps before ``steps``."""
    return lambda step: rate(step) * min((step + 1) / steps, 1.0) if steps else rate(step)


def set_rate(
    optimizer: torch.optim.Optimizer, rate: Rate, step: int, *, inner_momentum: float | None = None
) -> None:
    """Set the learning rate of the next step.

    Args:
        optimizer: the optimiser.
        rate: learning rate by step.
        step: number of steps taken before.
        inner_momentum: momentum m in the convention with the learning rate inside the
            velocity (v ← m·v - lr·g, w ← w + v; Keras). PyTorch has it outside
            (b ← m·b + g, w ← w - lr·b). With v = -lr·b the two agree exactly if
            PyTorch's momentum is m · lr(t-1) / lr(t), which is set here.
    """
    lr = rate(step)
    for group in optimizer.param_groups:
        group["lr"] = lr
        if inner_momentum is not None:
            last = rate(step - 1) if step else lr
            group["momentum"] = inner_momentum * last / lr if lr else 0.0
