"""Carry out studies, each once: its result is kept in the store under its hash."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sparseflow.core.documents import load_document, save_document
from sparseflow.core.errors import SparseflowError, StoreError
from sparseflow.runs import Store
from sparseflow.runs.jobs import Ended, Executor, Task, Tell
from sparseflow.studies.study import Record, Study, decode, key, tag_of

FOLDER = "studies"
"""Beside the runs in the store."""


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file of a study holds: what was asked, what was found, and how long it took."""

    study: Study
    found: Record
    seconds: float


def carry_out(study: Study, store: Store) -> Record:
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
    executor: Executor,
    *,
    changed: Callable[[int], None] = lambda done: None,
) -> list[Record]:
    """Carry out many studies on an executor; those made before are read here.

    Args:
        studies: what to measure.
        store: where the runs are.
        executor: what carries them out; the caller ends it.
        changed: called with the number of studies done.

    Returns:
        What each found, in order.

    Raises:
        SparseflowError: once all others are done, if some failed; or if the
            executor cannot be had, or breaks.
    """
    root = str(store.root.absolute())
    tasks = [Task(str(i), _work, (study, root)) for i, study in enumerate(studies)]
    ended: dict[str, Ended] = {}

    def end(event: Ended) -> None:
        ended[event.key] = event
        changed(len(ended))

    missing: deque[Task] = deque()
    for task, study in zip(tasks, studies, strict=True):
        if _path(key(study), store).is_file():
            end(_made(task.key, study, store))
        else:
            missing.append(task)
    while missing or not executor.idle:
        while missing and not executor.full:
            executor.submit(missing.popleft())
        for event in executor.wait(0.5):
            if isinstance(event, Ended):
                end(event)
    failed = {int(name): event.error for name, event in ended.items() if event.error}
    if failed:
        each = "; ".join(f"{_named(studies[i])}: {error}" for i, error in sorted(failed.items()))
        raise SparseflowError(f"{len(failed)} of {len(studies)} studies failed: {each}")
    return [ended[task.key].value for task in tasks]


def _made(name: str, study: Study, store: Store) -> Ended:
    try:
        return Ended(name, carry_out(study, store))
    except StoreError as error:
        return Ended(name, error=str(error))


def _named(study: Study) -> str:
    points = ", ".join(point.label or point.run for point in study.checkpoints[:3])
    return f"{tag_of(type(study))} of {points}"


def _path(name: str, store: Store) -> Path:
    return store.root / FOLDER / f"{name}.json"


def _kept(study: Study, store: Store) -> Kept:
    name = key(study)
    path = _path(name, store)
    if path.is_file():
        kept = read(path)
        if key(kept.study) != name:
            raise StoreError(f"{path} is of study {key(kept.study)}; remove it to make it again")
        return kept
    began = time.monotonic()
    kept = Kept(study, study.measure(store), round(time.monotonic() - began, 1))
    content = {field: getattr(kept, field) for field in Kept.__struct_fields__}
    save_document(path, "study", name, content, indent=-1)
    return kept


def read(path: Path) -> Kept:
    """Read the file of a study.

    Raises:
        StoreError: if it is missing or damaged.
    """
    try:
        content = load_document(path, "study", path.stem)
        return msgspec.convert(content, Kept, dec_hook=decode)
    except (StoreError, msgspec.ValidationError, RecursionError) as error:
        text = str(error) if isinstance(error, StoreError) else f"{path} is damaged: {error}"
        raise StoreError(f"{text}; remove it to make it again") from error


def _relabelled(found: Record, made: Study, asked: Study) -> Record:
    """Give what was found the labels asked for: one run may have two names."""
    pairs = zip(made.checkpoints, asked.checkpoints, strict=True)
    names = {old.label: new.label for old, new in pairs if old.label != new.label}

    def renamed(part: Any, under: str = "") -> Any:
        if isinstance(part, dict):
            return {name: renamed(value, name) for name, value in part.items()}
        if isinstance(part, list | tuple):
            return [renamed(value, under) for value in part]
        return names.get(part, part) if under in ("label", "labels") else part

    return decode(Record, renamed(msgspec.to_builtins(found))) if names else found


def _work(_: Tell, study: Study, root: str) -> Record:
    return carry_out(study, Store(Path(root)))
