"""What the kernels of a layer have in common: a topology in CSR, checked before it is followed."""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from sparseflow.core.errors import KernelError
from sparseflow.sparse.kernels.library import core

_WRONG = {
    1: "row pointers start at {value}, not at 0",
    2: "row pointers decrease after row {row}",
    3: "row pointers end at {value}, but there are {nnz} columns",
    4: "row {row} has a column outside of 0 to {last}",
    5: "the columns of row {row} are not strictly ascending",
}


def check_topology(
    row_pointers: Int32[Tensor, " rows_plus_1"], columns: Int32[Tensor, " nnz"], width: int
) -> None:
    """Check that a topology in CSR is one of a matrix with ``width`` columns.

    Raises:
        KernelError: for a wrong dtype, device or layout, pointers that decrease or do not
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


class Pattern:
    """The topology of a layer, and the kernels that follow it.

    Tensors are blocked, float32 and on the CPU; one of another shape, dtype or device is a
    :class:`KernelError`. Output neurons or channels are rows of the weight, and ``nnz``
    values stand in the order of the columns, row by row.

    Args:
        row_pointers: int32 (out + 1): where each row's weights begin.
        columns: int32 (nnz): position of each weight within its row, ascending.
        width: length of a row of the dense weight.

    Raises:
        KernelError: if the topology is not valid (:func:`check_topology`).
        SparseUnavailable: if the core is missing.
    """

    def __init__(
        self,
        row_pointers: Int32[Tensor, " rows_plus_1"],
        columns: Int32[Tensor, " nnz"],
        width: int,
    ) -> None:
        """Check the topology; what is derived from it is computed on first use."""
        check_topology(row_pointers, columns, width)
        self.row_pointers, self.columns = row_pointers, columns
        self.rows, self.nnz = len(row_pointers) - 1, len(columns)

    def forward(self, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool = False) -> Tensor:
        """Return the outputs for blocked inputs ``x``, after a ReLU if asked for."""
        raise NotImplementedError

    def single(
        self, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool = False
    ) -> Tensor | None:
        """Return the outputs for one example in the plain layout; None without such a kernel."""
        return None

    def input_gradient(self, values: Tensor, dy: Tensor, size: tuple[int, ...] = ()) -> Tensor:
        """Return the gradient with respect to the inputs, images of ``size``."""
        raise NotImplementedError

    def weight_gradient(
        self, x: Tensor, dy: Tensor, bias: bool
    ) -> tuple[Float32[Tensor, " nnz"], Float32[Tensor, " out"] | None]:
        """Return the gradients with respect to the values and, if asked for, the bias."""
        raise NotImplementedError

    def add_dense_gradient(self, total: Tensor, x: Tensor, dy: Tensor, start: int) -> None:
        """Add the gradient of the dense weight's rows from ``start`` on to ``total``."""
        raise NotImplementedError
