"""What happens on the machines of a Ray cluster: a look around, then the task."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sparseflow.core.errors import SparseUnavailable
from sparseflow.runs.hashing import NUMERICS
from sparseflow.runs.jobs.executor import Ended, Lost, Task, attempt
from sparseflow.sparse.kernels.library import core

TELL_EVERY = 5.0
"""Seconds between two reports of a task: 1,000 under way make 200 messages a second."""

PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Pass:
    """What a worker must find at its place before it works.

    Attributes:
        root: the store.
        token: a file there, of a name never used before, so that nothing that a
            network file system has cached answers for it.
        installation: of the process that the sweep belongs to.
        threads: CPU threads that the worker takes.
    """

    root: str
    token: str
    installation: dict[str, str]
    threads: int


@dataclass(frozen=True)
class Refusal:
    """Why a worker does not work; no other on its machine would."""

    reason: str


class Board:
    """An actor that holds the latest report of each task until it is taken."""

    def __init__(self) -> None:
        """Begin empty."""
        self._latest: dict[str, Any] = {}

    def put(self, key: str, value: Any) -> None:
        """Take the place of what the task reported before."""
        self._latest[key] = value

    def take(self) -> dict[str, Any]:
        """Return what is new since the last time."""
        latest, self._latest = self._latest, {}
        return latest


def carry_out(allowed: Pass, task: Task, board: Any) -> Ended | Lost | Refusal:
    """Carry a task out in this worker, if it may."""
    reason = refusal(allowed)
    if reason:
        return Refusal(reason)
    torch.set_num_threads(allowed.threads)
    return attempt(task, lambda value: board.put.remote(task.key, value), TELL_EVERY)


def refusal(allowed: Pass) -> str:
    """Say why this process must not work on a sweep; empty if it may.

    Every task asks again: a file system may be gone since the last one, and a
    worker that goes on without it makes all runs again, where nobody sees them.
    """
    root, here, mine = Path(allowed.root), platform.node(), installation()
    if not (root / allowed.token).is_file():
        return (
            f"machine {here} does not see the store {root} of this sweep: it must be on a file "
            "system that all machines share, under the same path"
        )
    if not os.access(root, os.W_OK):
        return f"machine {here} cannot write to the store {root}"
    other = [
        f"{name} {mine[name]}, not {v}"
        for name, v in allowed.installation.items()
        if v != mine[name]
    ]
    if other:
        return (
            f"machine {here} has {' and '.join(other)}: results may differ; install the same there"
        )
    return ""


@cache
def installation() -> dict[str, str]:
    """What results follow from: this package's source, whether its core works, and torch."""
    sha = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        sha.update(path.read_bytes())
    return {
        "sparseflow of source": sha.hexdigest()[:12],
        "compiled core": _core(),
        "numerics": str(NUMERICS),
        "torch": torch.__version__,
    }


def _core() -> str:
    try:
        core()
    except SparseUnavailable:
        return "unusable"
    return "usable"
