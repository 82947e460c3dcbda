"""From pixels as bytes to normalised inputs of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Normalise:
    """Scale each colour to mean 0 and standard deviation 1 over the training images.

    Attributes:
        mean: mean of each colour, for pixels in [0, 1].
        std: standard deviation of each colour.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, x: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Normalise a batch."""
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (x.float() / 255 - mean) / std
