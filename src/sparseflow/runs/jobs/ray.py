"""A Ray cluster: one Ray task for each task, the store on a file system that all machines share."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from sparseflow.core.errors import SparseflowError, first_line
from sparseflow.core.files import write_atomic
from sparseflow.core.optional import need
from sparseflow.runs.jobs.executor import Event, Executor, Lost, Task, Told
from sparseflow.runs.jobs.node import Board, Pass, Refusal, carry_out, installation

LOOK_EVERY = 10.0
"""Seconds between two looks at the machines of the cluster."""


class Ray(Executor):
    """Tasks of a Ray cluster that exists already; none is ever started here."""

    def __init__(
        self,
        root: Path,
        *,
        address: str = "auto",
        threads: int = 1,
        gpus: float = 0.0,
        limit: int | None = None,
        retries: int = 1,
    ) -> None:
        """Remember where the cluster is; the first task connects to it.

        Args:
            root: the store, visible under this path to all machines.
            address: ``host:port`` of the head, ``ray://host:port`` of its client
                server, or ``auto`` for the cluster that this machine is part of.
            threads: CPUs that a task reserves, and CPU threads that it uses.
            gpus: GPUs that a task reserves; less than 1 is a share of one.
            limit: tasks under way at most; if None, twice what the cluster
                carries out at a time, so that no machine waits for this one.
            retries: how many deaths of its worker or machine a task survives.
        """
        super().__init__(retries)
        self._root, self._address = root.absolute(), address
        self._threads, self._gpus, self._limit = threads, gpus, limit
        self._session: _Session | None = None
        self._refs: dict[str, Any] = {}
        self._done: SimpleQueue[tuple[str, Future[Any]]] = SimpleQueue()

    @property
    def _here(self) -> _Session:
        if self._session is None:
            self._session = _Session(self._root, self._address, self._threads, self._gpus)
        return self._session

    def _capacity(self) -> int:
        return 2 * self._here.places() if self._limit is None else self._limit

    def _start(self, task: Task) -> None:
        ref = self._refs[task.key] = self._here.submit(task)
        ref.future().add_done_callback(lambda done: self._done.put((task.key, done)))

    def _poll(self, seconds: float) -> Iterator[Event]:
        try:
            while True:
                key, done = self._done.get(timeout=seconds)
                seconds = 0.0
                del self._refs[key]
                yield self._here.outcome(key, done)
        except Empty:
            yield from (Told(key, value) for key, value in self._here.news().items())

    def _stop(self) -> None:
        if self._session is not None:
            self._session.close(self._refs.values())
        self._session = None
        self._refs.clear()
        self._tasks.clear()


class _Session:
    """A connection to a cluster, and what a sweep has there."""

    def __init__(self, root: Path, address: str, threads: int, gpus: float) -> None:
        self._cores, self._gpus = threads, gpus
        self._ray = need("ray", extra="ray")
        self._looked, self._places = -math.inf, 0
        with ExitStack() as undo:
            if not self._ray.is_initialized():
                self._connect(address)
                undo.callback(self._ray.shutdown)
            self.places()
            token = root / f".sweep-{uuid4().hex}"
            write_atomic(token, "a sweep is under way\n")
            undo.callback(token.unlink, missing_ok=True)
            self._pass = Pass(str(root), token.name, installation(), threads)
            remote = self._ray.remote
            self._board = remote(Board).options(num_cpus=0, max_restarts=-1).remote()
            undo.callback(self._ray.kill, self._board)
            self._asked: Future[dict[str, Any]] = self._board.take.remote().future()
            self._call = remote(carry_out).options(
                num_cpus=threads, num_gpus=gpus, max_retries=0, name="sparseflow"
            )
            self._undo = undo.pop_all()

    def _connect(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            host, colon, port = address.removeprefix("ray://").rpartition(":")
            if colon and port.isdigit():  # where nobody listens, Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            self._ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            raise SparseflowError(
                f"no Ray cluster at {address!r} ({first_line(error)}): start one with "
                "'ray start --head', or give the --address HOST:6379 of its head"
            ) from error

    def places(self) -> int:
        """Tasks that the cluster can carry out at a time, as of the last few seconds.

        Raises:
            SparseflowError: if it cannot carry out one.
        """
        if time.monotonic() - self._looked > LOOK_EVERY:
            machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._looked, self._places = time.monotonic(), sum(map(self._fitting, machines))
            if not self._places:
                has = [f"{m.get('CPU', 0):g} CPUs and {m.get('GPU', 0):g} GPUs" for m in machines]
                raise SparseflowError(
                    f"a run reserves {self._cores} CPUs (--threads) and {self._gpus:g} GPUs "
                    f"(--gpus), which no machine of the cluster has: {'; '.join(has) or 'none'}"
                )
        return self._places

    def _fitting(self, machine: dict[str, float]) -> int:
        fitting = machine.get("CPU", 0) // self._cores
        return int(min(fitting, machine.get("GPU", 0) // self._gpus) if self._gpus else fitting)

    def submit(self, task: Task) -> Any:
        """Hand a task to the cluster; return the reference of what it will return."""
        return self._call.remote(self._pass, task, self._board)

    def outcome(self, key: str, done: Future[Any]) -> Event:
        """Read how a task ended.

        Raises:
            SparseflowError: if its worker refused, or could not even begin.
        """
        errors = self._ray.exceptions
        try:
            found = done.result()
        except errors.RayTaskError as error:  # what a task raises is in its Ended: this is not it
            raise SparseflowError(
                f"a worker of the Ray cluster cannot work: {first_line(error.cause)}"
            ) from error
        except errors.RayError as error:
            return Lost(key, first_line(error))
        if isinstance(found, Refusal):
            raise SparseflowError(found.reason)
        return found

    def news(self) -> dict[str, Any]:
        """Reports since the last time, if they are there; ask for the next ones."""
        if not self._asked.done():
            return {}
        error = self._asked.exception()  # the board's machine died: it starts again on another
        latest = {} if error else self._asked.result()
        self._asked = self._board.take.remote().future()
        return latest

    def close(self, refs: Any) -> None:
        """Stop tasks, and leave nothing behind."""
        for ref in refs:
            self._ray.cancel(ref, force=True)
        self._undo.close()
