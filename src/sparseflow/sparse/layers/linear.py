"""Linear layers that hold nothing but their non-zeros."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from sparseflow.core.errors import KernelError
from sparseflow.sparse.kernels.linear import LinearPattern
from sparseflow.sparse.layers.base import Reference, SparseLayer
from sparseflow.sparse.layers.registry import sparse_form


@sparse_form(nn.Linear)
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

    arguments = ("in_features", "out_features", "bias")
    axes = 2
    cost = "linear"
    # From 50 to 99 % sparse, from small to large.
    references = (
        Reference((64, 64), 0.1, (64, 64)),
        Reference((784, 300), 0.05, (64, 784)),
        Reference((256, 256), 0.5, (128, 256)),
        Reference((1024, 1024), 0.02, (32, 1024)),
        Reference((512, 512), 0.2, (1, 512)),
        Reference((1024, 512), 0.1, (64, 1024)),
        Reference((1024, 512), 0.5, (64, 1024)),
    )

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
    def of(cls, layer: nn.Linear, indices: Tensor, values: Tensor) -> SparseLinear:
        """Take a dense layer's sizes and bias; its weight is not looked at."""
        return cls(layer.in_features, layer.out_features, indices, values, layer.bias)

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (..., in); the output is (..., out)."""
        if x.shape[-1:] != self.shape[1:]:
            raise KernelError(f"input must have shape (..., {self.shape[1]}), has {tuple(x.shape)}")
        flat = x.reshape(x.shape[:-1].numel(), self.shape[1])
        return super().forward(flat).reshape(*x.shape[:-1], self.shape[0])

    def _make_pattern(self, row_pointers: Tensor, columns: Tensor) -> LinearPattern:
        return LinearPattern(row_pointers, columns, self.shape[1])
