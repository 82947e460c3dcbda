"""Topology: the pure drop-and-grow, the methods, and ``attach``."""

from sparseflow.topology.attach import Topology, attach
from sparseflow.topology.methods import (
    SET,
    GradualPruning,
    Method,
    RigL,
    RigLInverted,
    Static,
    probe_gradient,
)
from sparseflow.topology.propose import propose
from sparseflow.topology.update import drop_and_grow, prune_to, pruned, regrown
from sparseflow.topology.view import Connections, View

__all__ = [
    "SET",
    "Connections",
    "GradualPruning",
    "Method",
    "RigL",
    "RigLInverted",
    "Static",
    "Topology",
    "View",
    "attach",
    "drop_and_grow",
    "probe_gradient",
    "propose",
    "prune_to",
    "pruned",
    "regrown",
]
