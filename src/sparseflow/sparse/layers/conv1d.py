"""1-D convolutions that hold nothing but their non-zeros, as 2-D ones over images of height 1."""

from __future__ import annotations

from jaxtyping import Float32
from torch import Tensor, nn

from sparseflow.sparse.kernels.conv import ConvPattern
from sparseflow.sparse.layers.conv import SparseConvolution
from sparseflow.sparse.layers.registry import sparse_form


class _Sequences(ConvPattern):
    """The kernels of 2-D convolutions on sequences (nb, channels, length, 16)."""

    def forward(
        self,
        values: Float32[Tensor, " nnz"],
        bias: Float32[Tensor, " out"] | None,
        x: Float32[Tensor, "nb in length 16"],
        relu: bool = False,
    ) -> Float32[Tensor, "nb out olength 16"]:
        return super().forward(values, bias, x.unsqueeze(2), relu).squeeze(2)

    def input_gradient(
        self,
        values: Float32[Tensor, " nnz"],
        dy: Float32[Tensor, "nb out olength 16"],
        size: tuple[int, ...] = (),
    ) -> Float32[Tensor, "nb in length 16"]:
        return super().input_gradient(values, dy.unsqueeze(2), (1, *size)).squeeze(2)

    def weight_gradient(
        self,
        x: Float32[Tensor, "nb in length 16"],
        dy: Float32[Tensor, "nb out olength 16"],
        bias: bool,
    ) -> tuple[Float32[Tensor, " nnz"], Float32[Tensor, " out"] | None]:
        return super().weight_gradient(x.unsqueeze(2), dy.unsqueeze(2), bias)

    def add_dense_gradient(self, total: Tensor, x: Tensor, dy: Tensor, start: int) -> None:
        super().add_dense_gradient(total, x.unsqueeze(2), dy.unsqueeze(2), start)


@sparse_form(nn.Conv1d)
class SparseConv1d(SparseConvolution):
    """1-D convolution with a weight held by its non-zeros.

    Takes plain inputs (n, channels, length), like ``nn.Conv1d`` with zero
    padding; see :class:`~sparseflow.sparse.SparseLinear`.

    Example:
        >>> import torch
        >>> dense = nn.Conv1d(2, 4, 3, padding=1)
        >>> mask = torch.rand(4, 2, 3) < 0.5
        >>> dense.weight.data[~mask] = 0
        >>> layer = SparseConv1d.from_dense(dense, mask)
        >>> x = torch.randn(3, 2, 8)
        >>> bool(torch.allclose(layer(x), dense(x), atol=1e-5))
        True
    """

    axes = 3

    def _make_pattern(self, row_pointers: Tensor, columns: Tensor) -> ConvPattern:
        # Flat positions of (out, in, k) are those of (out, in, 1, k).
        shape = (*self.shape[:2], 1, *self.shape[2:])
        (stride,), (padding,), (dilation,) = self.stride, self.padding, self.dilation
        how = ((1, stride), (0, padding), (1, dilation))
        return _Sequences(row_pointers, columns, shape, *how, self.groups)
