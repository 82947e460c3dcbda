"""Topology: the pure drop-and-grow, the methods, and ``attach``."""

from sparseflow.topology.attach import attach
from sparseflow.topology.bias import UPDATES, Update
from sparseflow.topology.check import served, stores_more
from sparseflow.topology.method import METHODS, Method, Task, register_method
from sparseflow.topology.methods import (
    SET,
    GradualPruning,
    RigL,
    RigLInverted,
    Static,
    probe_gradient,
)
from sparseflow.topology.propose import propose
from sparseflow.topology.topology import Topology
from sparseflow.topology.update import drop_and_grow, prune_to, pruned, regrown
from sparseflow.topology.view import Connections, Layers, View

__all__ = [
    "METHODS",
    "SET",
    "UPDATES",
    "Connections",
    "GradualPruning",
    "Layers",
    "Method",
    "RigL",
    "RigLInverted",
    "Static",
    "Task",
    "Topology",
    "Update",
    "View",
    "attach",
    "drop_and_grow",
    "probe_gradient",
    "propose",
    "prune_to",
    "pruned",
    "register_method",
    "regrown",
    "served",
    "stores_more",
]
