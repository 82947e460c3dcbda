"""The blocked layout: 16 examples innermost, what a kernel may read, and the change to and fro.

All tensors are float32 on the CPU. Features are (n / 16, features, 16) and images
(n / 16, channels, height, width, 16), so that one weight meets 16 examples that lie next
to each other. A batch that is not a multiple of 16 ends in examples of zeros. A tensor that
is not contiguous is copied first; another dtype, device or shape is an error.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from sparseflow.core.errors import KernelError
from sparseflow.sparse.kernels.library import core
from sparseflow.sparse.kernels.memory import empty

LANES = 16
# Waking another thread costs about what this many multiply-adds take.
_WORTH_THREADS = 1_000_000


def checked(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return a tensor that a kernel may read by its address: contiguous, copied if need be.

    Raises:
        KernelError: for another dtype, device, layout or shape.

    >>> checked("x", torch.ones(2, 16), (3, 16))
    Traceback (most recent call last):
        ...
    sparseflow.core.errors.KernelError: x must have shape (3, 16), has (2, 16)
    """
    if not (tensor.is_cpu and tensor.dtype is dtype and tensor.layout is torch.strided):
        raise KernelError(
            f"{name} must be a dense {dtype} tensor on the CPU, is {tensor.dtype} "
            f"({tensor.layout}) on {tensor.device}"
        )
    if tensor.shape != shape:
        raise KernelError(f"{name} must have shape {tuple(shape)}, has {tuple(tensor.shape)}")
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def optional(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """Return :func:`checked` of a tensor that may be left out."""
    return None if tensor is None else checked(name, tensor, shape)


def checked_blocked(name: str, x: Tensor) -> Tensor:
    """Return :func:`checked` of a blocked tensor of any size.

    Raises:
        KernelError: as :func:`checked`, or if 16 examples are not innermost.
    """
    if x.ndim < 3 or x.shape[-1] != LANES:
        raise KernelError(
            f"{name} must be blocked, (batch / {LANES}, ..., {LANES}), has shape {tuple(x.shape)}"
        )
    return checked(name, x, x.shape)


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's data begin, a null pointer for None; the caller keeps it alive."""
    return None if tensor is None else tensor.data_ptr()


def threads_for(work: int) -> int:
    """Return how many threads a kernel of ``work`` multiply-adds should use."""
    return torch.get_num_threads() if work >= _WORTH_THREADS else 1


def block(x: Float32[Tensor, " n *rest"]) -> Float32[Tensor, "nb *rest 16"]:
    """Convert a batch to the blocked layout, with zeros after the last example.

    >>> block(torch.ones(3, 2))[0, 0]
    tensor([1., 1., 1., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.])
    """
    if x.ndim < 2:
        raise KernelError(f"x must be a batch (examples, ...), has shape {tuple(x.shape)}")
    x = checked("x", x, tuple(x.shape))
    n, *rest = x.shape
    y = empty(-(-n // LANES), *rest, LANES)
    if x.numel():
        core().block(x.data_ptr(), n, x.numel() // n, y.data_ptr(), threads_for(x.numel()))
    return y


def unblock(x: Float32[Tensor, "nb *rest 16"], n: int) -> Float32[Tensor, " n *rest"]:
    """Convert the first ``n`` examples of a blocked batch to the plain layout.

    >>> unblock(block(torch.ones(3, 2)), 3).shape
    torch.Size([3, 2])
    """
    x = checked_blocked("x", x)
    nb, *rest, _ = x.shape
    if not 0 <= n <= nb * LANES:
        raise KernelError(f"n must lie in 0 to {nb * LANES}, the examples of x, is {n}")
    y = x.new_empty((n, *rest))
    if y.numel():
        core().unblock(x.data_ptr(), n, y.numel() // n, y.data_ptr(), threads_for(x.numel()))
    return y


def relu_gradient(
    dy: Float32[Tensor, "nb *rest 16"], y: Float32[Tensor, "nb *rest 16"], in_place: bool = False
) -> Float32[Tensor, "nb *rest 16"]:
    """Return the gradient with respect to a ReLU's input from its output ``y``.

    It is written into ``dy`` if asked for.

    >>> y = torch.arange(-8.0, 8.0).reshape(1, 1, 16)
    >>> relu_gradient(torch.ones(1, 1, 16), y).sum()
    tensor(7.)
    """
    y = checked_blocked("y", y)
    dy = checked("dy", dy, y.shape)
    dx = dy if in_place else empty(*dy.shape)
    core().relu_gradient(
        y.numel() // LANES, dy.data_ptr(), y.data_ptr(), dx.data_ptr(), threads_for(y.numel())
    )
    return dx
