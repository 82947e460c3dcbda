"""The kernels of sparse linear layers."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from sparseflow.sparse.kernels.blocked import LANES, address, checked, optional, threads_for
from sparseflow.sparse.kernels.library import core
from sparseflow.sparse.kernels.memory import empty
from sparseflow.sparse.kernels.pattern import Pattern

# A row should have about 50 non-zeros in a block of columns, unless the activations of a
# block then outgrow the first two levels of cache. Fitted by measurement.
_NON_ZEROS, _NARROW, _WIDE = 50, 256, 2048
# One batch block takes 64 bytes per column (16 float32) and reads each non-zero only once, so
# wider blocks still fit the caches.
_WIDTH_OF_ONE = 8192


def _block_width(density: float) -> int:
    """Return the columns of a block, a power of two."""
    wanted = _NON_ZEROS / max(density, 1e-9)
    return min(_WIDE, max(_NARROW, 2 ** round(math.log2(wanted))))


class LinearPattern(Pattern):
    """The topology of a linear layer, and its kernels; see :class:`Pattern`.

    >>> from sparseflow.sparse.kernels.blocked import block, unblock
    >>> pattern = LinearPattern(torch.tensor([0, 1]).int(), torch.tensor([2]).int(), 3)
    >>> values, x = torch.tensor([5.0]), torch.eye(3)
    >>> unblock(pattern.forward(values, None, block(x)), 3).flatten()
    tensor([0., 0., 5.])
    >>> pattern.single(values, None, torch.ones(3))
    tensor([5.])
    >>> unblock(pattern.input_gradient(values, block(torch.ones(1, 1))), 1)
    tensor([[0., 0., 5.]])
    >>> pattern.weight_gradient(block(x), block(torch.ones(3, 1)), bias=True)
    (tensor([1.]), tensor([3.]))
    """

    def __init__(
        self,
        row_pointers: Int32[Tensor, " out_plus_1"],
        columns: Int32[Tensor, " nnz"],
        in_features: int,
    ) -> None:
        """Check the topology of a weight (out, in)."""
        super().__init__(row_pointers, columns, in_features)
        self.in_features = in_features
        density = self.nnz / max(1, in_features * self.rows)
        self.width: int = _block_width(density)
        self._starts: dict[int, Int32[Tensor, "blocks_plus_1 out"]] = {}

    def forward(
        self,
        values: Float32[Tensor, " nnz"],
        bias: Float32[Tensor, " out"] | None,
        x: Float32[Tensor, " nb in 16"],
        relu: bool = False,
    ) -> Float32[Tensor, "nb out 16"]:
        """Return W x + bias, after a ReLU if asked for."""
        nb = x.shape[0]
        x = checked("x", x, (nb, self.in_features, LANES))
        values = checked("values", values, (self.nnz,))
        bias = optional("bias", bias, (self.rows,))
        y = empty(nb, self.rows, LANES)
        width, starts = self._blocks(_WIDTH_OF_ONE if nb == 1 else self.width)
        core().linear_forward(
            self.rows, self.in_features, nb, width, starts.data_ptr(), self.columns.data_ptr(),
            values.data_ptr(), address(bias), x.data_ptr(), y.data_ptr(), relu,
            self._threads(nb),
        )  # fmt: skip
        return y

    def single(
        self,
        values: Float32[Tensor, " nnz"],
        bias: Float32[Tensor, " out"] | None,
        x: Float32[Tensor, " in"],
        relu: bool = False,
    ) -> Float32[Tensor, " out"]:
        """Return :meth:`forward` of one example in the plain layout, several times faster."""
        x = checked("x", x, (self.in_features,))
        values = checked("values", values, (self.nnz,))
        bias = optional("bias", bias, (self.rows,))
        y = x.new_empty(self.rows)
        core().linear_single(
            self.rows, self.row_pointers.data_ptr(), self.columns.data_ptr(), values.data_ptr(),
            address(bias), x.data_ptr(), y.data_ptr(), relu,
            threads_for(8 * self.nnz),  # reading a value once costs about 8 multiply-adds
        )  # fmt: skip
        return y

    def input_gradient(
        self,
        values: Float32[Tensor, " nnz"],
        dy: Float32[Tensor, "nb out 16"],
        size: tuple[int, ...] = (),
    ) -> Float32[Tensor, " nb in 16"]:
        """Return the gradient with respect to the inputs, Wᵀ dy."""
        nb = dy.shape[0]
        dy = checked("dy", dy, (nb, self.rows, LANES))
        values = checked("values", values, (self.nnz,))
        dx = empty(nb, self.in_features, LANES)
        starts, index, order = self.transposed
        core().linear_input_gradient(
            self.rows, self.in_features, nb, self.transposed_width, starts.data_ptr(),
            index.data_ptr(), order.data_ptr(), values.data_ptr(), dy.data_ptr(), dx.data_ptr(),
            self._threads(nb),
        )  # fmt: skip
        return dx

    def weight_gradient(
        self, x: Float32[Tensor, " nb in 16"], dy: Float32[Tensor, "nb out 16"], bias: bool
    ) -> tuple[Float32[Tensor, " nnz"], Float32[Tensor, " out"] | None]:
        """Return the gradients with respect to the values and, if asked for, the bias."""
        nb = x.shape[0]
        x = checked("x", x, (nb, self.in_features, LANES))
        dy = checked("dy", dy, (nb, self.rows, LANES))
        dvalues, dbias = x.new_empty(self.nnz), x.new_empty(self.rows) if bias else None
        # It reads the gradients as well as the inputs: twice as many batch blocks.
        width, starts = self._blocks(self.width // 2 if self.width == _NARROW else self.width)
        core().linear_weight_gradient(
            self.rows, self.in_features, nb, width, starts.data_ptr(), self.columns.data_ptr(),
            x.data_ptr(), dy.data_ptr(), dvalues.data_ptr(), address(dbias), self._threads(nb),
        )  # fmt: skip
        return dvalues, dbias

    def add_dense_gradient(self, total: Tensor, x: Tensor, dy: Tensor, start: int) -> None:
        """Add the gradient of the rows from ``start`` on to ``total``: Σ dy xᵀ over examples."""
        outputs = dy[:, start : start + len(total)].transpose(0, 1).flatten(1)
        total.addmm_(outputs, x.transpose(0, 1).flatten(1).t())

    def _threads(self, nb: int) -> int:
        return threads_for(self.nnz * nb * LANES)

    def _blocks(self, width: int) -> tuple[int, Int32[Tensor, "blocks_plus_1 out"]]:
        """Return the width of column blocks, and where each begins in each row."""
        if width not in self._starts:
            blocks = max(1, -(-self.in_features // width))
            starts = self.columns.new_empty((blocks + 1, self.rows))
            core().pattern_starts(
                self.rows, width, blocks, self.row_pointers.data_ptr(),
                self.columns.data_ptr(), starts.data_ptr(),
            )  # fmt: skip
            self._starts[width] = starts
        return width, self._starts[width]

    @property
    def transposed_width(self) -> int:
        """Rows in a block of the transposed topology, whose values are gathered out of order."""
        return max(_NARROW, self.width // 2)

    @cached_property
    def transposed(
        self,
    ) -> tuple[Int32[Tensor, " keys"], Int32[Tensor, " nnz"], Int32[Tensor, " nnz"]]:
        """The transposed topology in blocks of rows: starts, rows, positions in ``columns``."""
        width, rows, columns = self.transposed_width, self.rows, self.in_features
        blocks = max(1, -(-rows // width))
        starts = self.columns.new_empty(blocks * columns + 1)
        index, order = torch.empty_like(self.columns), torch.empty_like(self.columns)
        core().pattern_transpose(
            rows, columns, width, blocks, self.row_pointers.data_ptr(), self.columns.data_ptr(),
            starts.data_ptr(), index.data_ptr(), order.data_ptr(),
        )  # fmt: skip
        return starts, index, order
