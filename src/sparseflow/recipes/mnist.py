"""The paper's MNIST runs, with the settings of the authors' code."""

from __future__ import annotations

from sparseflow.core.schedules import every, lr_proportional
from sparseflow.recipes.family import FAMILIES, SPARSITIES, Family
from sparseflow.runs.spec import Model, Optimizer
from sparseflow.topology import RigL

LENET5 = Family(
    "lenet5-mnist",
    Model("lenet5"),
    0.05,
    Optimizer(),
    RigL(every(100), lr_proportional(0.3), "probe"),
    small=(3, 3, 27, 20),
    sparsities=SPARSITIES,
    headline="Gradient flow in a sparse LeNet5 on MNIST",
)
MLP = Family(
    "mlp-mnist",
    Model("mlp"),
    0.02,
    Optimizer(lr=0.2, weight_decay=2e-4),
    RigL(every(500), lr_proportional(0.3), "probe"),
    small=(8, 8),
    sparsities=SPARSITIES,
    headline="Gradient flow in a sparse perceptron on MNIST",
)
for _family in (LENET5, MLP):
    FAMILIES.add(_family.name, _family, Family)
