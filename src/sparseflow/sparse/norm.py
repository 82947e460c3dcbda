"""Batch norm in the blocked layout, joined with the addition and the ReLU behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparseflow.core.errors import KernelError
from sparseflow.sparse.blocked import from_blocked, to_blocked
from sparseflow.sparse.kernels import LANES, checked, threads_for
from sparseflow.sparse.library import core
from sparseflow.sparse.memory import empty

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_WORK = 8  # a value moved costs about what so many multiply-adds do


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _sizes(x: Tensor, n: int) -> tuple[int, int]:
    """Channels and values of each of a blocked tensor of ``n`` examples."""
    if x.ndim < 3 or x.shape[-1] != LANES or not x.numel():
        raise KernelError(f"x must be blocked, (nb, c, ..., {LANES}), has {tuple(x.shape)}")
    if not 0 < n <= x.shape[0] * LANES or x.shape[0] != -(-n // LANES):
        raise KernelError(f"{x.shape[0]} blocks of {LANES} do not hold {n} examples")
    return x.shape[1], x.shape[2:-1].numel()


def norm_forward(
    x: Float32[Tensor, "nb c *rest 16"],
    n: int,
    statistics: tuple[Float32[Tensor, " c"], Float32[Tensor, " c"]],
    weight: Float32[Tensor, " c"] | None = None,
    bias: Float32[Tensor, " c"] | None = None,
    *,
    epsilon: float = 1e-5,
    counts: bool = True,
    added: Float32[Tensor, "nb c *rest 16"] | None = None,
    relu: bool = False,
) -> Float32[Tensor, "nb c *rest 16"]:
    """Return (x - mean) / sqrt(variance + epsilon) · weight + bias + added, after a ReLU if asked.

    Args:
        x: blocked inputs.
        n: number of examples; the padding behind them does not count.
        statistics: mean and biased variance of each channel, written if ``counts``.
        weight: factor of each channel; 1 without.
        bias: added to each channel.
        epsilon: added to the variance.
        counts: whether the statistics are those of ``x``.
        added: a tensor like ``x``.
        relu: whether to cut off what is negative.

    Raises:
        KernelError: for tensors that do not fit each other.

    >>> x = torch.arange(32.0).reshape(2, 1, 16)
    >>> mean, variance = torch.empty(1), torch.empty(1)
    >>> y = norm_forward(x, 32, (mean, variance))
    >>> mean, variance
    (tensor([15.5000]), tensor([85.2500]))
    """
    channels, size = _sizes(x, n)
    x = checked("x", x, x.shape)
    mean, variance, *others = [
        None if tensor is None else checked(name, tensor, (channels,))
        for name, tensor in zip(
            ("mean", "variance", "weight", "bias"), (*statistics, weight, bias), strict=True
        )
    ]
    added = None if added is None else checked("added", added, x.shape)
    y = empty(*x.shape)
    core().norm_forward(
        channels, size, n, epsilon, counts, x.data_ptr(), _address(added), *map(_address, others),
        _address(mean), _address(variance), y.data_ptr(), relu, threads_for(_WORK * x.numel()),
    )  # fmt: skip
    return y


def norm_gradient(
    x: Float32[Tensor, "nb c *rest 16"],
    n: int,
    dy: Float32[Tensor, "nb c *rest 16"],
    statistics: tuple[Float32[Tensor, " c"], Float32[Tensor, " c"]],
    weight: Float32[Tensor, " c"] | None = None,
    *,
    epsilon: float = 1e-5,
    counts: bool = True,
    y: Float32[Tensor, "nb c *rest 16"] | None = None,
    added: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return the gradients of :func:`norm_forward` by x, what was added, weight and bias.

    Args:
        x: as given.
        n: as given.
        dy: gradient by the outputs.
        statistics: as given, or as written if ``counts``.
        weight: as given.
        epsilon: as given.
        counts: as given.
        y: the outputs, if there was a ReLU.
        added: whether something was added, and wants a gradient.

    Raises:
        KernelError: for tensors that do not fit each other.

    >>> x = torch.arange(32.0).reshape(2, 1, 16)
    >>> statistics = torch.tensor([15.5]), torch.tensor([85.25])
    >>> dx, _, dweight, dbias = norm_gradient(x, 32, torch.ones_like(x), statistics)
    >>> bool(dx.abs().max() < 1e-6), dbias
    (True, tensor([32.]))
    """
    channels, size = _sizes(x, n)
    x, dy = checked("x", x, x.shape), checked("dy", dy, x.shape)
    y = None if y is None else checked("y", y, x.shape)
    mean, variance = (checked("statistics", each, (channels,)) for each in statistics)
    weight = None if weight is None else checked("weight", weight, (channels,))
    dx, dadded = empty(*x.shape), empty(*x.shape) if added else None
    dweight, dbias = torch.empty_like(mean), torch.empty_like(mean)
    core().norm_gradient(
        channels, size, n, epsilon, counts, x.data_ptr(), _address(y), dy.data_ptr(),
        _address(weight), mean.data_ptr(), variance.data_ptr(), dx.data_ptr(), _address(dadded),
        dweight.data_ptr(), dbias.data_ptr(), threads_for(_WORK * x.numel()),
    )  # fmt: skip
    return dx, dadded, dweight, dbias


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
        if not counts:  # the module may change them before the way back
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


def _norm(
    x: Float[Tensor, "nb c *rest 16"],
    n: int,
    module: nn.BatchNorm1d | nn.BatchNorm2d,
    added: Tensor | None = None,
    relu: bool = False,
) -> Float[Tensor, "nb c *rest 16"]:
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
        _update(module, *statistics, n * _sizes(x, n)[1])
    return y


# As in chain.py: the compiler is imported with the first call, not with this module.
norm = cast(Callable[..., Tensor], torch._disable_dynamo(_norm))
"""Batch norm by a module, plus ``added``, after a ReLU if asked for.

The padding of the last block does not count. In training the module's running
statistics move as they do in torch.
"""


def _has_kernel(x: Tensor, n: int, module: nn.Module, added: Tensor | None) -> bool:
    """Whether the kernel does what calling the module would do."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    numbers = [t for t in (x, added, *own) if t is not None and t.is_floating_point()]
    plain = type(module) in NORMS and not (
        module._forward_hooks or module._forward_pre_hooks
        or module._backward_hooks or module._backward_pre_hooks
    )  # fmt: skip
    return (
        plain
        and all(t.dtype == torch.float32 and t.is_cpu for t in numbers)
        and n * x.shape[2:-1].numel() > 1
        and (module.running_mean is None) == (module.running_var is None)
        and x.shape[1] == module.num_features
    )


def _by_torch(x: Tensor, n: int, module: nn.Module) -> Tensor:
    counts = module.training or getattr(module, "running_mean", None) is None
    if counts and n % LANES:
        return to_blocked(module(from_blocked(x, n)))
    joined = x.flatten(2, 3) if x.ndim == 5 else x
    return module(joined).view(x.shape)


@torch.no_grad()
def _update(
    module: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int
) -> None:
    """Move the running statistics, the variance without bias."""
    factor = module.momentum
    if module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / float(module.num_batches_tracked)
    if module.running_mean is not None and module.running_var is not None:
        factor = 0.0 if factor is None else factor
        module.running_mean.mul_(1 - factor).add_(mean, alpha=factor)
        module.running_var.mul_(1 - factor).add_(variance, alpha=factor * count / (count - 1))
