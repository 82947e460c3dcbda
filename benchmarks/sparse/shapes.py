"""The layers that are timed, and their targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A layer; a linear one has kernel 1 on an image of 1×1.

    Attributes:
        name: name in tables and plots.
        before: input features or channels.
        after: output features or channels.
        kernel: height and width of the kernel; 0 for a linear layer.
        size: height and width of the input image.
        padding: zeros around it.
        floors: least speed-up of the training step by sparsity, one thread, batch 128.
        over_sparseprop: least speed-up over sparseprop.
    """

    name: str
    before: int
    after: int
    kernel: int = 0
    size: int = 1
    padding: int = 0
    floors: Mapping[float, float] = field(default_factory=dict)
    over_sparseprop: float | None = None

    @property
    def linear(self) -> bool:
        """Whether the layer is linear, not a convolution."""
        return not self.kernel

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        kernel = () if self.linear else (self.kernel, self.kernel)
        return (self.after, self.before, *kernel)

    @property
    def out_size(self) -> int:
        """Height and width of the output image."""
        return 1 if self.linear else self.size + 2 * self.padding - self.kernel + 1

    def input(self, batch: int, generator: torch.Generator) -> Tensor:
        """A random batch."""
        image = () if self.linear else (self.size, self.size)
        return torch.randn(batch, self.before, *image, generator=generator)

    def output_gradient(self, batch: int, generator: torch.Generator) -> Tensor:
        """A random gradient with respect to the output."""
        image = () if self.linear else (self.out_size, self.out_size)
        return torch.randn(batch, self.after, *image, generator=generator)

    def step_flops(self, nonzeros: int, batch: int) -> float:
        """Operations on non-zeros in the forward pass and both gradients."""
        return 3 * 2.0 * nonzeros * batch * self.out_size**2

    def topology(self, sparsity: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Row pointers and columns (CSR, int32) of a random topology of exactly this sparsity."""
        rows = self.after
        width = int(torch.Size(self.weight_shape[1:]).numel())
        size = rows * width
        count = max(1, round((1 - sparsity) * size))
        places = torch.randperm(size, generator=generator)[:count].sort().values
        counts = torch.bincount(places // width, minlength=rows)
        pointers = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        return pointers.int(), (places % width).int()


SHAPES = (
    Shape("linear 1024→1024", 1024, 1024, floors={0.5: 1, 0.9: 6, 0.95: 11, 0.98: 24},
          over_sparseprop=2.2),
    Shape("linear 4096→4096", 4096, 4096, floors={0.5: 1, 0.9: 4.5, 0.95: 8.5, 0.98: 17},
          over_sparseprop=1.8),
    Shape("linear 784→300", 784, 300, floors={0.5: 1}),
    Shape("conv 64→64, 3×3, 32×32", 64, 64, 3, 32, 1,
          floors={0.6: 1, 0.9: 4.3, 0.95: 7, 0.98: 11}, over_sparseprop=2.2),
    Shape("conv 256→256, 3×3, 8×8", 256, 256, 3, 8, 1,
          floors={0.6: 1, 0.9: 3.8, 0.95: 6.8, 0.98: 13}, over_sparseprop=2.2),
    Shape("conv 1→6, 5×5, 28×28", 1, 6, 5, 28),
    Shape("conv 6→16, 5×5, 12×12", 6, 16, 5, 12),
)  # fmt: skip
SPARSITIES = (0.0, 0.5, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)
QUICK_SPARSITIES = (0.5, 0.6, 0.9, 0.95, 0.98)
"""Sparsities with a floor."""
RIVALS_FROM = 0.8
"""Sparsity from which on other libraries are timed; below they are slower than dense."""
