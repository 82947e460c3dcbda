"""A Ray cluster: one Ray task for each task, the store on a file system that all machines share."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import platform
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

import torch

from sparseflow.core.errors import SparseflowError
from sparseflow.core.extra import need
from sparseflow.core.files import write_atomic
from sparseflow.runs.executors.base import Ended, Event, Executor, Lost, Task, Told, attempt
from sparseflow.runs.spec import NUMERICS

TELL_EVERY = 5.0
"""Seconds between two reports of a task: 1,000 under way make 200 messages a second."""

LOOK_EVERY = 10.0
"""Seconds between two looks at what the cluster consists of."""


@dataclass(frozen=True)
class _Pass:
    """What a worker must find at its place before it works.

    Attributes:
        root: the store.
        token: a file there, of a name never used before, so that no cached
            listing of a network file system answers for it.
        installation: what results follow from, by :func:`installation`.
        threads: CPU threads that the worker takes.
    """

    root: str
    token: str
    installation: dict[str, str]
    threads: int


@dataclass(frozen=True)
class _Refusal:
    """Why a worker will not work; no other of its machine would."""

    reason: str


class Ray(Executor):
    """Tasks of a Ray cluster that exists already; none is ever started here."""

    def __init__(
        self,
        root: Path,
        *,
        address: str = "auto",
        threads: int = 1,
        gpus: float = 0,
        limit: int | None = None,
        retries: int = 1,
    ) -> None:
        """Remember where the cluster is; the first task connects to it.

        Args:
            root: the store, seen under this path by all machines.
            address: ``host:port`` of the head, ``ray://host:port`` of its client
                server, or ``auto`` for the cluster that this machine is part of.
            threads: CPUs that a task reserves, and CPU threads that it uses.
            gpus: GPUs that a task reserves, a share of one if less than 1.
            limit: tasks under way at most; twice what the cluster carries out
                at a time if None, so that no machine waits for this one.
            retries: how many deaths of its worker or machine a task survives.
        """
        super().__init__(retries)
        self._root, self._address = root.absolute(), address
        self._threads, self._gpus, self._limit = threads, gpus, limit
        self._ray: Any = None
        self._owned = False
        self._places, self._looked = 1, -math.inf
        self._refs: dict[str, Any] = {}
        self._done: SimpleQueue[tuple[str, Future[Any]]] = SimpleQueue()

    def _capacity(self) -> int:
        if self._limit is not None:
            return self._limit
        if self._ray is not None and time.monotonic() - self._looked > LOOK_EVERY:
            self._look()
        return 2 * self._places

    def _start(self, task: Task) -> None:
        if self._ray is None:
            self._connect()
        ref = self._call.remote(self._pass, task, self._board)
        self._refs[task.key] = ref
        ref.future().add_done_callback(lambda done: self._done.put((task.key, done)))

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = need("ray", extra="ray")
        if not ray.is_initialized():
            self._check_address()
            try:
                ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError) as error:
                raise self._unreachable((str(error).splitlines() or [""])[0]) from error
            self._owned = True
        self._ray = ray
        self._look()
        token = f".sweep-{uuid4().hex}"
        write_atomic(self._root / token, token)
        self._pass = _Pass(str(self._root), token, installation(), self._threads)
        self._board = ray.remote(_Board).options(num_cpus=0, max_restarts=-1).remote()
        self._asked: Future[dict[str, Any]] = self._board.take.remote().future()
        self._call = ray.remote(_carry_out).options(
            num_cpus=self._threads, num_gpus=self._gpus, max_retries=0, name="sparseflow"
        )

    def _check_address(self) -> None:
        """Fail at once where nobody listens: Ray itself would try for minutes."""
        host, colon, port = self._address.removeprefix("ray://").rpartition(":")
        if not (colon and port.isdigit()):
            return
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise self._unreachable(str(error)) from error

    def _unreachable(self, reason: str) -> SparseflowError:
        return SparseflowError(
            f"no Ray cluster at {self._address!r}: {reason}; start one with "
            "'ray start --head', or name its head: --address HOST:6379"
        )

    def _look(self) -> None:
        """Count the tasks that the cluster can carry out at a time."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._places = sum(self._fitting(resources) for resources in alive)
        self._looked = time.monotonic()
        if not self._places:
            sizes = ", ".join(f"{r.get('CPU', 0):g} CPUs {r.get('GPU', 0):g} GPUs" for r in alive)
            raise SparseflowError(
                f"a run reserves {self._threads} CPUs and {self._gpus:g} GPUs (--threads, --gpus), "
                f"which no machine of the Ray cluster has: {sizes or 'it has none'}"
            )

    def _fitting(self, resources: dict[str, float]) -> int:
        found = resources.get("CPU", 0) // self._threads
        if self._gpus:
            found = min(found, resources.get("GPU", 0) // self._gpus)
        return int(found)

    def _poll(self, seconds: float) -> Iterator[Event]:
        deadline = seconds
        try:
            while True:
                key, done = self._done.get(timeout=deadline)
                deadline = 0.0
                yield self._outcome(key, done)
        except Empty:
            pass
        if self._asked.done():
            yield from self._news()

    def _outcome(self, key: str, done: Future[Any]) -> Event:
        del self._refs[key]
        errors = self._ray.exceptions
        try:
            found = done.result()
        except errors.RayTaskError as error:  # what a task raises is in its Ended: this is not it
            line = (str(error.cause).splitlines() or [""])[0]
            raise SparseflowError(f"a worker of the Ray cluster cannot work: {line}") from error
        except errors.RayError as error:
            return Lost(key, (str(error).splitlines() or [type(error).__name__])[0])
        if isinstance(found, _Refusal):
            raise SparseflowError(found.reason)
        return found

    def _news(self) -> Iterator[Event]:
        """Yield the latest reports, and ask for the next ones."""
        try:
            latest = self._asked.result()
        except self._ray.exceptions.RayError:
            latest = {}  # the board's machine died: it starts anew, and reports come again
        self._asked = self._board.take.remote().future()
        yield from (Told(key, value) for key, value in latest.items())

    def _stop(self) -> None:
        if self._ray is None:
            return
        for ref in self._refs.values():
            self._ray.cancel(ref, force=True)
        self._ray.kill(self._board)
        if self._owned:
            self._ray.shutdown()
        (self._root / self._pass.token).unlink(missing_ok=True)
        self._refs.clear()
        self._tasks.clear()
        self._ray = None


class _Board:
    """An actor that holds the latest report of each task until it is taken."""

    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}

    def put(self, key: str, value: Any) -> None:
        self._latest[key] = value

    def take(self) -> dict[str, Any]:
        latest, self._latest = self._latest, {}
        return latest


