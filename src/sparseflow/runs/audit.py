"""Look at every file of every run, and say what is broken and what would make it again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sparseflow.core.errors import StoreError
from sparseflow.core.files import orphans
from sparseflow.runs.journal import check
from sparseflow.runs.progress import reached
from sparseflow.runs.run import Run
from sparseflow.runs.store import ID, Store
from sparseflow.train.checkpoint import load_state


class Finding(NamedTuple):
    """Something about one file of a store.

    Attributes:
        path: of the file.
        wrong: what is wrong with it; empty if it is well.
        remedy: what to do, and what running again makes of it then.
        broken: whether something was lost; else it is left over.
    """

    path: Path
    wrong: str
    remedy: str
    broken: bool = True


def inspect(store: Store) -> Iterator[Finding]:
    """Read all files of all runs, and compare them with their checksums.

    Nothing is changed. Studies are looked at by :func:`sparseflow.studies.inspect`.

    Raises:
        OSError: if a folder cannot be read.
    """
    for folder in sorted(store.root.glob("*")):
        if ID.fullmatch(folder.name) or (folder / "spec.json").exists():
            yield from _of_run(store, folder)


def looked_at(path: Path, look: Callable[[], Any], remedy: str) -> Iterator[Finding]:
    """Yield what reading a file finds."""
    try:
        look()
    except StoreError as error:
        yield Finding(path, str(error).partition("; remove ")[0], remedy)
    except (KeyError, TypeError, ValueError) as error:
        yield Finding(path, f"{path} lacks what belongs there: {error!r}", remedy)
    else:
        yield Finding(path, "", "", broken=False)


def left_behind(*folders: Path) -> Iterator[Finding]:
    """Yield the temporary files of dead writers."""
    for path in (path for folder in folders for path in orphans(folder)):
        yield Finding(path, "left by a writer that was killed", "running again removes it", False)


def _of_run(store: Store, folder: Path) -> Iterator[Finding]:
    spec = folder / "spec.json"
    yield from left_behind(folder, folder / "checkpoints")
    if not spec.exists():
        if any(path.name != ".lock" for path in folder.rglob("*")):
            remedy = "running it again writes it again, then the rest can be checked"
            yield Finding(spec, f"{spec} is missing", remedy)
        return
    remedy = f"remove {folder}: running it again makes all of it, from the beginning"
    (read,) = looked_at(spec, lambda: store.read(folder), remedy)
    yield read
    if read.wrong:
        return
    run = store.read(folder)
    yield from _finished(run, remedy) if run.finished else _under_way(run)


def _finished(run: Run, remedy: str) -> Iterator[Finding]:
    for name, look in (
        ("result.json", lambda: run.result["test_accuracy"]),
        ("environment.json", lambda: run.seconds),
        ("metrics.jsonl", lambda: deque(run.metrics(), maxlen=0)),
    ):
        yield from looked_at(run.path / name, look, remedy)
    yield from _checkpoints(run, run.spec.train.steps, remedy)
    if run.resume_path.exists():
        yield Finding(run.resume_path, "not needed any more", "running it again removes it", False)


def _under_way(run: Run) -> Iterator[Finding]:
    """What an interrupted run goes on from; all that comes later it makes again anyway."""
    resume, metrics = run.resume_path, run.path / "metrics.jsonl"
    remedy = f"remove {resume}: running it again makes all of it, from the beginning"
    if not resume.exists():
        return
    (read,) = looked_at(resume, lambda: reached(run), remedy)
    yield read
    if not read.wrong:
        there = reached(run)
        yield from looked_at(metrics, lambda: check(metrics, there.metrics), remedy)
        yield from _checkpoints(run, there.step, remedy)


def _checkpoints(run: Run, last: int, remedy: str) -> Iterator[Finding]:
    for step in run.expected(last):
        path = run.checkpoint_path(step)
        yield from looked_at(path, partial(load_state, path, run.id, step), remedy)
