"""The one command: run the benchmarks, print a table, write the figures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.curvature import curvature
from benchmarks.flow import gradient_flow
from benchmarks.initialisation import initialisation
from benchmarks.steps import masked_step, rigl_update
from benchmarks.timing import Record, load, machine
from sparseflow.core.files import write_atomic

BENCHMARKS: dict[str, Callable[[float], list[Record]]] = {
    "step": masked_step,
    "update": rigl_update,
    "flow": gradient_flow,
    "init": initialisation,
    "curvature": curvature,
}
RESULTS = Path("results/benchmarks.json")
QUICK = 0.1


def main() -> None:
    """Parse the command line and run."""
    options = _parser().parse_args()
    share = QUICK if options.quick else 1.0
    progress = Console(stderr=True)
    before, records = load(), []
    for name in options.only or BENCHMARKS:
        with progress.status(f"benchmark {name}"):
            records += BENCHMARKS[name](share)
    result = {
        "machine": machine(),
        "load_before": before,
        "load_after": load(),
        "quick": options.quick,
        "records": [asdict(record) for record in records],
    }
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if options.json:
        sys.stdout.write(text)
    else:
        wide = Console() if sys.stdout.isatty() else Console(width=150)
        wide.print(_table(records), _conditions(result), sep="\n")
    whole = not (options.quick or options.only)
    out = options.out or (RESULTS if whole else None)
    if out is not None:
        write_atomic(out, text)
        progress.print(f"wrote {out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=list(BENCHMARKS), help="run this one; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds, to try out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"where to write the figures; by default {RESULTS}, and nowhere for a run that is "
        "quick or partial",
    )
    return parser


def _table(records: list[Record]) -> Table:
    table = Table("benchmark", "case", "figure")
    for heading in ("median", "25–75 %", "target", "met", "ms", "baseline ms", "rounds"):
        table.add_column(heading, justify="right")
    for r in records:
        table.add_row(
            r.benchmark,
            r.case,
            r.figure,
            f"{_short(r.value)} {r.unit}",
            f"{_short(r.low)} – {_short(r.high)}",
            "" if r.target is None else f"≤ {r.target:g} {r.unit}",
            {True: "yes", False: "no", None: ""}[r.met],
            _short(r.measured_ms),
            _short(r.baseline_ms),
            str(r.rounds),
        )
    return table


def _short(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 100 else f"{number:,.0f}"


def _conditions(result: dict[str, Any]) -> str:
    about = result["machine"]
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; "
        f"torch {about['torch']}; load average {result['load_before']} before, "
        f"{result['load_after']} after"
    )


if __name__ == "__main__":
    main()
