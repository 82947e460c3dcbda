"""Carry out one run: build, resume, train, measure, store."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
from sparseflow.masks import Masks
from sparseflow.measure.flow import mean_loss
from sparseflow.runs.build import Assembly, assemble
from sparseflow.runs.interrupt import Stop, stoppable
from sparseflow.runs.journal import Journal, Mark
from sparseflow.runs.ranks import check_shares, together
from sparseflow.runs.reached import Reached, reached
from sparseflow.runs.record import Recorder
from sparseflow.runs.resolve import Resolved, check_execution
from sparseflow.runs.spec import RunSpec, ancestors, parents
from sparseflow.runs.store import Run, Store
from sparseflow.runs.validate import check
from sparseflow.topology import Topology, attach
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
    stop it after the step at hand, with a checkpoint. Two processes that want
    one run: the second waits and finds it finished.

    In a process group all ranks call this, and train the run together: each
    takes an equal share of every batch, and rank 0 alone measures and writes.
    The number of ranks is no part of the run's identity; a run may go on with
    another one.

    Args:
        spec: what to run.
        store: where.
        device: ``cpu``, ``cuda``, ...
        progress: called with (run, steps taken, last test accuracy).

    Raises:
        SpecError: if the specification makes no sense, asks for sparse
            execution on another device than the CPU, or for batches that the
            ranks cannot share equally; nothing is written then.
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
    with stoppable() as stop:
        try:
            return _execute(spec, store, device, progress, stop, ranks)
        except RuntimeError:
            if ranks.size > 1:  # a rank that has stopped leaves the others without an answer
                stop.check(f"{spec.recipe}: interrupted while it waited for another rank")
            raise


def _execute(
    spec: RunSpec,
    store: Store,
    device: str,
    progress: Progress | None,
    stop: Stop,
    ranks: Ranks,
) -> Run:
    run = store.run(spec)
    if ranks.first(run.settled, device):
        return run
    if ranks.rank == 0:
        store.create(spec)
    for parent in () if ranks.first(run.finished, device) else parents(spec):
        _execute(parent, store, device, progress, stop, ranks)
    with _lock(run, stop) if ranks.rank == 0 else nullcontext():
        if not ranks.first(run.finished, device):
            _train(run, store, device, progress, stop, ranks)
        if ranks.rank == 0:
            run.resume_path.unlink(missing_ok=True)
        ranks.first(True, device)  # the others wait for what rank 0 writes
    return run


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


def _train(
    run: Run,
    store: Store,
    device: str,
    progress: Progress | None,
    stop: Stop,
    ranks: Ranks,
) -> None:
    began = time.monotonic()
    spec, parts = run.spec, assemble(run.spec, store, device, _begun(run, device))
    journal = Journal(run.path / "metrics.jsonl")
    recorder = Recorder(spec, parts, journal)
    topology = attach(
        parts.model,
        parts.optimizer,
        parts.masks,
        parts.method,
        seed=spec.seeds.mask,
        around=recorder.around if ranks.rank == 0 else None,
    )
    start = _resume(run, parts, topology, recorder, journal, ranks)

    def observe(step: int) -> None:
        asked = ranks.first(stop.number is not None, device)  # one look: what saves is what stops
        if ranks.rank == 0:
            if step > start or step == 0:
                _check_finite(parts, spec, step)
                recorder.observe(topology, step)
                _save(run, parts, topology, recorder, journal, step, now=asked)
            if progress is not None:
                progress(run, step, recorder.accuracy)
        if asked:
            stop.here(f"{run.label}: interrupted at step {step}")

    try:
        fit(
            together(parts.model, ranks),
            parts.loss,
            parts.batches.shard(ranks.rank, ranks.size),
            parts.optimizer,
            steps=spec.train.steps,
            start=start,
            set_rate=parts.prepare,
            observers=[observe],
        )
    except DivergedError as error:
        kept = f"the last checkpoint is that of step {run.kept[-1]}" if run.kept else "none is kept"
        raise DivergedError(f"{run.label}: {error}; {kept}") from error
    except RuntimeError:
        if ranks.rank > 0:  # rank 0, stopped by the same signal, has left this one waiting
            stop.check(f"{run.label}: rank {ranks.rank} interrupted")
        raise
    topology.detach()
    if ranks.rank == 0:
        facts = {
            "ranks": ranks.size,
            "seconds": round(time.monotonic() - began, 1),
            "resumed_at": start,
        }
        _finish(run, parts, topology.masks, journal, _environment(parts, device) | facts)


def _finish(
    run: Run, parts: Assembly, masks: Masks, journal: Journal, environment: dict[str, Any]
) -> None:
    """Write what a run ends with; its result comes last."""
    save_document(run.path / "environment.json", "environment", run.id, environment)
    journal.sync()
    result = _result(parts, masks) | {"metrics": journal.mark}
    save_document(run.path / "result.json", "result", run.id, result)


def _is_due(spec: RunSpec, step: int) -> bool:
    """Say whether anything is measured or saved after this step."""
    times = (spec.measure.every, spec.measure.evaluate, spec.train.keep, spec.train.resume)
    return step == spec.train.steps or any(step % n == 0 for n in times)


def _check_finite(parts: Assembly, spec: RunSpec, step: int) -> None:
    """Stop before weights that lead nowhere are measured or take a checkpoint's place."""
    if _is_due(spec, step):
        value = mean_loss(parts.model, parts.loss, parts.probe)
        if not math.isfinite(value):
            raise DivergedError(f"the loss is {value} at step {step}: training stopped")


