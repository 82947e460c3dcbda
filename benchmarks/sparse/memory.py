"""Memory and time of training a layer of 16,384 → 16,384, which is hardly feasible dense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.progress import progress, skipped
from benchmarks.sparse.large import BATCH, CLEAR, FEATURES
from benchmarks.timing import Record, reduce

SPARSITIES, QUICK_SPARSITIES = (0.95, 0.99, 0.999), (0.99,)
ROUNDS, QUICK_ROUNDS = 5, 2
MIB = 1024**2
DENSE_TENSORS = 3 * 4 * FEATURES**2
"""Bytes of the dense weight, its gradient and its momentum."""
ENOUGH = 3 * DENSE_TENSORS
LIMIT_MIB = 200.0
CASE = f"linear {FEATURES}→{FEATURES}, batch {BATCH}, SGD with momentum"


def memory(share: float) -> list[Record]:
    """Peak memory and time of a step; in a full run also of the dense layer, if it fits."""
    if not CLEAR.exists():
        skipped("sparse-memory", "peak memory is read from /proc/self, which this system lacks")
        return []
    rounds = QUICK_ROUNDS if share < 1 else ROUNDS
    dense: list[dict[str, Any]] = []
    if share >= 1 and _available() > ENOUGH:
        dense = _runs(0.0, 2)
    sparsities = QUICK_SPARSITIES if share < 1 else SPARSITIES
    records = [r for sparsity in sparsities for r in _records(sparsity, rounds, dense)]
    return [*records, *_dense_records(dense)]


def _records(sparsity: float, rounds: int, dense: list[dict[str, Any]]) -> list[Record]:
    runs = _runs(sparsity, rounds)
    settings = _settings(sparsity) | {"nonzeros": runs[0]["nonzeros"]}
    times = [_step(run) for run in runs]
    case = f"{CASE}, {sparsity:.1%} sparse"
    grown = [run["grown"] / MIB for run in runs]
    limit = LIMIT_MIB if sparsity == 0.99 else None
    records = [
        _record(case, "peak memory above that of the imports", grown, "MiB", times, settings,
                limit),
        _record(case, "time of a step", [1e3 * t for t in times], "ms", times, settings),
    ]  # fmt: skip
    if dense:
        base = median(_step(run) for run in dense)
        speedups = [base / t for t in times]
        records.append(_record(case, "training step over dense", speedups, "×", times, settings))
    return records


def _dense_records(runs: list[dict[str, Any]]) -> list[Record]:
    """Measured, or computed from the sizes of the three tensors."""
    if not runs:
        megabytes = [DENSE_TENSORS / MIB] * 2
        what = "weight, gradient and momentum, counted, not measured"
        return [_record(f"{CASE}, dense", what, megabytes, "MiB", [], _settings(0.0))]
    times = [_step(run) for run in runs]
    grown = [run["grown"] / MIB for run in runs]
    case, settings = f"{CASE}, dense", _settings(0.0)
    return [
        _record(case, "peak memory above that of the imports", grown, "MiB", times, settings),
        _record(case, "time of a step", [1e3 * t for t in times], "ms", times, settings),
    ]


def _settings(sparsity: float) -> dict[str, Any]:
    return {"sparsity": sparsity, "threads": torch.get_num_threads()}


def _record(
    case: str,
    figure: str,
    values: list[float],
    unit: str,
    seconds: list[float],
    settings: dict[str, Any],
    limit: float | None = None,
) -> Record:
    record = Record(
        benchmark="sparse-memory",
        case=case,
        figure=figure,
        unit=unit,
        measured_ms=1e3 * median(seconds) if seconds else None,
        baseline_ms=None,
        rounds=len(seconds),
        settings=settings,
        **reduce(values, limit, "at most"),  # type: ignore[arg-type]
    )
    progress.print(f"{case}: {figure} {record.value:.4g} {unit}")
    return record


def _runs(sparsity: float, rounds: int) -> list[dict[str, Any]]:
    """Run each round in a fresh process, since a process seldom returns memory."""
    command = [sys.executable, "-m", "benchmarks.sparse.large", sparsity, torch.get_num_threads()]
    results = []
    for _ in range(rounds):
        done = subprocess.run(
            list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True
        )
        results.append(json.loads(done.stdout))
    return results


def _step(run: dict[str, Any]) -> float:
    """Median time of the steps after the first, which includes one-time work."""
    return median(run["seconds"][1:])


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    line = next((line for line in lines if line.startswith("MemAvailable")), "MemAvailable: 0 kB")
    return int(line.split()[1]) * 1024
