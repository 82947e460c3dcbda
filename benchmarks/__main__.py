"""The command: run the benchmarks, print a table, write results and plots."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.curvature import curvature
from benchmarks.flow import gradient_flow
from benchmarks.fresh import fresh_loss, fresh_step
from benchmarks.gpu.cuda import cuda_initialisation, cuda_memory, cuda_steps
from benchmarks.initialisation import initialisation
from benchmarks.progress import NotHereError, progress, skipped
from benchmarks.scale.store import store
from benchmarks.scale.sweep import sweep_overhead
from benchmarks.sparse.figure import write_layers_figure
from benchmarks.sparse.inference import inference
from benchmarks.sparse.layers import layers
from benchmarks.sparse.memory import memory
from benchmarks.sparse.roofline import roofline
from benchmarks.sparse.steps import steps
from benchmarks.steps import masked_step, rigl_update
from benchmarks.tables import tables
from benchmarks.timing import Record, load, machine
from sparseflow.core.errors import SparseUnavailable
from sparseflow.core.files import write_atomic

Benchmark = Callable[[float], list[Record]]
QUICK = 0.1


@dataclass(frozen=True)
class Group:
    """Benchmarks that share a file of results.

    Attributes:
        benchmarks: by name; each takes the share of a full run's rounds.
        results: file that a full run of all of them writes.
        threads: numbers of threads to run with; empty for torch's present number.
        picture: file of their plot, if there is one.
    """

    benchmarks: dict[str, Benchmark]
    results: Path
    threads: tuple[int, ...] = ()
    picture: Path | None = None


GROUPS = {
    "masked": Group(
        {
            "step": masked_step,
            "update": rigl_update,
            "flow": gradient_flow,
            "init": initialisation,
            "curvature": curvature,
        },
        Path("results/benchmarks.json"),
    ),
    "sparse": Group(
        {
            "sparse-roofline": roofline,
            "sparse-layers": layers,
            "sparse-steps": steps,
            "sparse-inference": inference,
            "sparse-memory": memory,
        },
        Path("results/benchmarks-sparse.json"),
        threads=tuple(sorted({1, torch.get_num_threads()})),
        picture=Path("docs/images/sparse-layers.png"),
    ),
    "scale": Group(
        {"sweep": sweep_overhead, "store": store},
        Path("results/benchmarks-scale.json"),
    ),
    "fresh": Group(
        {"fresh-step": fresh_step, "fresh-loss": fresh_loss},
        Path("results/benchmarks-fresh.json"),
    ),
    "cuda": Group(
        {"cuda-steps": cuda_steps, "cuda-init": cuda_initialisation, "cuda-memory": cuda_memory},
        Path("results/benchmarks-cuda.json"),
    ),
}


def main() -> None:
    """Parse the command line and run."""
    options = _parser().parse_args()
    if min(options.threads or [1]) < 1:
        sys.exit(f"--threads {min(options.threads)} is not at least 1")
    results: dict[str, dict[str, Any]] = {}
    for name, group in GROUPS.items():
        chosen = [b for b in group.benchmarks if _chosen(options.only, name, b)]
        if chosen:
            results[name] = _run(group, chosen, options)
    merged = next(iter(results.values())) if len(results) == 1 else results
    if options.json:
        sys.stdout.write(_text(merged))
    for name, result in results.items():
        if not options.json:
            wide = Console() if sys.stdout.isatty() else Console(width=220)
            wide.print(*tables(result["records"]), _conditions(result), sep="\n")
        whole = not (options.quick or options.threads) and set(GROUPS[name].benchmarks) == set(
            result["benchmarks"]
        )
        if whole and result["records"] and options.out is None:
            _write(GROUPS[name].results, result, GROUPS[name].picture)
    if options.out is not None:
        _write(options.out, merged, options.out.with_suffix(".png"))


def _chosen(only: list[str] | None, group: str, benchmark: str) -> bool:
    return not only or group in only or benchmark in only


def _run(group: Group, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run benchmarks of a group with every number of threads."""
    as_set = torch.get_num_threads()
    threads = options.threads or group.threads or (as_set,)
    before, records = load(), []
    for count in threads:
        torch.set_num_threads(count)
        for name in names:
            with progress.status(f"benchmark {name}, {count} thread(s)"):
                try:
                    records += group.benchmarks[name](QUICK if options.quick else 1.0)
                except (NotHereError, SparseUnavailable) as error:
                    skipped(name, str(error))
    torch.set_num_threads(as_set)
    return {
        "machine": machine() | {"threads": threads[0] if len(threads) == 1 else list(threads)},
        "load_before": before,
        "load_after": load(),
        "quick": options.quick,
        "benchmarks": names,
        "records": [asdict(record) for record in records],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    names = [b for group in GROUPS.values() for b in group.benchmarks]
    parser.add_argument(
        "--only",
        action="append",
        choices=[*GROUPS, *names],
        help="run this one, or this group; may be repeated",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the rounds and fewer cases"
    )
    parser.add_argument(
        "--threads",
        type=int,
        action="append",
        help="number of threads; may be repeated. By default torch's present number; for the "
        "group sparse one thread, then that number",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    written = ", ".join(str(group.results) for group in GROUPS.values())
    parser.add_argument(
        "--out",
        type=Path,
        help=f"file to write the results to; by default {written}, and none if --quick, --only or "
        "--threads is given",
    )
    return parser


def _write(path: Path, result: dict[str, Any], picture: Path | None) -> None:
    write_atomic(path, _text(result))
    progress.print(f"wrote {path}")
    if picture is not None and write_layers_figure(result.get("records", []), picture):
        progress.print(f"wrote {picture}")


def _text(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


def _conditions(result: dict[str, Any]) -> str:
    about = result["machine"]
    gpu = f"{about['gpu']}; " if "gpu" in about else ""
    return (
        f"{gpu}{about['cpu']}, {about['cores']} cores, {about['threads']} threads; "
        f"torch {about['torch']}; load average {result['load_before']} before, "
        f"{result['load_after']} after"
    )


if __name__ == "__main__":
    main()
