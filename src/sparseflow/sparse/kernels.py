"""The kernels of linear layers, layout and pooling as functions on tensors.

All tensors are float32 on the CPU. Activations are *blocked*: 16 examples innermost,
features (N/16, F, 16) and images (N/16, C, H, W, 16); a batch that is no multiple of 16
ends in zero examples. A tensor that is not contiguous is copied first; one of another
dtype, device or shape is an error.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from sparseflow.core.errors import KernelError
from sparseflow.sparse.library import core
from sparseflow.sparse.memory import empty
from sparseflow.sparse.pattern import LinearPattern

LANES = 16
LARGEST_POOL = 15  # a place in a window fits 8 bits
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


def threads_for(work: int) -> int:
    """Return how many threads a kernel of ``work`` multiply-adds should use."""
    return torch.get_num_threads() if work >= _WORTH_THREADS else 1


def block(x: Float32[Tensor, " n *rest"]) -> Float32[Tensor, "nb *rest 16"]:
    """Convert a batch to the blocked layout, zeros behind the last example.

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
    """Convert the first ``n`` examples of a blocked batch back.

    >>> unblock(block(torch.ones(3, 2)), 3).shape
    torch.Size([3, 2])
    """
    x = _blocked("x", x)
    nb, *rest, _ = x.shape
    if not 0 <= n <= nb * LANES:
        raise KernelError(f"n must lie in 0 to {nb * LANES}, the examples of x, is {n}")
    y = x.new_empty((n, *rest))
    if y.numel():
        core().unblock(x.data_ptr(), n, y.numel() // n, y.data_ptr(), threads_for(x.numel()))
    return y


def _blocked(name: str, x: Tensor) -> Tensor:
    if x.ndim < 3 or x.shape[-1] != LANES:
        raise KernelError(
            f"{name} must be blocked, (batch / {LANES}, ..., {LANES}), has shape {tuple(x.shape)}"
        )
    return checked(name, x, x.shape)


def linear_forward(
    pattern: LinearPattern,
    values: Float32[Tensor, " nnz"],
    bias: Float32[Tensor, " out"] | None,
    x: Float32[Tensor, " nb in 16"],
    relu: bool = False,
) -> Float32[Tensor, "nb out 16"]:
    """Return the outputs W x + bias of a sparse linear layer, after a ReLU if asked for.

    Raises:
        KernelError: for a tensor that does not fit the pattern.

    >>> pattern = LinearPattern(torch.tensor([0, 1]).int(), torch.tensor([2]).int(), 3)
    >>> unblock(linear_forward(pattern, torch.tensor([5.]), None, block(torch.eye(3))), 3)
    tensor([[0.],
            [0.],
            [5.]])
    """
    nb, rows, columns = x.shape[0], pattern.out_features, pattern.in_features
    x = checked("x", x, (nb, columns, LANES))
    values = checked("values", values, (pattern.nnz,))
    if bias is not None:
        bias = checked("bias", bias, (rows,))
    y = empty(nb, rows, LANES)
    width, starts = pattern.forward(nb)
    core().linear_forward(
        rows, columns, nb, width, starts.data_ptr(), pattern.columns.data_ptr(),
        values.data_ptr(), None if bias is None else bias.data_ptr(), x.data_ptr(), y.data_ptr(),
        relu, threads_for(pattern.nnz * nb * LANES),
    )  # fmt: skip
    return y


def linear_single(
    pattern: LinearPattern,
    values: Float32[Tensor, " nnz"],
    bias: Float32[Tensor, " out"] | None,
    x: Float32[Tensor, " in"],
    relu: bool = False,
) -> Float32[Tensor, " out"]:
    """Return :func:`linear_forward` of one example in the plain layout, several times faster.

    Raises:
        KernelError: for a tensor that does not fit the pattern.

    >>> pattern = LinearPattern(torch.tensor([0, 1]).int(), torch.tensor([2]).int(), 3)
    >>> linear_single(pattern, torch.tensor([5.]), None, torch.ones(3))
    tensor([5.])
    """
    rows = pattern.out_features
    x = checked("x", x, (pattern.in_features,))
    values = checked("values", values, (pattern.nnz,))
    if bias is not None:
        bias = checked("bias", bias, (rows,))
    y = x.new_empty(rows)
    core().linear_single(
        rows, pattern.row_pointers.data_ptr(), pattern.columns.data_ptr(), values.data_ptr(),
        None if bias is None else bias.data_ptr(), x.data_ptr(), y.data_ptr(), relu,
        threads_for(8 * pattern.nnz),  # a value read for one example alone costs that much
    )  # fmt: skip
    return y


def linear_input_gradient(
    pattern: LinearPattern, values: Float32[Tensor, " nnz"], dy: Float32[Tensor, "nb out 16"]
) -> Float32[Tensor, " nb in 16"]:
    """Return the gradient W' dy at the inputs of a sparse linear layer.

    Raises:
        KernelError: for a tensor that does not fit the pattern.

    >>> pattern = LinearPattern(torch.tensor([0, 1]).int(), torch.tensor([2]).int(), 3)
    >>> unblock(linear_input_gradient(pattern, torch.tensor([5.]), block(torch.ones(1, 1))), 1)
    tensor([[0., 0., 5.]])
    """
    nb, rows, columns = dy.shape[0], pattern.out_features, pattern.in_features
    dy = checked("dy", dy, (nb, rows, LANES))
    values = checked("values", values, (pattern.nnz,))
    dx = empty(nb, columns, LANES)
    starts, index, order = pattern.transposed
    core().linear_input_gradient(
        rows, columns, nb, pattern.transposed_width, starts.data_ptr(), index.data_ptr(),
        order.data_ptr(), values.data_ptr(), dy.data_ptr(), dx.data_ptr(),
        threads_for(pattern.nnz * nb * LANES),
    )  # fmt: skip
    return dx


def linear_weight_gradient(
    pattern: LinearPattern,
    x: Float32[Tensor, " nb in 16"],
    dy: Float32[Tensor, "nb out 16"],
    bias: bool,
) -> tuple[Float32[Tensor, " nnz"], Float32[Tensor, " out"] | None]:
    """Return the gradients of a sparse linear layer's values and, if asked for, of its bias.

    Raises:
        KernelError: for a tensor that does not fit the pattern.

    >>> pattern = LinearPattern(torch.tensor([0, 1]).int(), torch.tensor([2]).int(), 3)
    >>> linear_weight_gradient(pattern, block(torch.eye(3)), block(torch.ones(3, 1)), bias=True)
    (tensor([1.]), tensor([3.]))
    """
    nb, rows, columns = x.shape[0], pattern.out_features, pattern.in_features
    x = checked("x", x, (nb, columns, LANES))
    dy = checked("dy", dy, (nb, rows, LANES))
    dvalues = x.new_empty(pattern.nnz)
    dbias = x.new_empty(rows) if bias else None
    width, starts = pattern.gradient()
    core().linear_weight_gradient(
        rows, columns, nb, width, starts.data_ptr(), pattern.columns.data_ptr(), x.data_ptr(),
        dy.data_ptr(), dvalues.data_ptr(), None if dbias is None else dbias.data_ptr(),
        threads_for(pattern.nnz * nb * LANES),
    )  # fmt: skip
    return dvalues, dbias


def _pool_sizes(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[int, int]:
    """Check the numbers of a pooling and return the size of its output."""
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
    """Return the maxima of all windows and their places in their windows, row by row.

    As ``torch.nn.MaxPool2d`` without dilation and ``ceil_mode``: of equal values the first
    counts, and a NaN is larger than any number.

    Raises:
        KernelError: for an impossible kernel, stride or padding, or an image too small.

    >>> y, index = max_pool(block(torch.arange(4.0).reshape(1, 1, 2, 2)), (2, 2), (2, 2))
    >>> y[0, 0, 0, 0, 0].item(), index[0, 0, 0, 0, 0].item()
    (3.0, 3)
    """
    if x.ndim != 5:
        raise KernelError(f"x must have shape (nb, c, h, w, {LANES}), has {tuple(x.shape)}")
    x = _blocked("x", x)
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
    """Return the gradient at the (h, w) inputs of :func:`max_pool`, from its places.

    Raises:
        KernelError: for numbers or shapes that do not fit each other.

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


def relu_gradient(
    dy: Float32[Tensor, "nb *rest 16"], y: Float32[Tensor, "nb *rest 16"], in_place: bool = False
) -> Float32[Tensor, "nb *rest 16"]:
    """Return the gradient at the input of a ReLU from its output ``y``, in ``dy`` if asked for.

    >>> y = torch.arange(-8.0, 8.0).reshape(1, 1, 16)
    >>> relu_gradient(torch.ones(1, 1, 16), y).sum()
    tensor(7.)
    """
    y = _blocked("y", y)
    dy = checked("dy", dy, y.shape)
    dx = dy if in_place else empty(*dy.shape)
    core().relu_gradient(
        y.numel() // LANES, dy.data_ptr(), y.data_ptr(), dx.data_ptr(), threads_for(y.numel())
    )
    return dx
