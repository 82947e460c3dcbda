"""Convolutions that hold nothing but their non-zeros."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.utils import _ntuple

from sparseflow.core.errors import KernelError
from sparseflow.sparse.kernels.conv import ConvPattern
from sparseflow.sparse.layers.base import Reference, SparseLayer
from sparseflow.sparse.layers.registry import sparse_form


class SparseConvolution(SparseLayer):
    """What sparse convolutions share, whatever their number of axes."""

    arguments = (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
        *("groups", "bias", "padding_mode"),
    )
    cost = "conv"
    padding_mode = "zeros"

    def __init__(
        self,
        shape: tuple[int, ...],
        indices: Tensor,
        values: Tensor,
        bias: Float[Tensor, " out"] | None = None,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ) -> None:
        """Hold the connections at sorted flat positions of (out, in / groups, *kernel)."""
        each = _ntuple(self.axes - 2)
        self.stride: tuple[int, ...] = each(stride)
        self.padding: tuple[int, ...] = each(padding)
        self.dilation: tuple[int, ...] = each(dilation)
        self.groups = groups
        super().__init__(shape, indices, values, bias)

    @classmethod
    def of(cls, layer: _ConvNd, indices: Tensor, values: Tensor) -> SparseConvolution:
        """Take a dense layer's sizes and bias; its weight is not looked at.

        Raises:
            KernelError: if the padding is not of zeros, or not the same on both sides.
        """
        return cls(
            (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size),
            indices,
            values,
            layer.bias,
            stride=layer.stride,
            padding=zero_padding(layer),
            dilation=layer.dilation,
            groups=layer.groups,
        )

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.shape[0]

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Positions of the kernel along each axis."""
        return tuple(self.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (n, channels, *size) or (channels, *size); the output is alike."""
        if x.ndim == self.axes - 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if x.ndim != self.axes:
            raise KernelError(
                f"input must have {self.axes} axes (n, channels, ...), or {self.axes - 1} without "
                f"n, has shape {tuple(x.shape)}"
            )
        return super().forward(x)


@sparse_form(nn.Conv2d)
class SparseConv2d(SparseConvolution):
    """2-D convolution with a weight held by its non-zeros.

    Takes plain inputs (n, channels, height, width), like ``nn.Conv2d`` with zero
    padding; see :class:`SparseLinear`.

    Example:
        >>> import torch
        >>> dense = nn.Conv2d(2, 4, 3, padding=1)
        >>> mask = torch.rand(4, 2, 3, 3) < 0.5
        >>> dense.weight.data[~mask] = 0
        >>> layer = SparseConv2d.from_dense(dense, mask)
        >>> x = torch.randn(3, 2, 8, 8)
        >>> bool(torch.allclose(layer(x), dense(x), atol=1e-5))
        True
    """

    axes = 4
    # From 50 to 99 % sparse, from small to large.
    references = (
        Reference((6, 16, 5), 0.1, (32, 6, 12, 12)),
        Reference((1, 6, 5), 0.5, (32, 1, 28, 28)),
        Reference((16, 16, 3), 0.2, (16, 16, 16, 16)),
        Reference((32, 64, 1), 0.1, (32, 32, 8, 8)),
        Reference((64, 64, 3), 0.05, (16, 64, 8, 8)),
        Reference((64, 64, 3), 0.01, (1, 64, 16, 16)),
    )

    def _make_pattern(self, row_pointers: Tensor, columns: Tensor) -> ConvPattern:
        how: Any = (self.stride, self.padding, self.dilation, self.groups)
        return ConvPattern(row_pointers, columns, tuple(self.shape), *how)


def zero_padding(layer: _ConvNd) -> tuple[int, ...]:
    """Zeros that a convolution adds to both sides along each axis.

    Raises:
        KernelError: if it pads with anything else, or unevenly.
    """
    if layer.padding_mode != "zeros":
        raise KernelError(
            f"padding_mode={layer.padding_mode!r}: sparse convolutions pad with zeros"
        )
    if isinstance(layer.padding, tuple):
        return layer.padding
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    # "same": the kernel's reach is divided between both sides.
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(r % 2 for r in reach):
        raise KernelError("padding='same' pads the two sides differently here")
    return tuple(r // 2 for r in reach)
