"""Sparse 2-D convolutions on blocked images.

All tensors are float32 on the CPU, images (N/16, C, H, W, 16); see
:mod:`sparseflow.sparse.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor

from sparseflow.core.errors import KernelError
from sparseflow.sparse.kernels import LANES, checked, threads_for
from sparseflow.sparse.library import core
from sparseflow.sparse.memory import empty
from sparseflow.sparse.pattern import check_topology

LARGEST_KERNEL = 15  # positions along an axis
LARGEST_STEP = 1 << 15
_LARGEST_PLACE = 2**31 - 1

Taps = tuple[
    Int32[Tensor, " groups"],
    Int32[Tensor, " nnz"],
    Int32[Tensor, " nnz"],
]
"""Where the taps of each output begin, what they read, and their places in the values."""


@dataclass(frozen=True)
class Call:
    """A convolution of so many batch blocks of images of one size.

    Attributes:
        numbers: its description for the core; whoever passes its address keeps this.
        out: height and width of the output.
        work: multiply-adds of one pass.
    """

    numbers: Int64[Tensor, " 17"]
    out: tuple[int, int]
    work: int


class ConvPattern:
    """The topology of a convolution and what its kernels derive from it.

    The weight (out, in / groups, kh, kw) is seen as a matrix with a row per output
    channel. What a non-zero reads depends on the size of the images: that table, about 8
    bytes per non-zero for the forward pass and as many for the backward pass, is made on first
    use of a size and kept, for the core's level at that time.

    Args:
        row_pointers: int32 (out + 1): where each output channel's weights begin.
        columns: int32 (nnz): flat position of each weight within its row, ascending.
        weight_shape: of the dense weight.
        stride: steps between outputs, in height and width.
        padding: zeros added on both sides.
        dilation: steps between kernel positions.
        groups: of channels that see only each other.

    Raises:
        KernelError: if this is no topology, or numbers do not fit each other.
        SparseUnavailable: if the core is missing.

    >>> pointers, columns = torch.tensor([0, 2]).int(), torch.tensor([0, 4]).int()
    >>> pattern = ConvPattern(pointers, columns, (1, 1, 3, 3), padding=(1, 1))
    >>> pattern.nnz, pattern.output_size((8, 8))
    (2, (8, 8))
    """

    def __init__(
        self,
        row_pointers: Int32[Tensor, " out_plus_1"],
        columns: Int32[Tensor, " nnz"],
        weight_shape: tuple[int, ...],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        """Check the topology and the numbers."""
        check_numbers(weight_shape, stride, padding, dilation, groups)
        out, per_group, high, wide = weight_shape
        check_topology(row_pointers, columns, per_group * high * wide)
        if len(row_pointers) != out + 1:
            raise KernelError(
                f"row_pointers must have {out + 1} entries for a weight "
                f"{tuple(weight_shape)}, has {len(row_pointers)}"
            )
        self.row_pointers, self.columns = row_pointers, columns
        self.nnz = len(columns)
        self.out_channels, self.in_channels, self.groups = out, per_group * groups, groups
        self.kernel = (high, wide)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self._calls: dict[tuple[int, tuple[int, int]], Call] = {}
        self._taps: dict[tuple[str, tuple[int, int], bool], Taps] = {}

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the output for an input of this size.

        Raises:
            KernelError: if the input is smaller than the kernel.
        """
        axes = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        high, wide = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        if min(high, wide, *size) < 1:
            raise KernelError(
                f"an image of {tuple(size)} is too small for a kernel of {self.kernel} with "
                f"padding {self.padding} and dilation {self.dilation}"
            )
        return high, wide

    def call(self, nb: int, size: tuple[int, int]) -> Call:
        """Return the convolution of ``nb`` batch blocks of images of this size.

        Raises:
            KernelError: if the images are smaller than the kernel.
        """
        call = self._calls.get((nb, size))
        if call is None:
            out = self.output_size(size)
            of = (size, out, self.kernel, self.stride, self.padding, self.dilation)
            numbers = [nb, self.in_channels, self.out_channels, self.groups, self.nnz]
            numbers += [each[axis] for axis in (0, 1) for each in of]
            work = nb * LANES * (self.nnz + self.out_channels) * out[0] * out[1]
            call = self._calls[nb, size] = Call(torch.tensor(numbers, device="cpu"), out, work)
        return call

    def taps(self, size: tuple[int, int], backward: bool) -> Taps:
        """Return the table for images of this size: forward, or for the input gradient.

        Raises:
            KernelError: if an image of the batch is too large to be indexed.
        """
        key = (core().level, size, backward)
        taps = self._taps.get(key)
        if taps is None:
            taps = self._taps[key] = self._make_taps(size, backward)
        return taps

    def _make_taps(self, size: tuple[int, int], backward: bool) -> Taps:
        call = self.call(1, size)
        read = self.out_channels * call.out[0] * call.out[1] if backward else self._places(size)
        if read > _LARGEST_PLACE:
            raise KernelError(f"images of {size} are too large for a sparse convolution")
        entries = torch.empty(1, dtype=torch.int64, device="cpu")
        core().conv_starts(call.numbers.data_ptr(), backward, entries.data_ptr())
        starts = self.columns.new_empty(int(entries))
        place, order = torch.empty_like(self.columns), torch.empty_like(self.columns)
        core().conv_taps(
            call.numbers.data_ptr(), backward, self.row_pointers.data_ptr(),
            self.columns.data_ptr(), starts.data_ptr(), place.data_ptr(), order.data_ptr(),
        )  # fmt: skip
        return starts, place, order

    def _places(self, size: tuple[int, int]) -> int:
        """At most so many vectors of the input are laid out side by side."""
        places = self.in_channels
        for n, k, s, p, d in zip(
            size, self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            places *= n if s == 1 else min(k, s) * ((n + 2 * p + d * k) // s + 2)
        return places


def check_numbers(
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> None:
    """Check that there are kernels for a convolution of these numbers.

    Raises:
        KernelError: if there are none.
    """
    if len(weight_shape) != 4 or min(weight_shape) < 1:
        raise KernelError(
            f"weight_shape must be (out, in / groups, kh, kw), is {tuple(weight_shape)}"
        )
    if max(weight_shape[2:]) > LARGEST_KERNEL:
        raise KernelError(
            f"sparse convolutions have kernels of at most {LARGEST_KERNEL} positions along an "
            f"axis, not {tuple(weight_shape[2:])}"
        )
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise KernelError(
            f"a convolution needs strides and dilations of at least 1 and paddings of at "
            f"least 0, has {stride}, {dilation} and {padding}"
        )
    if max(*stride, *padding, *dilation) > LARGEST_STEP:
        raise KernelError(
            f"strides, paddings and dilations go up to {LARGEST_STEP}, not {stride}, {padding} "
            f"and {dilation}"
        )
    if groups < 1 or weight_shape[0] % groups:
        raise KernelError(f"{weight_shape[0]} output channels do not fall into {groups} groups")


def _images(name: str, x: Tensor, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    if x.ndim != 5:
        raise KernelError(f"{name} must have shape (nb, c, h, w, {LANES}), has {tuple(x.shape)}")
    size = (x.shape[2], x.shape[3]) if size is None else size
    return checked(name, x, (x.shape[0], channels, *size, LANES))


def conv_forward(
    pattern: ConvPattern,
    values: Float32[Tensor, " nnz"],
    bias: Float32[Tensor, " out"] | None,
    x: Float32[Tensor, "nb in h w 16"],
    relu: bool = False,
) -> Float32[Tensor, "nb out oh ow 16"]:
    """Return the outputs of a sparse convolution, after a ReLU if asked for.

    Raises:
        KernelError: for a tensor that does not fit the pattern.

    >>> pointers, columns = torch.tensor([0, 1]).int(), torch.tensor([8]).int()
    >>> pattern = ConvPattern(pointers, columns, (1, 1, 3, 3), padding=(1, 1))
    >>> x = torch.arange(4.0).reshape(1, 1, 2, 2, 1).expand(-1, -1, -1, -1, 16)
    >>> conv_forward(pattern, torch.tensor([5.0]), None, x)[0, 0, :, :, 0]
    tensor([[15.,  0.],
            [ 0.,  0.]])
    """
    x = _images("x", x, pattern.in_channels)
    values = checked("values", values, (pattern.nnz,))
    if bias is not None:
        bias = checked("bias", bias, (pattern.out_channels,))
    nb, size = x.shape[0], (x.shape[2], x.shape[3])
    call = pattern.call(nb, size)
    starts, place, order = pattern.taps(size, backward=False)
    y = empty(nb, pattern.out_channels, *call.out, LANES)
    core().conv_forward(
        call.numbers.data_ptr(), starts.data_ptr(), place.data_ptr(),
        order.data_ptr(), values.data_ptr(), None if bias is None else bias.data_ptr(),
        x.data_ptr(), y.data_ptr(), relu, threads_for(call.work),
    )  # fmt: skip
    return y


def conv_input_gradient(
    pattern: ConvPattern,
    values: Float32[Tensor, " nnz"],
    dy: Float32[Tensor, "nb out oh ow 16"],
    size: tuple[int, int],
) -> Float32[Tensor, "nb in h w 16"]:
    """Return the gradient at the inputs, images of ``size``, of a sparse convolution.

    Raises:
        KernelError: for a tensor that does not fit the pattern and the size.

    >>> pointers, columns = torch.tensor([0, 1]).int(), torch.tensor([8]).int()
    >>> pattern = ConvPattern(pointers, columns, (1, 1, 3, 3), padding=(1, 1))
    >>> dy = torch.ones(1, 1, 2, 2, 16)
    >>> conv_input_gradient(pattern, torch.tensor([5.0]), dy, (2, 2))[0, 0, :, :, 0]
    tensor([[0., 0.],
            [0., 5.]])
    """
    dy = _images("dy", dy, pattern.out_channels, pattern.output_size(size))
    values = checked("values", values, (pattern.nnz,))
    call = pattern.call(dy.shape[0], size)
    starts, place, order = pattern.taps(size, backward=True)
    dx = empty(dy.shape[0], pattern.in_channels, *size, LANES)
    core().conv_input_gradient(
        call.numbers.data_ptr(), starts.data_ptr(), place.data_ptr(),
        order.data_ptr(), values.data_ptr(), dy.data_ptr(), dx.data_ptr(),
        threads_for(call.work),
    )  # fmt: skip
    return dx


def conv_weight_gradient(
    pattern: ConvPattern,
    x: Float32[Tensor, "nb in h w 16"],
    dy: Float32[Tensor, "nb out oh ow 16"],
    bias: bool,
) -> tuple[Float32[Tensor, " nnz"], Float32[Tensor, " out"] | None]:
    """Return the gradients of a sparse convolution's values and, if asked for, of its bias.

    Raises:
        KernelError: for tensors that do not fit the pattern or each other.

    >>> pointers, columns = torch.tensor([0, 1]).int(), torch.tensor([8]).int()
    >>> pattern = ConvPattern(pointers, columns, (1, 1, 3, 3), padding=(1, 1))
    >>> x = torch.arange(4.0).reshape(1, 1, 2, 2, 1).expand(-1, -1, -1, -1, 16)
    >>> conv_weight_gradient(pattern, x, torch.ones_like(x), bias=True)
    (tensor([48.]), tensor([64.]))
    """
    x = _images("x", x, pattern.in_channels)
    nb, size = x.shape[0], (x.shape[2], x.shape[3])
    call = pattern.call(nb, size)
    dy = checked("dy", dy, (nb, pattern.out_channels, *call.out, LANES))
    starts, place, order = pattern.taps(size, backward=False)
    dvalues, dbias = x.new_empty(pattern.nnz), x.new_empty(pattern.out_channels)
    core().conv_weight_gradient(
        call.numbers.data_ptr(), starts.data_ptr(), place.data_ptr(),
        order.data_ptr(), x.data_ptr(), dy.data_ptr(), dvalues.data_ptr(), dbias.data_ptr(),
        threads_for(call.work),
    )  # fmt: skip
    return dvalues, dbias if bias else None
