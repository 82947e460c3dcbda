"""Batch norm in the blocked layout, fused with the addition and the ReLU that follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from sparseflow.core.hooks import has_hooks
from sparseflow.sparse.kernels.blocked import LANES
from sparseflow.sparse.kernels.norm import norm_forward, norm_gradient
from sparseflow.sparse.layers.chain import from_blocked, to_blocked


class _Norm(torch.autograd.Function):
    """Batch norm, addition and ReLU as one node of autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        added: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: tuple[Tensor, Tensor],
        n: int,
        epsilon: float,
        counts: bool,
        relu: bool,
    ) -> Tensor:
        y = norm_forward(
            x, n, statistics, weight, bias, epsilon=epsilon, counts=counts, added=added, relu=relu
        )
        ctx.n, ctx.epsilon, ctx.counts = n, epsilon, counts
        if not counts:  # the module may change them before the backward pass
            statistics = statistics[0].clone(), statistics[1].clone()
        ctx.save_for_backward(x, y if relu else None, weight, *statistics)
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Any, ...]:
        x, y, weight, mean, variance = ctx.saved_tensors
        dx, dadded, dweight, dbias = norm_gradient(
            x, ctx.n, gradient, (mean, variance), weight, epsilon=ctx.epsilon, counts=ctx.counts,
            y=y, added=ctx.needs_input_grad[1] and y is not None,
        )  # fmt: skip
        if y is None and ctx.needs_input_grad[1]:
            dadded = gradient
        wanted = zip((dx, dadded, dweight, dbias), ctx.needs_input_grad, strict=False)
        return *(each if wants else None for each, wants in wanted), *(None,) * 5


# As in chain.py: the compiler is imported on the first call, not with this module.
@cast(Callable[[Callable[..., Tensor]], Callable[..., Tensor]], torch._disable_dynamo)
def norm(
    x: Float[Tensor, "nb c *rest 16"],
    n: int,
    module: _BatchNorm,
    added: Tensor | None = None,
    relu: bool = False,
) -> Float[Tensor, "nb c *rest 16"]:
    """Batch norm by a module, plus ``added``, after a ReLU if asked for.

    The padding of the last block is left out. In training the module's running
    statistics move as they do in torch.
    """
    if not _has_kernel(x, n, module, added):
        y = _by_torch(x, n, module)
        y = y if added is None else y + added
        return torch.relu(y) if relu else y
    counts = module.training or module.running_mean is None
    if counts:
        statistics = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
    else:
        statistics = cast(tuple[Tensor, Tensor], (module.running_mean, module.running_var))
    y = _Norm.apply(x, added, module.weight, module.bias, statistics, n, module.eps, counts, relu)
    if module.training and module.track_running_stats:
        _update(module, *statistics, n * x.shape[2:-1].numel())
    return y


def _has_kernel(x: Tensor, n: int, module: nn.Module, added: Tensor | None) -> bool:
    """Whether the kernel does what calling the module would do."""
    state = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    floats = [t for t in (x, added, *state) if t is not None and t.is_floating_point()]
    return (
        type(module).forward is _BatchNorm.forward
        and not has_hooks(module)
        and all(t.dtype == torch.float32 and t.is_cpu for t in floats)
        and n * x.shape[2:-1].numel() > 1  # torch refuses a single value
        and (module.running_mean is None) == (module.running_var is None)
        and x.shape[1] == module.num_features
    )


def _by_torch(x: Tensor, n: int, module: nn.Module) -> Tensor:
    counts = module.training or getattr(module, "running_mean", None) is None
    if counts and n % LANES:
        return to_blocked(module(from_blocked(x, n)))
    # The 16 lanes stand for one more position, which the module averages over like the others.
    joined = x.flatten(2, 3) if x.ndim > 3 else x
    return module(joined).view(x.shape)


@torch.no_grad()
def _update(module: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running statistics; that of the variance is of the unbiased estimate."""
    factor = module.momentum
    if module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / float(module.num_batches_tracked)
    if module.running_mean is not None and module.running_var is not None:
        factor = 0.0 if factor is None else factor
        module.running_mean.mul_(1 - factor).add_(mean, alpha=factor)
        module.running_var.mul_(1 - factor).add_(variance, alpha=factor * count / (count - 1))
