"""Batch norm of blocked tensors with an addition and a ReLU, and its gradients."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from sparseflow.core.errors import KernelError
from sparseflow.sparse.kernels.blocked import LANES, address, checked, optional, threads_for
from sparseflow.sparse.kernels.library import core
from sparseflow.sparse.kernels.memory import empty

_WORK = 8  # a value moved costs about as much as 8 multiply-adds


def _sizes(x: Tensor, n: int) -> tuple[int, int]:
    """Number of channels, and values in each, of a blocked tensor of ``n`` examples."""
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
        n: number of examples; the padding after them does not count.
        statistics: mean and biased variance of each channel, written if ``counts``.
        weight: factor of each channel; 1 without.
        bias: added to each channel.
        epsilon: added to the variance.
        counts: whether the statistics are those of ``x``.
        added: a tensor like ``x``.
        relu: whether to apply a ReLU.

    Raises:
        KernelError: for tensors that do not match.

    >>> x = torch.arange(32.0).reshape(2, 1, 16)
    >>> mean, variance = torch.empty(1), torch.empty(1)
    >>> y = norm_forward(x, 32, (mean, variance))
    >>> mean, variance
    (tensor([15.5000]), tensor([85.2500]))
    """
    channels, size = _sizes(x, n)
    x = checked("x", x, x.shape)
    mean, variance, *others = [
        optional(name, tensor, (channels,))
        for name, tensor in zip(
            ("mean", "variance", "weight", "bias"), (*statistics, weight, bias), strict=True
        )
    ]
    added = optional("added", added, x.shape)
    y = empty(*x.shape)
    core().norm_forward(
        channels, size, n, epsilon, counts, x.data_ptr(), address(added), *map(address, others),
        address(mean), address(variance), y.data_ptr(), relu, threads_for(_WORK * x.numel()),
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
    """Return the gradients with respect to x, what was added, weight and bias.

    Args:
        x: as given to :func:`norm_forward`, like all that is not described here.
        n: number of examples.
        dy: gradient with respect to the outputs.
        statistics: as given, or as written if ``counts``.
        weight: factor of each channel.
        epsilon: added to the variance.
        counts: whether the statistics are those of ``x``.
        y: the outputs, if there was a ReLU.
        added: whether something was added, and wants a gradient.

    Raises:
        KernelError: for tensors that do not match.

    >>> x = torch.arange(32.0).reshape(2, 1, 16)
    >>> statistics = torch.tensor([15.5]), torch.tensor([85.25])
    >>> dx, _, dweight, dbias = norm_gradient(x, 32, torch.ones_like(x), statistics)
    >>> bool(dx.abs().max() < 1e-6), dbias
    (True, tensor([32.]))
    """
    channels, size = _sizes(x, n)
    x, dy = checked("x", x, x.shape), checked("dy", dy, x.shape)
    y = optional("y", y, x.shape)
    mean, variance = (checked("statistics", each, (channels,)) for each in statistics)
    weight = optional("weight", weight, (channels,))
    dx, dadded = empty(*x.shape), empty(*x.shape) if added else None
    dweight, dbias = torch.empty_like(mean), torch.empty_like(mean)
    core().norm_gradient(
        channels, size, n, epsilon, counts, x.data_ptr(), address(y), dy.data_ptr(),
        address(weight), mean.data_ptr(), variance.data_ptr(), dx.data_ptr(), address(dadded),
        dweight.data_ptr(), dbias.data_ptr(), threads_for(_WORK * x.numel()),
    )  # fmt: skip
    return dx, dadded, dweight, dbias
