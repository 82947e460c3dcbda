"""Runs: specification, store, execution, sweeps."""

from sparseflow.runs.audit import Finding, audit
from sparseflow.runs.execution import execute
from sparseflow.runs.executors import Executor, Local, Ray
from sparseflow.runs.graph import Graph, Job, plan
from sparseflow.runs.override import scaled, with_overrides, with_seeds
from sparseflow.runs.resolve import check_device
from sparseflow.runs.select import matching, remeasure
from sparseflow.runs.spec import RunSpec, ancestors, identity, parents
from sparseflow.runs.store import Run, Store
from sparseflow.runs.sweeping import sweep
from sparseflow.runs.validate import check

__all__ = [
    "Executor",
    "Finding",
    "Graph",
    "Job",
    "Local",
    "Ray",
    "Run",
    "RunSpec",
    "Store",
    "ancestors",
    "audit",
    "check",
    "check_device",
    "execute",
    "identity",
    "matching",
    "parents",
    "plan",
    "remeasure",
    "scaled",
    "sweep",
    "with_overrides",
    "with_seeds",
]
