"""Runs: specification, store, execution, sweeps."""

from sparseflow.runs.check import check
from sparseflow.runs.execute import execute
from sparseflow.runs.override import scaled, with_overrides, with_seeds
from sparseflow.runs.spec import RunSpec, ancestors, identity, parents
from sparseflow.runs.store import Run, Store
from sparseflow.runs.sweep import Job, plan, sweep

__all__ = [
    "Job",
    "Run",
    "RunSpec",
    "Store",
    "ancestors",
    "check",
    "execute",
    "identity",
    "parents",
    "plan",
    "scaled",
    "sweep",
    "with_overrides",
    "with_seeds",
]
