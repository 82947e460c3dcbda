"""The topology of a linear layer as the kernels need it."""

from __future__ import annotations

import ctypes
import math
from functools import cached_property

import torch
from jaxtyping import Int32
from torch import Tensor

from sparseflow.core.errors import KernelError
from sparseflow.sparse.library import core

_WRONG = {
    1: "row pointers start at {value}, not at 0",
    2: "row pointers fall after row {row}",
    3: "row pointers end at {value}, but there are {nnz} columns",
    4: "row {row} has a column outside of 0 to {last}",
    5: "the columns of row {row} are not strictly ascending",
}


def check_topology(
    row_pointers: Int32[Tensor, " rows_plus_1"], columns: Int32[Tensor, " nnz"], width: int
) -> None:
    """Check that a topology in CSR is one of a matrix with ``width`` columns.

    Raises:
        KernelError: for a wrong dtype, device or layout, pointers that fall or do not
            span the columns, a column out of range, columns not strictly ascending.

    >>> check_topology(torch.tensor([0, 1]).int(), torch.tensor([3]).int(), 3)
    Traceback (most recent call last):
        ...
    sparseflow.core.errors.KernelError: row 0 has a column outside of 0 to 2
    """
    for name, tensor in (("row_pointers", row_pointers), ("columns", columns)):
        if tensor.dtype != torch.int32 or tensor.device.type != "cpu" or tensor.ndim != 1:
            raise KernelError(
                f"{name} must be one-dimensional int32 on the CPU, is {tensor.dtype} of shape "
                f"{tuple(tensor.shape)} on {tensor.device}"
            )
        if not tensor.is_contiguous():
            raise KernelError(f"{name} must be contiguous")
    if not len(row_pointers):
        raise KernelError("row_pointers must have at least one entry, has none")
    rows, nnz = len(row_pointers) - 1, len(columns)
    row = ctypes.c_int64()
    wrong = core().pattern_check(
        rows, width, nnz, row_pointers.data_ptr(), columns.data_ptr(), ctypes.addressof(row)
    )
    if wrong:
        value = int(row_pointers[0 if wrong == 1 else -1])
        raise KernelError(_WRONG[wrong].format(row=row.value, value=value, nnz=nnz, last=width - 1))


# A row should have some 50 non-zeros in a block of columns, unless the activations of a
# block get too many for the first two caches. Fitted by measurement.
_NON_ZEROS, _NARROW, _WIDE = 50, 256, 2048
# A product with one batch block reads 64 bytes per column and each non-zero only once.
_WIDTH_OF_ONE = 8192


def _block_width(density: float) -> int:
    """Return the columns of a block, a power of two."""
    wanted = _NON_ZEROS / max(density, 1e-9)
    return min(_WIDE, max(_NARROW, 2 ** round(math.log2(wanted))))


class LinearPattern:
    """The topology of a linear layer and what its kernels derive from it.

    Args:
        row_pointers: int32 (out + 1): where each output neuron's weights begin.
        columns: int32 (nnz): the input neuron of each weight, ascending within a row.
        in_features: inputs of the layer.

    Raises:
        KernelError: if this is no topology (:func:`check_topology`).
        SparseUnavailable: if the core is missing.

    >>> pattern = LinearPattern(torch.tensor([0, 2, 3]).int(), torch.tensor([0, 2, 1]).int(), 3)
    >>> pattern.out_features, pattern.nnz
    (2, 3)
    """

    def __init__(
        self,
        row_pointers: Int32[Tensor, " out_plus_1"],
        columns: Int32[Tensor, " nnz"],
        in_features: int,
    ) -> None:
        """Check the topology; what is derived from it is made on first use."""
        check_topology(row_pointers, columns, in_features)
        self.row_pointers = row_pointers
        self.columns = columns
        self.in_features = in_features
        self.out_features: int = len(row_pointers) - 1
        self.nnz: int = len(columns)
        density = self.nnz / max(1, in_features * self.out_features)
        self.width: int = _block_width(density)
        self._starts: dict[int, Int32[Tensor, "blocks_plus_1 out"]] = {}

    def forward(self, nb: int) -> tuple[int, Int32[Tensor, "blocks_plus_1 out"]]:
        """Return how wide column blocks are for ``nb`` batch blocks, and their starts per row."""
        return self._blocks(_WIDTH_OF_ONE if nb == 1 else self.width)

    def gradient(self) -> tuple[int, Int32[Tensor, "blocks_plus_1 out"]]:
        """Return the same for the weight gradient, which reads twice as many batch blocks."""
        return self._blocks(self.width // 2 if self.width == _NARROW else self.width)

    def _blocks(self, width: int) -> tuple[int, Int32[Tensor, "blocks_plus_1 out"]]:
        if width not in self._starts:
            blocks = max(1, -(-self.in_features // width))
            starts = self.columns.new_empty((blocks + 1, self.out_features))
            core().pattern_starts(
                self.out_features, width, blocks, self.row_pointers.data_ptr(),
                self.columns.data_ptr(), starts.data_ptr(),
            )  # fmt: skip
            self._starts[width] = starts
        return width, self._starts[width]

    @property
    def transposed_width(self) -> int:
        """How many rows a block of the transposed topology has; values are read in no order."""
        return max(_NARROW, self.width // 2)

    @cached_property
    def transposed(
        self,
    ) -> tuple[Int32[Tensor, " keys"], Int32[Tensor, " nnz"], Int32[Tensor, " nnz"]]:
        """The transposed topology in blocks of rows: starts, rows, places in ``columns``."""
        width, rows, columns = self.transposed_width, self.out_features, self.in_features
        blocks = max(1, -(-rows // width))
        starts = self.columns.new_empty(blocks * columns + 1)
        index, order = torch.empty_like(self.columns), torch.empty_like(self.columns)
        core().pattern_transpose(
            rows, columns, width, blocks, self.row_pointers.data_ptr(), self.columns.data_ptr(),
            starts.data_ptr(), index.data_ptr(), order.data_ptr(),
        )  # fmt: skip
        return starts, index, order
