"""Augmentation of a batch: pure functions of images and uniform random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class CropFlip:
    """Random crop of the padded image and horizontal flip (He et al. 2016, section 4.2).

    Attributes:
        padding: zeros added on each side before the crop back to the original size.
    """

    padding: int = 4

    def __call__(
        self, x: Float[Tensor, "n c h w"], chances: Float[Tensor, "n chances"]
    ) -> Float[Tensor, "n c h w"]:
        """Crop by the first two numbers of each image, and flip by the third."""
        n, channels, height, width = x.shape
        padded = functional.pad(x, (self.padding,) * 4)
        most = 2 * self.padding
        top, left = (chances[:, :2] * (most + 1)).long().clamp(max=most).unbind(1)
        across = torch.arange(width, device=x.device).expand(n, width)
        across = torch.where(chances[:, 2:3] < 0.5, across, across.flip(1))
        rows = top[:, None] + torch.arange(height, device=x.device)
        columns = left[:, None] + across
        # One gather for the whole batch: flat positions of the crop in the padded image.
        places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
        flat = places.reshape(n, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, flat).view_as(x)
