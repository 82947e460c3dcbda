"""The kernels of sparse 2-D convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor
from torch.nn.grad import conv2d_weight

from sparseflow.core.errors import KernelError
from sparseflow.sparse.kernels.blocked import (
    LANES,
    address,
    checked,
    optional,
    threads_for,
    unblock,
)
from sparseflow.sparse.kernels.library import core
from sparseflow.sparse.kernels.memory import empty
from sparseflow.sparse.kernels.pattern import Pattern

LARGEST_KERNEL = 15  # positions along an axis
LARGEST_STEP = 1 << 15
_LARGEST_PLACE = 2**31 - 1

Taps = tuple[
    Int32[Tensor, " groups"],
    Int32[Tensor, " nnz"],
    Int32[Tensor, " nnz"],
]
"""Where the taps of each output begin, what they read, and their positions in the values."""


@dataclass(frozen=True)
class Call:
    """A convolution of a number of batch blocks of images of one size.

    Attributes:
        numbers: its description for the core, to be kept alive while the core reads it.
        out: height and width of the output.
        work: multiply-adds of one pass.
    """

    numbers: Int64[Tensor, " 17"]
    out: tuple[int, int]
    work: int


class ConvPattern(Pattern):
    """The topology of a convolution, and its kernels; see :class:`Pattern`.

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
        groups: number of groups of channels that see only each other.

    Raises:
        KernelError: if the topology is not valid, or the sizes do not match each other.
        SparseUnavailable: if the core is missing.

    >>> pointers, columns = torch.tensor([0, 1]).int(), torch.tensor([8]).int()
    >>> pattern = ConvPattern(pointers, columns, (1, 1, 3, 3), padding=(1, 1))
    >>> values = torch.tensor([5.0])
    >>> x = torch.arange(4.0).reshape(1, 1, 2, 2, 1).expand(-1, -1, -1, -1, 16)
    >>> pattern.forward(values, None, x)[0, 0, :, :, 0]
    tensor([[15.,  0.],
            [ 0.,  0.]])
    >>> pattern.input_gradient(values, torch.ones(1, 1, 2, 2, 16), (2, 2))[0, 0, :, :, 0]
    tensor([[0., 0.],
            [0., 5.]])
    >>> pattern.weight_gradient(x, torch.ones_like(x), bias=True)
    (tensor([48.]), tensor([64.]))
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
        """Check the topology and the sizes."""
        _check_sizes(weight_shape, stride, padding, dilation, groups)
        out, per_group, high, wide = weight_shape
        super().__init__(row_pointers, columns, per_group * high * wide)
        if self.rows != out:
            raise KernelError(
                f"row_pointers must have {out + 1} entries for a weight "
                f"{tuple(weight_shape)}, has {len(row_pointers)}"
            )
        self.in_channels, self.groups, self.kernel = per_group * groups, groups, (high, wide)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self._calls: dict[tuple[int, tuple[int, int]], Call] = {}
        self._taps: dict[tuple[str, tuple[int, int], bool], Taps] = {}

    def forward(
        self,
        values: Float32[Tensor, " nnz"],
        bias: Float32[Tensor, " out"] | None,
        x: Float32[Tensor, "nb in h w 16"],
        relu: bool = False,
    ) -> Float32[Tensor, "nb out oh ow 16"]:
        """Return the convolution of images, plus the bias, after a ReLU if asked for."""
        x, size = self._images(x)
        values = checked("values", values, (self.nnz,))
        bias = optional("bias", bias, (self.rows,))
        call = self.call(x.shape[0], size)
        starts, place, order = self.taps(size, backward=False)
        y = empty(x.shape[0], self.rows, *call.out, LANES)
        core().conv_forward(
            call.numbers.data_ptr(), starts.data_ptr(), place.data_ptr(), order.data_ptr(),
            values.data_ptr(), address(bias), x.data_ptr(), y.data_ptr(), relu,
            threads_for(call.work),
        )  # fmt: skip
        return y

    def input_gradient(
        self,
        values: Float32[Tensor, " nnz"],
        dy: Float32[Tensor, "nb out oh ow 16"],
        size: tuple[int, ...] = (),
    ) -> Float32[Tensor, "nb in h w 16"]:
        """Return the gradient with respect to the inputs, images of ``size``."""
        high, wide = size
        dy = checked("dy", dy, (len(dy), self.rows, *self.output_size((high, wide)), LANES))
        values = checked("values", values, (self.nnz,))
        call = self.call(len(dy), (high, wide))
        starts, place, order = self.taps((high, wide), backward=True)
        dx = empty(len(dy), self.in_channels, high, wide, LANES)
        core().conv_input_gradient(
            call.numbers.data_ptr(), starts.data_ptr(), place.data_ptr(), order.data_ptr(),
            values.data_ptr(), dy.data_ptr(), dx.data_ptr(), threads_for(call.work),
        )  # fmt: skip
        return dx

    def weight_gradient(
        self,
        x: Float32[Tensor, "nb in h w 16"],
        dy: Float32[Tensor, "nb out oh ow 16"],
        bias: bool,
    ) -> tuple[Float32[Tensor, " nnz"], Float32[Tensor, " out"] | None]:
        """Return the gradients with respect to the values and, if asked for, the bias."""
        x, size = self._images(x)
        call = self.call(x.shape[0], size)
        dy = checked("dy", dy, (x.shape[0], self.rows, *call.out, LANES))
        starts, place, order = self.taps(size, backward=False)
        dvalues, dbias = x.new_empty(self.nnz), x.new_empty(self.rows)
        core().conv_weight_gradient(
            call.numbers.data_ptr(), starts.data_ptr(), place.data_ptr(), order.data_ptr(),
            x.data_ptr(), dy.data_ptr(), dvalues.data_ptr(), dbias.data_ptr(),
            threads_for(call.work),
        )  # fmt: skip
        return dvalues, dbias if bias else None

    def add_dense_gradient(self, total: Tensor, x: Tensor, dy: Tensor, start: int) -> None:
        """Add the gradient of the output channels from ``start`` on to ``total``."""
        images, outputs = unblock(x, LANES * len(x)), unblock(dy, LANES * len(dy))
        stop, out = start + len(total), self.rows // self.groups
        columns = self.in_channels // self.groups
        # The channels may cut through groups, each of which sees its own inputs.
        for group in range(start // out, -(-stop // out)):
            low, high = max(start, group * out), min(stop, (group + 1) * out)
            gradient = conv2d_weight(
                images[:, group * columns : (group + 1) * columns],
                [high - low, columns, *self.kernel],
                outputs[:, low:high],
                self.stride,  # type: ignore[arg-type]  (pairs are taken, too)
                self.padding,  # type: ignore[arg-type]
                self.dilation,  # type: ignore[arg-type]
            )
            total[low - start : high - start] += gradient.view(-1, *total.shape[1:])

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
            numbers = [nb, self.in_channels, self.rows, self.groups, self.nnz]
            numbers += [each[axis] for axis in (0, 1) for each in of]
            work = nb * LANES * (self.nnz + self.rows) * out[0] * out[1]
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
        read = self.rows * call.out[0] * call.out[1] if backward else self._places(size)
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
        """Upper bound of the input vectors that the core lays out side by side.

        With a stride it reorders them by their phase, so that the taps of neighbouring
        outputs lie next to each other.
        """
        places = self.in_channels
        for n, k, s, p, d in zip(
            size, self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            places *= n if s == 1 else min(k, s) * ((n + 2 * p + d * k) // s + 2)
        return places

    def _images(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Check blocked inputs, and tell the size of the images."""
        if x.ndim != 5:
            raise KernelError(f"x must have shape (nb, c, h, w, {LANES}), has {tuple(x.shape)}")
        size = (x.shape[2], x.shape[3])
        return checked("x", x, (x.shape[0], self.in_channels, *size, LANES)), size


def _check_sizes(
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> None:
    """Check that the kernels can compute a convolution of these sizes.

    Raises:
        KernelError: if they cannot.
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
        raise KernelError(f"{weight_shape[0]} output channels do not divide into {groups} groups")
