"""Worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from sparseflow.runs.jobs.executor import Event, Executor, Lost, Task, Told, attempt
from sparseflow.runs.jobs.interrupt import end_with_parent

TELL_EVERY = 0.3
"""Seconds between two reports of a task."""

_spawn = multiprocessing.get_context("spawn")


@dataclass
class _Worker:
    """A process, and the pipe that tasks go out and events come back by.

    Nothing is shared between workers: one that is killed, even while it
    writes, takes no lock with it that another waits for.
    """

    process: BaseProcess
    pipe: Any  # a Connection, on Windows a PipeConnection
    key: str = ""


class Local(Executor):
    """Spawned processes, which live until the executor ends."""

    def __init__(self, workers: int = 1, *, threads: int | None = None, retries: int = 1) -> None:
        """Have at most ``workers`` processes.

        Args:
            workers: processes.
            threads: CPU threads of each; its share of the cores if None.
            retries: how many deaths of its worker a task survives.
        """
        super().__init__(retries)
        self._workers = workers
        self._threads = threads or max(1, (os.cpu_count() or 1) // workers)
        self._idle: list[_Worker] = []
        self._busy: dict[Any, _Worker] = {}

    def _capacity(self) -> int:
        return self._workers

    def _start(self, task: Task) -> None:
        while True:
            worker = self._idle.pop() if self._idle else self._spawn()
            try:
                worker.pipe.send(task)
            except OSError:  # it died while it had nothing to do: another takes its place
                self._bury(worker)
                continue
            worker.key = task.key
            self._busy[worker.pipe] = worker
            return

    def _spawn(self) -> _Worker:
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=_serve, args=(theirs, self._threads), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        return _Worker(process, ours)

    def _poll(self, seconds: float) -> Iterator[Event]:
        ready: list[Any] = wait(list(self._busy), seconds)
        for pipe in ready:
            worker = self._busy[pipe]
            try:
                event: Event = pipe.recv()
            except (EOFError, OSError):
                del self._busy[pipe]
                yield Lost(worker.key, self._bury(worker))
                continue
            if not isinstance(event, Told):
                self._idle.append(self._busy.pop(pipe))
            yield event

    @staticmethod
    def _bury(worker: _Worker) -> str:
        worker.pipe.close()
        worker.process.join()
        code = worker.process.exitcode or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _stop(self) -> None:
        for worker in self._busy.values():
            worker.process.terminate()
        for worker in (*self._busy.values(), *self._idle):
            self._bury(worker)
        self._busy.clear()
        self._idle.clear()
        self._tasks.clear()


def _serve(pipe: Any, threads: int) -> None:
    """Carry out tasks until the pipe ends.

    If the parent is killed, so is this process; a run then resumes from its last
    checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(threads)
    try:
        while True:
            task: Task = pipe.recv()
            key = task.key
            pipe.send(attempt(task, lambda value, key=key: pipe.send(Told(key, value)), TELL_EVERY))
    except (EOFError, OSError):
        return
