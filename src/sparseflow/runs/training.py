"""Carry out one run: start or resume, train, measure, save."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import filelock
import msgspec
import torch

from sparseflow.core.documents import save_document
from sparseflow.core.errors import DivergedError, SparseUnavailable, SpecError, StoreError
from sparseflow.core.files import cannot_write
from sparseflow.core.parallel import Ranks
from sparseflow.core.parameters import named_weights
from sparseflow.data import in_batches
from sparseflow.measure.flow import mean_loss
from sparseflow.runs.build import assemble
from sparseflow.runs.execution import (
    Resolved,
    accelerator,
    check_execution,
    repeatable,
)
from sparseflow.runs.jobs.interrupt import Stop, stoppable
from sparseflow.runs.journal import START, Journal
from sparseflow.runs.progress import Reached, reached
from sparseflow.runs.ranks import check_shares, together
from sparseflow.runs.record import Recorder
from sparseflow.runs.run import Run
from sparseflow.runs.spec import RunSpec, ancestors, parents
from sparseflow.runs.store import Store
from sparseflow.runs.validate import check
from sparseflow.topology import attach
from sparseflow.train import evaluate, fit
from sparseflow.train.checkpoint import (
    load_resume,
    load_state,
    save_resume,
    save_weights,
)

POLL = 0.2
"""Seconds between two looks at a run that another process is at."""

RESTART = "remove resume.safetensors to start this run from the beginning"

Progress = Callable[[Run, int, float], None]


def execute(
    spec: RunSpec,
    store: Store,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Run:
    """Return the finished run of a specification, doing only what is missing.

    Parents come first. A run that was interrupted resumes from its last
    checkpoint and ends bit for bit as if it had not been. SIGINT and SIGTERM
    stop it after the current step, with a checkpoint. Two processes that want
    one run: the second waits and finds it finished.

    In a process group all ranks call this, and train the run together: each
    takes an equal share of every batch, and rank 0 alone measures and writes.
    The number of ranks is not part of the run's identity; a run may go on with
    another one.

    Args:
        spec: what to run.
        store: where.
        device: ``cpu``, ``cuda``, ... It is not part of the run's identity; on a GPU
            deterministic algorithms are used, and no TF32.
        progress: called with (run, steps taken, last test accuracy).

    Raises:
        SpecError: if the specification makes no sense, asks for sparse
            execution on another device than the CPU, or for batches that the
            ranks cannot share equally; nothing is written then. Also if the
            device is not available here.
        SparseUnavailable: if it asks for sparse execution and the compiled core
            is missing; nothing is written then.
        StoreError: if the store is damaged or cannot be written.
        DivergedError: if the loss is not finite; the last checkpoint stays.
        Interrupted: if a signal asked for it.
    """
    check(spec)
    ranks = Ranks.of()
    missing = [each for each in (*ancestors(spec), spec) if not store.run(each).finished]
    check_shares(missing, ranks)
    for each in missing:
        check_execution(each.execution, device)
    with stoppable() as stop, repeatable(device):
        try:
            return _Work(store, device, progress, stop, ranks).finish(spec)
        except RuntimeError:
            if ranks.size > 1:  # a rank that has stopped leaves the others without an answer
                stop.check(f"{spec.recipe}: interrupted while it waited for another rank")
            raise


@dataclass(frozen=True, eq=False)
class _Work:
    """What one call of :func:`execute` has for all the runs that it finishes."""

    store: Store
    device: str
    progress: Progress | None
    stop: Stop
    ranks: Ranks

    def finish(self, spec: RunSpec) -> Run:
        """Return the finished run, its parents made first."""
        run, first = self.store.run(spec), self.ranks.rank == 0
        if self._agreed(run.settled):
            return run
        if first:
            self.store.create(spec)
        for parent in () if self._agreed(run.finished) else parents(spec):
            self.finish(parent)
        with _lock(run, self.stop) if first else nullcontext():
            if not self._agreed(run.finished):
                Training(run, self).run()
            if first:
                run.resume_path.unlink(missing_ok=True)
            self._agreed(True)  # the others wait for what rank 0 writes
        return run

    def _agreed(self, value: bool) -> bool:
        """What rank 0 says, which alone looks at the store."""
        return self.ranks.first(value, self.device)


class Training:
    """One run under way: what it trains with, what it records, and how it goes on.

    start -> (resume) -> run -> save -> finish
    """

    def __init__(self, run: Run, work: _Work) -> None:
        """Build the run as it stands before its first step, and resume it if it was interrupted."""
        self._began = time.monotonic()
        self._run, self._work, self._first = run, work, work.ranks.rank == 0
        self._parts = assemble(run.spec, work.store, work.device, _begun(run, work.device))
        self._journal = Journal(run.path / "metrics.jsonl")
        self._recorder = Recorder(run.spec, self._parts, self._journal)
        self._topology = attach(
            self._parts.model,
            self._parts.optimizer,
            self._parts.masks,
            self._parts.method,
            seed=run.spec.seeds.mask,
            around=self._recorder.around if self._first else None,
        )
        self._start = self._resume()

    def run(self) -> None:
        """Train to the end, and write the result."""
        run, parts, ranks = self._run, self._parts, self._work.ranks
        try:
            fit(
                together(parts.model, ranks),
                parts.loss,
                parts.batches.shard(ranks.rank, ranks.size),
                parts.optimizer,
                steps=run.spec.train.steps,
                start=self._start,
                set_rate=parts.prepare,
                observers=[self._observe],
            )
        except DivergedError as error:
            kept = (
                f"the last checkpoint is that of step {run.kept[-1]}"
                if run.kept
                else "none is kept"
            )
            raise DivergedError(f"{run.label}: {error}; {kept}") from error
        except RuntimeError:
            if ranks.rank > 0:  # rank 0, stopped by the same signal, has left this one waiting
                self._work.stop.check(f"{run.label}: rank {ranks.rank} interrupted")
            raise
        self._topology.detach()
        if self._first:
            self._finish()

    def _observe(self, step: int) -> None:
        stop, recorder = self._work.stop, self._recorder
        # One look at the signal: what saves is what stops.
        asked = self._work.ranks.first(stop.number is not None, self._work.device)
        if self._first:
            if step > self._start or step == 0:
                self._check_finite(step)
                recorder.observe(self._topology, step)
                self._save(step, now=asked)
            if self._work.progress is not None:
                self._work.progress(self._run, step, recorder.accuracy)
        if asked:
            stop.here(f"{self._run.label}: interrupted at step {step}")

    def _check_finite(self, step: int) -> None:
        """Stop before weights that lead nowhere are measured or take a checkpoint's place."""
        measure, train = self._run.spec.measure, self._run.spec.train
        times = (measure.every, measure.evaluate, train.keep, train.resume)
        if step == train.steps or any(step % n == 0 for n in times):
            parts = self._parts
            value = mean_loss(parts.model, parts.loss, parts.probe)
            if not math.isfinite(value):
                raise DivergedError(f"the loss is {value} at step {step}: training stopped")

    def _save(self, step: int, *, now: bool) -> None:
        run, parts, topology, train = self._run, self._parts, self._topology, self._run.spec.train
        if step % train.keep == 0 or step == train.steps:
            save_weights(run.checkpoint_path(step), parts.model, topology.masks, run.id, step)
        if step and (now or step % train.resume == 0):
            self._journal.sync()
            here = Reached(step, self._journal.mark, self._recorder.accuracy, parts.execution)
            extra = msgspec.to_builtins(here)
            save_resume(run.resume_path, parts.model, parts.optimizer, topology, run.id, extra)

    def _resume(self) -> int:
        """Restore the last resume checkpoint; return its step, or 0 for a clean start."""
        run, parts = self._run, self._parts
        if not run.resume_path.is_file():
            if self._first:
                self._journal.rewind(START)
            return 0
        try:
            extra = load_resume(
                run.resume_path, parts.model, parts.optimizer, self._topology, run.id
            )
            there = Reached.read(extra)
            if self._first:
                self._go_on(there)
        except StoreError as error:
            raise StoreError(f"{error}; {RESTART}") from error
        return there.step

    def _go_on(self, there: Reached) -> None:
        """Let the records go on where the checkpoint was written."""
        run = self._run
        self._journal.rewind(there.metrics)
        self._recorder.start_from(load_state(run.checkpoint_path(0), run.id, 0))
        if lost := set(run.expected(there.step)) - set(run.kept):
            raise StoreError(f"{run.path} has lost its checkpoint of step {min(lost)}")
        self._recorder.accuracy = there.accuracy

    def _finish(self) -> None:
        """Write what a run ends with; its result comes last."""
        run = self._run
        save_document(run.path / "environment.json", "environment", run.id, self._environment())
        self._journal.sync()
        result = self._result() | {"metrics": self._journal.mark}
        save_document(run.path / "result.json", "result", run.id, result)

    def _environment(self) -> dict[str, Any]:
        return {
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": self._work.device,
            "accelerator": accelerator(self._work.device),
            "execution": self._parts.execution,
            "threads": torch.get_num_threads(),
            "ranks": self._work.ranks.size,
            "seconds": round(time.monotonic() - self._began, 1),
            "resumed_at": self._start,
        }

    def _result(self) -> dict[str, Any]:
        model, data, masks = self._parts.model, self._parts.dataset, self._topology.masks
        weights = named_weights(model)
        test_accuracy, test_loss = evaluate(model, in_batches(data.test))
        train_accuracy, train_loss = evaluate(model, in_batches(data.train))
        return {
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "train_accuracy": train_accuracy,
            "train_loss": train_loss,
            "active_weights": masks.nnz,
            "other_parameters": sum(p.numel() for n, p in weights.items() if n not in masks),
            "density": masks.density,
            "masks": masks.digest(),
        }


@contextmanager
def _lock(run: Run, stop: Stop) -> Iterator[None]:
    """Be the only process that works at a run, once no other is."""
    lock = filelock.FileLock(run.path / ".lock")
    while not lock.is_locked:
        stop.check(f"{run.label}: interrupted before it began")
        try:
            lock.acquire(timeout=POLL)
        except filelock.Timeout:
            continue
        except OSError as error:
            raise cannot_write(run.path / ".lock", error) from error
    try:
        yield
    finally:
        lock.release()


def _begun(run: Run, device: str) -> Resolved | None:
    """Execution that an interrupted run goes on in; None for a clean start.

    Raises:
        StoreError: if the resume checkpoint is damaged.
        SpecError: if it was sparse, and the device is not the CPU.
        SparseUnavailable: if it was sparse, and the compiled core is missing.
    """
    path = run.resume_path
    if not path.is_file():
        return None
    try:
        begun = reached(run).execution
        check_execution(begun, device)
    except StoreError as error:
        raise StoreError(f"{error}; {RESTART}") from error
    except (SpecError, SparseUnavailable) as error:
        raise type(error)(f"{path} is of a sparse run: {error}; {RESTART}") from error
    return begun
