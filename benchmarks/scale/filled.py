"""A store of many finished runs, written by the store's own writers from a few real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sparseflow.recipes import expand, make_spec
from sparseflow.runs import Local, Run, Store, plan, sweep
from sparseflow.runs.spec import RunSpec

FAMILY, SCALE, SETTINGS = "mlp-mnist", 0.01, ("data.limit=2000", "data.probe=200")
OPTIONS = ["--scale", str(SCALE), *(word for s in SETTINGS for word in ("--set", s))]
"""What names these runs on the command line."""


def fill(root: Path, runs: int, length: int = 1) -> Store:
    """Make a store with all trained recipes of a family, at so many seeds that ``runs`` come out.

    Those of seed 0 are trained: 117 steps each. The others are copies of them
    under their own specifications, checkpoints by hard links.

    Args:
        root: a new folder.
        runs: how many, at least.
        length: how many times as long their metrics shall be as they are.
    """
    store = Store(root)
    names = [n for n in expand([FAMILY]) if "/init-" not in n]
    first = [_spec(name, 0) for name in names]
    with Local(2, threads=1) as executor:
        sweep(plan(first, store), store, executor)
    real = [store.run(spec) for spec in first]
    for run in real:
        _lengthen(run, length)
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
    for name in ("metrics.jsonl", "environment.json", "result.json"):
        (copy.path / name).write_bytes((run.path / name).read_bytes())


def _lengthen(run: Run, times: int) -> None:
    """Repeat what was measured after step 0, at later steps."""
    records = list(run.metrics())
    with (run.path / "metrics.jsonl").open("wb") as file:
        for record in _repeated(records, times):
            file.write(msgspec.json.encode(record) + b"\n")


def _repeated(records: list[dict[str, Any]], times: int) -> Iterator[dict[str, Any]]:
    yield from (r for r in records if r["step"] == 0)
    last = max(r["step"] for r in records)
    for time in range(times):
        yield from (r | {"step": r["step"] + time * last} for r in records if r["step"])
