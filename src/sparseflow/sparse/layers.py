"""Linear and convolution layers that hold nothing but their non-zeros."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from sparseflow.core.errors import KernelError
from sparseflow.sparse.base import SparseLayer, active, filled
from sparseflow.sparse.conv import (
    ConvPattern,
    conv_forward,
    conv_input_gradient,
    conv_weight_gradient,
)
from sparseflow.sparse.kernels import (
    linear_forward,
    linear_input_gradient,
    linear_single,
    linear_weight_gradient,
    unblock,
)
from sparseflow.sparse.pattern import LinearPattern


class SparseLinear(SparseLayer):
    """``y = x Wᵀ + b`` with a weight held by its non-zeros.

    Takes plain inputs (..., in), like ``nn.Linear``; in a model converted by
    :func:`sparseflow.to_sparse` activations stay in the blocked layout between
    layers, which is where the speed is. float32 on the CPU; bfloat16 and half
    are computed in float32.

    Example:
        >>> import torch
        >>> dense = nn.Linear(6, 4)
        >>> mask = torch.rand(4, 6) < 0.5
        >>> dense.weight.data[~mask] = 0
        >>> layer = SparseLinear.from_dense(dense, mask)
        >>> x = torch.randn(3, 6)
        >>> bool(torch.allclose(layer(x), dense(x), atol=1e-6))
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        indices: Tensor,
        values: Tensor,
        bias: Float[Tensor, " out"] | None = None,
    ) -> None:
        """Hold the connections at the sorted flat positions ``indices`` of (out, in)."""
        super().__init__((out_features, in_features), indices, values, bias)

    @classmethod
    def from_dense(cls, layer: nn.Linear, mask: Tensor) -> SparseLinear:
        """Take a dense layer's active weights.

        Raises:
            MaskError: if the mask has another shape than the weight.
        """
        return cls.of(layer, *active(layer.weight, mask))

    @classmethod
    def of(cls, layer: nn.Linear, indices: Tensor, values: Tensor) -> SparseLinear:
        """Take a dense layer's geometry and bias; its weight is not looked at."""
        return cls(layer.in_features, layer.out_features, indices, values, layer.bias)

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.shape[0]

    def to_dense(self) -> nn.Linear:
        """The same layer, dense."""
        layer = nn.Linear(*reversed(self.shape), bias=self.bias is not None, device="meta")
        return filled(layer, self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (..., in); the output is (..., out)."""
        if x.shape[-1:] != self.shape[1:]:
            raise KernelError(f"input of shape {tuple(x.shape)} does not end in {self.shape[1]}")
        flat = x.reshape(x.shape[:-1].numel(), self.shape[1])
        return super().forward(flat).reshape(*x.shape[:-1], self.shape[0])

    def blocked(self, values: Tensor, bias: Tensor | None, x: Tensor, *, relu: bool) -> Tensor:
        """Output (nb, out, 16) for inputs (nb, in, 16)."""
        return linear_forward(self._pattern, values, bias, x, relu)

    def one_example(self, values: Tensor, bias: Tensor | None, x: Tensor, *, relu: bool) -> Tensor:
        """Output (out,) for the features (in,) of one example."""
        return linear_single(self._pattern, values, bias, x, relu)

    def blocked_input_gradient(self, values: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
        """Gradient by the inputs (nb, in, 16)."""
        return linear_input_gradient(self._pattern, values, gradient)

    def blocked_weight_gradient(
        self, x: Tensor, gradient: Tensor, *, bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Gradient by values (nnz,) and bias (out,)."""
        return linear_weight_gradient(self._pattern, x, gradient, bias)

    def _make_pattern(self, row_pointers: Tensor, columns: Tensor) -> LinearPattern:
        return LinearPattern(row_pointers, columns, self.shape[1])

    def _add_weight_gradient(
        self, total: Tensor, x: Tensor, gradient: Tensor, start: int, stop: int
    ) -> None:
        outputs = gradient[:, start:stop].transpose(0, 1).flatten(1)
        inputs = x.transpose(0, 1).flatten(1)
        total.addmm_(outputs, inputs.t())


class SparseConv2d(SparseLayer):
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

    def __init__(
        self,
        shape: tuple[int, ...],
        indices: Tensor,
        values: Tensor,
        bias: Float[Tensor, " out"] | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        """Hold the connections at sorted flat positions of (out, in / groups, kh, kw)."""
        self.stride: tuple[int, int] = stride
        self.padding: tuple[int, int] = padding
        self.dilation: tuple[int, int] = dilation
        self.groups = groups
        super().__init__(shape, indices, values, bias)

    @classmethod
    def from_dense(cls, layer: nn.Conv2d, mask: Tensor) -> SparseConv2d:
        """Take a dense layer's active weights.

        Raises:
            MaskError: if the mask has another shape than the weight.
            KernelError: if the padding is not of zeros, or not the same on both sides.
        """
        return cls.of(layer, *active(layer.weight, mask))

    @classmethod
    def of(cls, layer: nn.Conv2d, indices: Tensor, values: Tensor) -> SparseConv2d:
        """Take a dense layer's geometry and bias; its weight is not looked at.

        Raises:
            KernelError: if the padding is not of zeros, or not the same on both sides.
        """
        shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        return cls(
            shape,
            indices,
            values,
            layer.bias,
            stride=_pair(layer.stride),
            padding=zero_padding(layer),
            dilation=_pair(layer.dilation),
            groups=layer.groups,
        )

    def to_dense(self) -> nn.Conv2d:
        """The same layer, dense."""
        out, per_group, *kernel = self.shape
        layer = nn.Conv2d(
            per_group * self.groups,
            out,
            (kernel[0], kernel[1]),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=self.bias is not None,
            device="meta",
        )
        return filled(layer, self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (n, channels, h, w); the output is (n, out, oh, ow)."""
        if x.ndim != 4:
            raise KernelError(
                f"input of shape {tuple(x.shape)} is not (n, channels, height, width)"
            )
        return super().forward(x)

    def blocked(self, values: Tensor, bias: Tensor | None, x: Tensor, *, relu: bool) -> Tensor:
        """Output (nb, out, oh, ow, 16) for inputs (nb, in, h, w, 16)."""
        return conv_forward(self._pattern, values, bias, x, relu)

    def blocked_input_gradient(self, values: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
        """Gradient by the inputs (nb, in, h, w, 16)."""
        size = (x.shape[2], x.shape[3])
        return conv_input_gradient(self._pattern, values, gradient, size)

    def blocked_weight_gradient(
        self, x: Tensor, gradient: Tensor, *, bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Gradient by values (nnz,) and bias (out,)."""
        return conv_weight_gradient(self._pattern, x, gradient, bias)

    def _make_pattern(self, row_pointers: Tensor, columns: Tensor) -> ConvPattern:
        return ConvPattern(
            row_pointers,
            columns,
            tuple(self.shape),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def _add_weight_gradient(
        self, total: Tensor, x: Tensor, gradient: Tensor, start: int, stop: int
    ) -> None:
        images = unblock(x, 16 * x.shape[0])
        outputs = unblock(gradient, 16 * x.shape[0])
        rows, columns = self.shape[0] // self.groups, self.shape[1]
        for group in range(start // rows, (stop - 1) // rows + 1) if stop > start else ():
            low, high = max(start, group * rows), min(stop, (group + 1) * rows)
            total[low - start : high - start] += conv2d_weight(
                images[:, group * columns : (group + 1) * columns],
                [high - low, *self.shape[1:]],
                outputs[:, low:high],
                self.stride,  # type: ignore[arg-type]  (pairs are taken, too)
                self.padding,  # type: ignore[arg-type]
                self.dilation,  # type: ignore[arg-type]
            )


def zero_padding(layer: nn.Conv2d) -> tuple[int, int]:
    """Zeros added to both sides in height and width.

    Raises:
        KernelError: if the padding is of another kind.
    """
    if layer.padding_mode != "zeros":
        raise KernelError(
            f"padding_mode={layer.padding_mode!r}: sparse convolutions pad with zeros"
        )
    if isinstance(layer.padding, tuple):
        return _pair(layer.padding)
    if layer.padding == "valid":
        return 0, 0
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(r % 2 for r in reach):
        raise KernelError("padding='same' of an even reach is not the same on both sides")
    return reach[0] // 2, reach[1] // 2


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    height, width = numbers
    return height, width
