"""Parts that several architectures share."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def zero_biases(model: Net) -> Net:
    """Set all biases to zero, so that no run depends on PyTorch's default initialisation."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "bias":
            nn.init.zeros_(parameter)
    return model


def conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias whose output is 1/stride of the input's height and width."""
    return nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)


def pooled(channels: int, classes: int) -> list[nn.Module]:
    """Head of a residual network: the mean over all pixels, then one linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
