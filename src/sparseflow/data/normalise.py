"""From pixels as bytes to normalised inputs of a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
        return (x.float() / 255 - _colours(self.mean, x.device)) / _colours(self.std, x.device)


@lru_cache(maxsize=32)
def _colours(values: tuple[float, float, float], device: torch.device) -> Float[Tensor, "3 1 1"]:
    """One number a colour; made once, since a GPU is waited for while it takes them."""
    return torch.tensor(values, device=device).view(3, 1, 1)
