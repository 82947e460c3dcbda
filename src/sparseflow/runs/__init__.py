"""Runs: specification, store, execution, sweeps."""

from sparseflow.runs.audit import Finding, inspect
from sparseflow.runs.execution import check_device
from sparseflow.runs.hashing import identity
from sparseflow.runs.jobs import Executor, Local, Ray
from sparseflow.runs.jobs.graph import Graph, Job, plan
from sparseflow.runs.jobs.sweep import sweep
from sparseflow.runs.override import scaled, with_overrides, with_seeds
from sparseflow.runs.run import Run
from sparseflow.runs.select import matching, remeasure
from sparseflow.runs.spec import Data, Measure, Model, Optimizer, RunSpec, Train, ancestors, parents
from sparseflow.runs.store import Store
from sparseflow.runs.training import execute
from sparseflow.runs.validate import check

__all__ = [
    "Data",
    "Executor",
    "Finding",
    "Graph",
    "Job",
    "Local",
    "Measure",
    "Model",
    "Optimizer",
    "Ray",
    "Run",
    "RunSpec",
    "Store",
    "Train",
    "ancestors",
    "check",
    "check_device",
    "execute",
    "identity",
    "inspect",
    "matching",
    "parents",
    "plan",
    "remeasure",
    "scaled",
    "sweep",
    "with_overrides",
    "with_seeds",
]
