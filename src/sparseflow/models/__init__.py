"""Architectures by name, with widths that can be shrunk to a parameter budget."""

from sparseflow.models.mnist import LENET5_WIDTHS, MLP_WIDTHS, lenet5, mlp
from sparseflow.models.registry import (
    MODELS,
    Architecture,
    build,
    parameters,
    register_model,
    solve_widths,
)
from sparseflow.models.resnet import cifar_resnet, resnet50, wide_resnet
from sparseflow.models.vgg import vgg16

__all__ = [
    "LENET5_WIDTHS",
    "MLP_WIDTHS",
    "MODELS",
    "Architecture",
    "build",
    "cifar_resnet",
    "lenet5",
    "mlp",
    "parameters",
    "register_model",
    "resnet50",
    "solve_widths",
    "vgg16",
    "wide_resnet",
]