def _carry_out(allowed: _Pass, task: Task, board: Any) -> Ended | _Refusal:
    """Carry a task out in a worker of the cluster."""
    refusal = _refusal(allowed)
    if refusal:
        return _Refusal(refusal)
    torch.set_num_threads(allowed.threads)
    return attempt(task, lambda value: board.put.remote(task.key, value), TELL_EVERY)


def _refusal(allowed: _Pass) -> str:
    """Say why this process must not work on a sweep; empty if it may."""
    root, here = Path(allowed.root), platform.node()
    if not (root / allowed.token).is_file():
        return (
            f"machine {here} does not see the store {root}: it must be on a file system that all "
            "machines of the cluster share, under the same path"
        )
    if not os.access(root, os.W_OK):
        return f"machine {here} cannot write to the store {root}"
    mine = installation()
    differ = [
        f"{k} {mine[k]} there, {v} here" for k, v in allowed.installation.items() if v != mine[k]
    ]
    if differ:
        return f"machine {here} has another installation, so its results may differ: " + "; ".join(
            differ
        )
    return ""


@cache
def installation() -> dict[str, str]:
    """What results follow from: this package's source, its numerics, and torch."""
    package = files("sparseflow")
    sha = hashlib.sha256()
    for path in sorted(Path(str(package)).rglob("*.py")):
        sha.update(path.read_bytes())
    return {
        "sparseflow": f"source {sha.hexdigest()[:12]}",
        "numerics": str(NUMERICS),
        "torch": torch.__version__,
    }
