"""Max-pooling of blocked images, and its gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from sparseflow.core.errors import KernelError
from sparseflow.sparse.kernels.blocked import LANES, checked, checked_blocked, threads_for
from sparseflow.sparse.kernels.library import core
from sparseflow.sparse.kernels.memory import empty

LARGEST_POOL = 15  # a position in a window fits 8 bits


def _pool_sizes(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[int, int]:
    """Check the sizes of a pooling and return height and width of its output."""
    for k, s, p in zip(kernel, stride, padding, strict=True):
        if not (1 <= k <= LARGEST_POOL and s >= 1 and 0 <= 2 * p <= k):
            raise KernelError(
                f"pooling needs kernels of 1 to {LARGEST_POOL}, strides of at least 1 and "
                f"paddings of at most half a kernel, has {kernel}, {stride} and {padding}"
            )
    out = [
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)
    ]
    if min(out) < 1:
        raise KernelError(f"an image of {tuple(size)} is smaller than the pooling kernel {kernel}")
    return out[0], out[1]


def max_pool(
    x: Float32[Tensor, "nb c h w 16"],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
) -> tuple[Float32[Tensor, "nb c oh ow 16"], UInt8[Tensor, "nb c oh ow 16"]]:
    """Return the maxima of all windows and their positions in their windows, row by row.

    As ``torch.nn.MaxPool2d`` without dilation and ``ceil_mode``: of equal values the first
    is taken, and a NaN is larger than any number.

    Raises:
        KernelError: for an impossible kernel, stride or padding, or an image too small.

    >>> from sparseflow.sparse.kernels.blocked import block
    >>> y, index = max_pool(block(torch.arange(4.0).reshape(1, 1, 2, 2)), (2, 2), (2, 2))
    >>> y[0, 0, 0, 0, 0].item(), index[0, 0, 0, 0, 0].item()
    (3.0, 3)
    """
    if x.ndim != 5:
        raise KernelError(f"x must have shape (nb, c, h, w, {LANES}), has {tuple(x.shape)}")
    x = checked_blocked("x", x)
    nb, c, h, w, _ = x.shape
    out = _pool_sizes((h, w), kernel, stride, padding)
    y = empty(nb, c, *out, LANES)
    index = torch.empty(y.shape, dtype=torch.uint8, device="cpu")
    core().max_pool(
        nb * c, h, w, *kernel, *stride, *padding, x.data_ptr(), y.data_ptr(), index.data_ptr(),
        threads_for(y.numel() * kernel[0] * kernel[1]),
    )  # fmt: skip
    return y, index


def max_pool_gradient(
    dy: Float32[Tensor, "nb c oh ow 16"],
    index: UInt8[Tensor, "nb c oh ow 16"],
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
) -> Float32[Tensor, "nb c h w 16"]:
    """Return the gradient with respect to the (h, w) inputs of :func:`max_pool`.

    Raises:
        KernelError: for sizes or shapes that do not match.

    >>> from sparseflow.sparse.kernels.blocked import block
    >>> x = block(torch.arange(4.0).reshape(1, 1, 2, 2))
    >>> y, index = max_pool(x, (2, 2), (2, 2))
    >>> max_pool_gradient(torch.ones_like(y), index, (2, 2), (2, 2), (2, 2))[0, 0, :, :, 0]
    tensor([[0., 0.],
            [0., 1.]])
    """
    out = _pool_sizes(size, kernel, stride, padding)
    shape = (*dy.shape[:2], *out, LANES)
    dy = checked("dy", dy, shape)
    index = checked("index", index, shape, torch.uint8)
    dx = empty(*dy.shape[:2], *size, LANES)
    core().max_pool_gradient(
        shape[0] * shape[1], *size, *kernel, *stride, *padding, dy.data_ptr(), index.data_ptr(),
        dx.data_ptr(), threads_for(dy.numel() * kernel[0] * kernel[1]),
    )  # fmt: skip
    return dx
