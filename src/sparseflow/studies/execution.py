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

from sparseflow.core.documents import load_document, save_document
from sparseflow.core.errors import SparseflowError, StoreError
from sparseflow.runs import Store
from sparseflow.runs.interrupt import end_with_parent
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


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file of a study holds: what was asked, what was found, and how long it took."""

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
    with ProcessPoolExecutor(workers, context, _start_worker, (threads,)) as pool:
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


def _kept(study: Study, store: Store) -> Kept:
    name = key(study)
    path = store.root / FOLDER / f"{name}.json"
    if path.is_file():
        kept = read(path)
        if key(kept.study) != name:
            raise StoreError(f"{path} is of study {key(kept.study)}; remove it to make it again")
        return kept
    began = time.monotonic()
    kept = Kept(study, _measure(study, store), round(time.monotonic() - began, 1))
    content = {field: getattr(kept, field) for field in Kept.__struct_fields__}
    save_document(path, "study", name, content, indent=-1)
    return kept


def read(path: Path) -> Kept:
    """Read the file of a study.

    Raises:
        StoreError: if it is missing or damaged.
    """
    try:
        content = load_document(path, "study", path.stem, oldest=1)
        content.pop("schema")
        return msgspec.convert(content, Kept)
    except (StoreError, msgspec.ValidationError, RecursionError) as error:
        text = str(error) if isinstance(error, StoreError) else f"{path} is damaged: {error}"
        raise StoreError(f"{text}; remove it to make it again") from error


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


def _start_worker(threads: int) -> None:
    end_with_parent()
    torch.set_num_threads(threads)


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
