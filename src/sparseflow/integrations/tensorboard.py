"""Measurements of a run as TensorBoard event files."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sparseflow.core.errors import StoreError
from sparseflow.core.optional import need

EVENTS = "events.out.tfevents.*"
PART = ".part-"


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of one record of ``metrics.jsonl``, with their tags.

    A tag is the event and the path to a nested value, joined by slashes.

    Example:
        >>> flow = {"total": 1.5, "dense": float("nan"), "per_layer": {"fc.weight": 0.5}}
        >>> list(scalars({"event": "flow", "step": 100, **flow}))
        [('flow/total', 1.5), ('flow/per_layer/fc.weight', 0.5)]
    """
    rest = {k: v for k, v in record.items() if k not in ("event", "step")}
    yield from _numbers(str(record["event"]), rest)


def _numbers(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{tag}/{key}", inner)
    elif isinstance(value, int | float) and math.isfinite(value):
        yield tag, float(value)


def write_events(folder: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write the records of one run to a folder; events already there are replaced.

    All records are read before anything is replaced, so that a damaged one leaves
    the folder unchanged.

    Args:
        folder: folder of one run, as TensorBoard understands it.
        records: records of ``metrics.jsonl``: ``event``, ``step`` and the values.

    Returns:
        The number of scalars written.

    Raises:
        SparseflowError: if the extra ``tensorboard`` is not installed.
        StoreError: if the folder cannot be written to.
    """
    need("tensorboard", extra="tensorboard")
    writers = need("torch.utils.tensorboard", extra="tensorboard")
    count = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{PART}*"):  # by a writer that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=folder, prefix=PART) as part:
            with writers.SummaryWriter(part) as writer:
                for record in records:
                    for tag, value in scalars(record):
                        writer.add_scalar(tag, value, record["step"])
                        count += 1
            old = list(folder.glob(EVENTS))
            for path in Path(part).glob(EVENTS):
                path.replace(folder / path.name)
            for path in old:
                path.unlink()
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror}") from error
    return count
