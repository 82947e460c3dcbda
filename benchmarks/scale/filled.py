"""A store of many finished runs, copied from a few real ones with the store's own writers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sparseflow.core.documents import load_document, save_document
from sparseflow.recipes import expand, make_spec
from sparseflow.runs import Local, Run, Store, plan, sweep
from sparseflow.runs.spec import RunSpec

FAMILY, SCALE, SETTINGS = "mlp-mnist", 0.01, ("data.limit=2000", "data.probe=200")
OPTIONS = ["--scale", str(SCALE), *(word for s in SETTINGS for word in ("--set", s))]
"""Options that name these runs on the command line."""


def fill(root: Path, runs: int) -> Store:
    """Make a store of all trained recipes of a family, at enough seeds for ``runs`` runs.

    Seed 0 is trained, 117 steps each. The others are copies with other specifications,
    whose checkpoints are hard links.

    Args:
        root: a new folder.
        runs: number of runs, at least.
    """
    store = Store(root)
    names = [n for n in expand([FAMILY]) if "/init-" not in n]
    first = [_spec(name, 0) for name in names]
    with Local(2, threads=1) as executor:
        sweep(plan(first, store), store, executor)
    real = [store.run(spec) for spec in first]
    for seed in range(1, -(-runs // len(names))):
        for name, run in zip(names, real, strict=True):
            _copy(run, _spec(name, seed), store)
    return store


def _spec(name: str, seed: int) -> RunSpec:
    return make_spec(name, seed=seed, scale=SCALE, settings=SETTINGS)


def _copy(run: Run, spec: RunSpec, store: Store) -> None:
    copy = store.create(spec)
    for step in run.kept:
        copy.checkpoint_path(step).parent.mkdir(exist_ok=True)
        copy.checkpoint_path(step).hardlink_to(run.checkpoint_path(step))
    (copy.path / "metrics.jsonl").write_bytes((run.path / "metrics.jsonl").read_bytes())
    for kind in ("environment", "result"):
        save_document(copy.path / f"{kind}.json", kind, copy.id, _content(run, kind))


def lengthen(run: Run, times: int) -> None:
    """Repeat the records after step 0 at later steps, and update the checksum."""
    lines = [msgspec.json.encode(r) + b"\n" for r in _repeated(list(run.metrics()), times)]
    data = b"".join(lines)
    (run.path / "metrics.jsonl").write_bytes(data)
    mark = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    result = _content(run, "result") | {"metrics": mark}
    save_document(run.path / "result.json", "result", run.id, result)


def _content(run: Run, kind: str) -> dict[str, Any]:
    return load_document(run.path / f"{kind}.json", kind, run.id)


def _repeated(records: list[dict[str, Any]], times: int) -> Iterator[dict[str, Any]]:
    yield from (r for r in records if r["step"] == 0)
    last = max(r["step"] for r in records)
    for time in range(times):
        yield from (r | {"step": r["step"] + time * last} for r in records if r["step"])
