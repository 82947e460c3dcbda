"""The paper's MNIST runs, with the settings of the authors' code."""

from __future__ import annotations

from sparseflow.recipes.family import SPARSITIES, Family
from sparseflow.runs.spec import Model, Optimizer, SetMethod

LENET5 = Family(
    "lenet5-mnist",
    Model("lenet5"),
    0.05,
    Optimizer(),
    SetMethod(every=100),
    small=(3, 3, 27, 20),
    sparsities=SPARSITIES,
    headline="Gradient flow in a sparse LeNet5 on MNIST",
)
MLP = Family(
    "mlp-mnist",
    Model("mlp"),
    0.02,
    Optimizer(lr=0.2, weight_decay=2e-4),
    SetMethod(every=500),
    small=(8, 8),
    sparsities=SPARSITIES,
    headline="Gradient flow in a sparse perceptron on MNIST",
)