def _save(
    run: Run,
    parts: Assembly,
    topology: Topology,
    recorder: Recorder,
    journal: Journal,
    step: int,
    *,
    now: bool,
) -> None:
    if step % run.spec.train.keep == 0 or step == run.spec.train.steps:
        save_weights(run.checkpoint_path(step), parts.model, topology.masks, run.id, step)
    if step and (now or step % run.spec.train.resume == 0):
        journal.sync()
        here = Reached(step, journal.mark, recorder.accuracy, parts.execution)
        extra = msgspec.to_builtins(here)
        save_resume(run.resume_path, parts.model, parts.optimizer, topology, run.id, extra)


def _environment(parts: Assembly, device: str) -> dict[str, Any]:
    return {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device,
        "execution": parts.execution,
        "threads": torch.get_num_threads(),
    }


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


def _resume(
    run: Run,
    parts: Assembly,
    topology: Topology,
    recorder: Recorder,
    journal: Journal,
    ranks: Ranks,
) -> int:
    """Restore the last resume checkpoint; return its step, or 0 for a clean start."""
    path = run.resume_path
    if not path.is_file():
        if ranks.rank == 0:
            journal.rewind(Mark(0, None))
        return 0
    try:
        extra = load_resume(path, parts.model, parts.optimizer, topology, run.id)
        there = Reached.read(extra)
        if ranks.rank == 0:
            _go_on(run, recorder, journal, there)
    except StoreError as error:
        raise StoreError(f"{error}; {RESTART}") from error
    return there.step


def _go_on(run: Run, recorder: Recorder, journal: Journal, there: Reached) -> None:
    """Let the records go on where the checkpoint was written."""
    journal.rewind(there.mark)
    recorder.start_from(load_state(run.checkpoint_path(0), run.id, 0))
    if lost := set(run.expected(there.step)) - set(run.kept):
        raise StoreError(f"{run.path} has lost its checkpoint of step {min(lost)}")
    recorder.accuracy = there.accuracy


def _result(parts: Assembly, masks: Masks) -> dict[str, Any]:
    data, weights = parts.dataset, named_weights(parts.model)
    test_accuracy, test_loss = evaluate(parts.model, in_batches(data.test))
    train_accuracy, train_loss = evaluate(parts.model, in_batches(data.train))
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
