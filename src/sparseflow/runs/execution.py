"""Carry out one run: build, resume, train, measure, store."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import filelock
import torch

from sparseflow.core.errors import DivergedError, SparseUnavailable, SpecError, StoreError
from sparseflow.core.files import write_atomic
from sparseflow.core.functional import split
from sparseflow.core.parallel import Ranks
from sparseflow.core.parameters import named_weights
from sparseflow.data import in_batches
from sparseflow.masks import Masks
from sparseflow.measure.flow import DEFAULT_CHUNK, mean_loss
from sparseflow.runs.build import Assembly, assemble
from sparseflow.runs.ranks import check_shares, together
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
    resume_extra,
    save_resume,
    save_weights,
)

RESUME_EVERY = 500
"""Steps between the checkpoints that an interrupted run resumes from."""

RESTART = "remove it to start this run from the beginning"

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
    checkpoint and ends bit for bit as if it had not been. Two processes that
    want one run: the second waits and finds it finished.

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
    """
    check(spec)
    run, ranks = store.run(spec), Ranks.of()
    if ranks.first(run.finished, device):
        return run
    missing = [each for each in (*ancestors(spec), spec) if not store.run(each).finished]
    check_shares(missing, ranks)
    for each in missing:
        check_execution(each.execution, device)
    if ranks.rank == 0:
        store.create(spec)
    for parent in parents(spec):
        execute(parent, store, device=device, progress=progress)
    with filelock.FileLock(run.path / ".lock") if ranks.rank == 0 else nullcontext():
        if not ranks.first(run.finished, device):
            _train(run, store, device, progress, ranks)
        ranks.first(True, device)  # the others wait for what rank 0 writes
    return run


def _train(run: Run, store: Store, device: str, progress: Progress | None, ranks: Ranks) -> None:
    began = time.monotonic()
    spec, parts = run.spec, assemble(run.spec, store, device, _begun(run, device))
    recorder = Recorder(spec, parts, run.path / "metrics.jsonl")
    topology = attach(
        parts.model,
        parts.optimizer,
        parts.masks,
        parts.method,
        seed=spec.seeds.mask,
        around=recorder.around if ranks.rank == 0 else None,
    )
    start = _resume(run, parts, topology, recorder, ranks)

    def observe(step: int) -> None:
        if step > start or step == 0:
            _check_finite(parts, spec, step)
            recorder.observe(topology, step)
            _save(run, parts, topology, recorder, step)
        if progress is not None:
            progress(run, step, recorder.accuracy)

    try:
        fit(
            together(parts.model, ranks),
            parts.loss,
            parts.batches.shard(ranks.rank, ranks.size),
            parts.optimizer,
            steps=spec.train.steps,
            start=start,
            set_rate=parts.set_rate,
            observers=[observe] if ranks.rank == 0 else [],
        )
    except DivergedError as error:
        kept = f"the last checkpoint is that of step {run.kept[-1]}" if run.kept else "none is kept"
        raise DivergedError(f"{run.label}: {error}; {kept}") from error
    topology.detach()
    if ranks.rank == 0:
        facts = {
            "ranks": ranks.size,
            "seconds": round(time.monotonic() - began, 1),
            "resumed_at": start,
        }
        _finish(run, parts, topology.masks, _environment(parts, device) | facts)


def _finish(run: Run, parts: Assembly, masks: Masks, environment: dict[str, Any]) -> None:
    write_atomic(run.path / "environment.json", json.dumps(environment, indent=1) + "\n")
    result = _result(parts, masks)
    write_atomic(run.path / "result.json", json.dumps(result, indent=1) + "\n")
    (run.path / "resume.safetensors").unlink(missing_ok=True)


def _is_due(spec: RunSpec, step: int) -> bool:
    """Say whether anything is measured or saved after this step."""
    times = (spec.measure.every, spec.measure.evaluate, spec.train.keep, RESUME_EVERY)
    return step == spec.train.steps or any(step % n == 0 for n in times)


def _check_finite(parts: Assembly, spec: RunSpec, step: int) -> None:
    """Stop before weights that lead nowhere are measured or take a checkpoint's place."""
    if _is_due(spec, step):
        value = mean_loss(parts.model, parts.loss, split(parts.probe, DEFAULT_CHUNK))
        if not math.isfinite(value):
            raise DivergedError(f"the loss is {value} at step {step}: training stopped")


def _save(run: Run, parts: Assembly, topology: Topology, recorder: Recorder, step: int) -> None:
    if step % run.spec.train.keep == 0 or step == run.spec.train.steps:
        save_weights(run.checkpoint_path(step), parts.model, topology.masks, run.id, step)
    if step % RESUME_EVERY == 0 and step:
        extra = {
            "step": step,
            "metrics": recorder.size,
            "accuracy": recorder.accuracy,
            "execution": parts.execution,
        }
        path = run.path / "resume.safetensors"
        save_resume(path, parts.model, parts.optimizer, topology, run.id, extra)


def _environment(parts: Assembly, device: str) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
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
    path = run.path / "resume.safetensors"
    if not path.is_file():
        return None
    try:
        begun = resume_extra(path, run.id).get("execution", "dense")
        check_execution(begun, device)
    except StoreError as error:
        raise StoreError(f"{error}; {RESTART}") from error
    except (SpecError, SparseUnavailable) as error:
        raise type(error)(f"{path} is of a sparse run: {error}; {RESTART}") from error
    return begun


def _resume(run: Run, parts: Assembly, topology: Topology, recorder: Recorder, ranks: Ranks) -> int:
    """Restore the last resume checkpoint; return its step, or 0 for a clean start."""
    path = run.path / "resume.safetensors"
    if not path.is_file():
        if ranks.rank == 0:
            recorder.rewind(0)
        return 0
    try:
        extra = load_resume(path, parts.model, parts.optimizer, topology, run.id)
    except StoreError as error:
        raise StoreError(f"{error}; {RESTART}") from error
    if ranks.rank == 0:
        _go_on(run, recorder, extra)
    return int(extra["step"])


def _go_on(run: Run, recorder: Recorder, extra: dict[str, Any]) -> None:
    """Let the records go on where the checkpoint was written."""
    if recorder.size < extra["metrics"]:
        raise StoreError(
            f"{run.path}: metrics.jsonl is shorter than its checkpoint: remove the run"
        )
    recorder.rewind(extra["metrics"])
    recorder.start_from(load_state(run.checkpoint_path(0), run.id))
    recorder.accuracy = extra["accuracy"]


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
