"""Carry out studies, each once: its result is kept in the store under its hash."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import msgspec
import torch

from sparseflow.core.errors import SparseflowError, StoreError
from sparseflow.core.files import write_atomic
from sparseflow.runs import Store
from sparseflow.studies.agreement import agreement
from sparseflow.studies.curvature import spectrum, updates
from sparseflow.studies.figures import Figures
from sparseflow.studies.geometry import all_distances, line, plane_through
from sparseflow.studies.spec import (
    AgreementStudy,
    DistanceStudy,
    LineStudy,
    PlaneStudy,
    SpectrumStudy,
    Study,
    UpdateStudy,
    key,
    points_of,
)

FOLDER = "studies"
"""Beside the runs in the store."""


class _Kept(msgspec.Struct, frozen=True):
    study: Study
    found: Figures
    seconds: float


def carry_out(study: Study, store: Store) -> Figures:
    """Return what a study finds, from the store if it was made before.

    Raises:
        StoreError: if a run or checkpoint is missing or damaged, or the runs
            cannot be compared.
        MeasureError: if the measurement has no meaning or did not converge.
    """
    kept = _kept(study, store)
    return _relabelled(kept.found, kept.study, study)


def seconds(study: Study, store: Store) -> float:
    """Wall time that a study took when it was made."""
    return _kept(study, store).seconds


def carry_out_all(
    studies: Sequence[Study],
    store: Store,
    *,
    workers: int = 1,
    threads: int = 1,
    changed: Callable[[int], None] = lambda done: None,
) -> list[Figures]:
    """Carry out many studies in worker processes; those made before are read.

    Args:
        studies: what to measure.
        store: where the runs are.
        workers: processes.
        threads: CPU threads of each.
        changed: called with the number of studies done.

    Returns:
        What each found, in order.

    Raises:
        SparseflowError: once all others are done, if some failed.
    """
    context = multiprocessing.get_context("spawn")
    found: dict[int, Figures] = {}
    failed: dict[int, str] = {}
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool:
        tasks = {pool.submit(_work, s, str(store.root)): i for i, s in enumerate(studies)}
        try:
            for task in as_completed(tasks):
                try:
                    found[tasks[task]] = task.result()
                except Exception as error:  # one study's trouble is not the others'
                    failed[tasks[task]] = str(error) or type(error).__name__
                changed(len(found) + len(failed))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        each = "; ".join(f"{_named(studies[i])}: {error}" for i, error in failed.items())
        raise SparseflowError(f"{len(failed)} of {len(studies)} studies failed: {each}")
    return [found[i] for i in range(len(studies))]


def _named(study: Study) -> str:
    kind = str(type(study).__struct_config__.tag)
    return f"{kind} of {', '.join(point.label or point.run for point in points_of(study)[:3])}"


def _kept(study: Study, store: Store) -> _Kept:
    path = store.root / FOLDER / f"{key(study)}.json"
    if path.is_file():
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Kept)
        except msgspec.DecodeError as error:
            raise StoreError(f"study {path} is damaged: {error}; remove it") from error
    began = time.monotonic()
    kept = _Kept(study, _measure(study, store), round(time.monotonic() - began, 1))
    write_atomic(path, msgspec.json.encode(kept))
    return kept


def _relabelled(found: Figures, made: Study, asked: Study) -> Figures:
    """Give what was found the labels asked for: one run may have two names."""
    pairs = zip(points_of(made), points_of(asked), strict=True)
    names = {old.label: new.label for old, new in pairs if old.label != new.label}

    def renamed(part: Any, under: str = "") -> Any:
        if isinstance(part, dict):
            return {name: renamed(value, name) for name, value in part.items()}
        if isinstance(part, list | tuple):
            return [renamed(value, under) for value in part]
        return names.get(part, part) if under in ("label", "labels") else part

    return msgspec.convert(renamed(msgspec.to_builtins(found)), Figures) if names else found


def _work(study: Study, root: str) -> Figures:
    return carry_out(study, Store(Path(root)))


def _measure(study: Study, store: Store) -> Figures:
    match study:
        case SpectrumStudy():
            return spectrum(study, store)
        case UpdateStudy():
            return updates(study, store)
        case LineStudy():
            return line(study, store)
        case PlaneStudy():
            return plane_through(study, store)
        case DistanceStudy():
            return all_distances(study, store)
        case AgreementStudy():
            return agreement(study, store)
