"""Train sparse networks and measure their gradient flow.

The system of "Gradient Flow in Sparse Neural Networks and How Lottery Tickets
Win" (Evci, Ioannou, Keskin, Dauphin, AAAI 2022) as a library on PyTorch.
"""

from sparseflow.core.errors import SparseflowError
from sparseflow.core.functional import Loss
from sparseflow.core.parameters import Layer, maskable
from sparseflow.core.schedules import Moment, constant, cosine, every, lr_proportional
from sparseflow.init import Init, initialise, sparsify
from sparseflow.masks import Masks, allocate, churn, full_masks, make_masks, shuffle_masks
from sparseflow.measure import (
    Decrease,
    Distance,
    Flow,
    Signal,
    distance,
    gradient_flow,
    signal,
    step_decrease,
)
from sparseflow.topology import (
    SET,
    GradualPruning,
    Method,
    RigL,
    RigLInverted,
    Static,
    Topology,
    View,
    attach,
    drop_and_grow,
    probe_gradient,
    propose,
)
from sparseflow.train import cross_entropy, fit

__version__ = "0.1.0"

__all__ = [
    "SET",
    "Decrease",
    "Distance",
    "Flow",
    "GradualPruning",
    "Init",
    "Layer",
    "Loss",
    "Masks",
    "Method",
    "Moment",
    "RigL",
    "RigLInverted",
    "Signal",
    "SparseflowError",
    "Static",
    "Topology",
    "View",
    "allocate",
    "attach",
    "churn",
    "constant",
    "cosine",
    "cross_entropy",
    "distance",
    "drop_and_grow",
    "every",
    "fit",
    "full_masks",
    "gradient_flow",
    "initialise",
    "lr_proportional",
    "make_masks",
    "maskable",
    "probe_gradient",
    "propose",
    "shuffle_masks",
    "signal",
    "sparsify",
    "step_decrease",
]
