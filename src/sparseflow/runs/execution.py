"""Carry out one run: build, resume, train, measure, store."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from typing import Any

import filelock
import torch

from sparseflow.core.errors import StoreError
from sparseflow.core.files import write_atomic
from sparseflow.masks import Masks
from sparseflow.models import parameters
from sparseflow.runs.build import Assembly, assemble
from sparseflow.runs.record import Recorder
from sparseflow.runs.spec import RunSpec, parents
from sparseflow.runs.store import Run, Store
from sparseflow.runs.validate import check
from sparseflow.topology import Topology, attach
from sparseflow.train import evaluate, fit, set_rate
from sparseflow.train.checkpoint import load_resume, load_weights, save_resume, save_weights

RESUME_EVERY = 500
"""Steps between the checkpoints that an interrupted run resumes from."""

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

    Args:
        spec: what to run.
        store: where.
        device: ``cpu``, ``cuda``, ...
        progress: called with (run, steps taken, last test accuracy).

    Raises:
        SpecError: if the specification makes no sense.
        StoreError: if the store is damaged or cannot be written.
        DivergedError: if the loss is not finite; the last checkpoint stays.
    """
    check(spec)
    run = store.create(spec)
    if run.finished:
        return run
    for parent in parents(spec):
        execute(parent, store, device=device, progress=progress)
    with filelock.FileLock(run.path / ".lock"):
        if not run.finished:
            _train(run, store, device, progress)
    return run


def _train(run: Run, store: Store, device: str, progress: Progress | None) -> None:
    began = time.monotonic()
    spec, parts = run.spec, assemble(run.spec, store, device)
    recorder = Recorder(spec, parts, run.path / "metrics.jsonl")
    topology = attach(
        parts.model,
        parts.optimizer,
        parts.masks,
        parts.method,
        seed=spec.seeds.mask,
        around=recorder.around,
    )
    start = _resume(run, parts, topology, recorder)

    def observe(step: int) -> None:
        if step > start or step == start == 0:
            recorder.observe(topology, step)
            if step % spec.train.keep == 0 or step == spec.train.steps:
                save_weights(run.checkpoint_path(step), parts.model, topology.masks, run.id, step)
            if step % RESUME_EVERY == 0 and step:
                extra = {"step": step, "metrics": recorder.size, "accuracy": recorder.accuracy}
                save_resume(
                    run.path / "resume.safetensors",
                    parts.model, parts.optimizer, topology, run.id, extra,
                )  # fmt: skip
        if progress is not None:
            progress(run, step, recorder.accuracy)

    inner = spec.optimizer.momentum if spec.optimizer.inner_momentum else None
    fit(
        parts.model,
        parts.loss,
        parts.batches,
        parts.optimizer,
        steps=spec.train.steps,
        start=start,
        set_rate=lambda step: set_rate(parts.optimizer, parts.rate, step, inner_momentum=inner),
        observers=[observe],
    )
    topology.detach()
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device,
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - began, 1),
        "resumed_at": start,
    }
    write_atomic(run.path / "environment.json", json.dumps(environment, indent=1) + "\n")
    result = _result(parts, topology.masks)
    write_atomic(run.path / "result.json", json.dumps(result, indent=1) + "\n")
    (run.path / "resume.safetensors").unlink(missing_ok=True)


def _resume(run: Run, parts: Assembly, topology: Topology, recorder: Recorder) -> int:
    """Restore the last resume checkpoint; return its step, or 0 for a clean start."""
    path = run.path / "resume.safetensors"
    if not path.is_file():
        recorder.rewind(0)
        return 0
    extra = load_resume(path, parts.model, parts.optimizer, topology, run.id)
    if recorder.size < extra["metrics"]:
        raise StoreError(
            f"{run.path}: metrics.jsonl is shorter than its checkpoint: remove the run"
        )
    recorder.rewind(extra["metrics"])
    recorder.start_from(load_weights(run.checkpoint_path(0), run.id)[0])
    recorder.accuracy = extra["accuracy"]
    return int(extra["step"])


def _result(parts: Assembly, masks: Masks) -> dict[str, Any]:
    data = parts.dataset
    test_accuracy, test_loss = evaluate(parts.model, data.test_x, data.test_y)
    train_accuracy, train_loss = evaluate(parts.model, data.train_x, data.train_y)
    return {
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        "active_weights": masks.nnz,
        "other_parameters": parameters(parts.model) - masks.size,
        "density": masks.density,
        "masks": masks.digest(),
    }
