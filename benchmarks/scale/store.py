"""Time and memory of listing, resuming and reporting a store of 1,000 finished runs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.progress import progress
from benchmarks.scale.filled import FAMILY, OPTIONS, SCALE, SETTINGS, fill, lengthen
from benchmarks.timing import Record, reduce
from sparseflow.recipes import expand, makers
from sparseflow.report import collect, markdown_table
from sparseflow.report.page import render
from sparseflow.runs import Store, matching

RUNS, FEW = 1000, 18
LENGTHS = (1, 10, 100)
LIMIT_S, LIMIT_GROWTH = 2.0, 1.2
CASE = f"{RUNS:,} finished runs of 117 steps"
NAMES = [n for n in expand([FAMILY]) if "/init-" not in n]


def store(share: float) -> list[Record]:
    """Commands as a user runs them, the parts of a report, and its memory for longer metrics."""
    rounds = 2 if share < 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        with progress.status("makes a store"):
            short = fill(Path(folder) / "short", RUNS)
        records = [*_commands(short, Path(folder), rounds), *_parts(short, rounds)]
        records += _memory(fill(Path(folder) / "few", FEW))
    return records


def _memory(made: Store) -> list[Record]:
    """Peak memory of collecting, and the size of the metrics; curves have a maximal length."""
    records, peaks, grown = [], {}, 1
    for times in LENGTHS:
        for run in made.runs():
            lengthen(run, times // grown)
        grown = times
        size = sum((run.path / "metrics.jsonl").stat().st_size for run in made.runs())
        peaks[times] = _peak(lambda: _collect(made))
        records += [
            _record(f"metrics of {times} × 117 steps", f"{what}, for each run",
                    [value / len(made.runs()) / 1e3] * 2, "kB")
            for what, value in (("metrics", size), ("peak memory of collecting", peaks[times]))
        ]  # fmt: skip
    last, before = LENGTHS[-1], LENGTHS[-2]
    figure = f"peak memory, {last} over {before} times the length"
    growth = [peaks[last] / peaks[before]] * 2
    return [*records, _record("metrics ten times longer", figure, growth, "×", LIMIT_GROWTH)]


def _commands(made: Store, folder: Path, rounds: int) -> list[Record]:
    seeds = f"0-{-(-RUNS // len(NAMES)) - 1}"
    commands = {
        "list": ["list"],
        "sweep, nothing to do": ["sweep", *NAMES, "--seeds", seeds, *OPTIONS],
        "report, figures included": ["report", FAMILY, *OPTIONS, "-o", str(folder / "report")],
    }
    return [
        _record(CASE, f"sparseflow {name}", _times(lambda w=words: _run(w, made), rounds), "s",
                LIMIT_S if "report" not in name else None)
        for name, words in commands.items()
    ]  # fmt: skip


def _run(words: list[str], made: Store) -> None:
    command = [sys.executable, "-c", "from sparseflow.cli import main; main()", *words]
    subprocess.run([*command, "--store", str(made.root)], check=True, capture_output=True)


def _parts(made: Store, rounds: int) -> list[Record]:
    results = _collect(made)

    def write() -> None:
        markdown_table(results)
        render(results, {})

    parts: dict[str, Callable[[], object]] = {
        "finding and collecting": lambda: _collect(made),
        "table and page": write,
        "finding, collecting, table and page": lambda: (_collect(made), write()),
    }
    return [
        _record(CASE, f"report: {name}", _times(part, rounds), "s",
                LIMIT_S if "," in name else None)
        for name, part in parts.items()
    ]  # fmt: skip


def _collect(made: Store) -> Any:
    wanted = makers(NAMES, scale=SCALE, settings=SETTINGS)
    return collect(matching(wanted, made), family=FAMILY, title="short")


def _peak(action: Callable[[], object]) -> int:
    """Peak number of bytes allocated by Python."""
    action()
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _times(action: Callable[[], object], rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        began = perf_counter()
        action()
        seconds.append(perf_counter() - began)
    return seconds


def _record(
    case: str, figure: str, values: list[float], unit: str, limit: float | None = None
) -> Record:
    return Record(
        benchmark="store",
        case=case,
        figure=figure,
        unit=unit,
        measured_ms=None,
        baseline_ms=None,
        rounds=len(values),
        **reduce(values, limit, "at most"),  # type: ignore[arg-type]
    )
