"""The paper's networks for MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from sparseflow.models.parts import zero_biases

LENET5_WIDTHS = (6, 16, 120, 84)
MLP_WIDTHS = (300, 100)


def lenet5(widths: Sequence[int] = LENET5_WIDTHS) -> nn.Sequential:
    """LeNet5 of the paper: two valid 5×5 convolutions, ReLU, max-pool, three dense layers.

    Input (n, 1, 28, 28), output (n, 10). Biases are zero; kernels have
    PyTorch's default initialisation, which :func:`sparseflow.initialise` replaces.
    """
    first, second, third, fourth = widths
    return zero_biases(
        nn.Sequential(
            nn.Conv2d(1, first, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * 16, third),
            nn.ReLU(),
            nn.Linear(third, fourth),
            nn.ReLU(),
            nn.Linear(fourth, 10),
        )
    )


def mlp(widths: Sequence[int] = MLP_WIDTHS) -> nn.Sequential:
    """LeNet-300-100 of the paper: dense layers with ReLU on flattened 28×28 images."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise([784, *widths]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return zero_biases(nn.Sequential(*layers, nn.Linear(widths[-1], 10)))
