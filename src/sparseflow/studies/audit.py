"""Look at every file of every study, and say what is broken."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from sparseflow.runs import Finding, Store
from sparseflow.runs.audit import left_behind, looked_at
from sparseflow.studies.execution import FOLDER, read


def inspect(store: Store) -> Iterator[Finding]:
    """Read all studies, and compare them with their checksums.

    Nothing is changed. Runs are looked at by :func:`sparseflow.runs.inspect`.
    """
    folder = store.root / FOLDER
    yield from left_behind(folder)
    for path in sorted(folder.glob("*.json")):
        remedy = f"remove {path}: measuring again makes it again, from the runs' checkpoints"
        yield from looked_at(path, partial(read, path), remedy)
