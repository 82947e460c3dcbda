"""Runs that compact results hold already, so that a sweep need not make them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from sparseflow.cli.show import stderr


def known_runs(files: Iterable[Path]) -> dict[str, float | None]:
    """Ids of the runs in results files, with their accuracy if they were trained.

    Raises:
        StoreError: if a file is missing or damaged.
    """
    from sparseflow.report import load_results

    accuracy: dict[str, float | None] = {}
    for file in files:
        results = load_results(file)
        accuracy |= {run.id: run.test_accuracy for run in results.runs}
        accuracy |= {start.id: None for start in results.at_start}
    return accuracy


def known_row(spec: Any, accuracy: float | None) -> dict[str, Any]:
    """Row of a run that is not in the store."""
    from sparseflow.cli.work import row_of
    from sparseflow.runs import Run, identity
    from sparseflow.runs.hashing import code_of_run

    run = Run(Path(identity(spec)), spec, code=code_of_run(spec))
    state = {"state": "known", "step": spec.train.steps, "test_accuracy": accuracy}
    return row_of(run) | state


def tell_known(wanted: Collection[str], known: Collection[str], made: Collection[str]) -> None:
    """Say how many runs were left out, and which were made though they are known."""
    left = sum(name in known for name in wanted)
    text = f"{left} of {len(wanted)} runs are known from results"
    if again := sum(name in known for name in made):
        noun = "known run is" if again == 1 else "known runs are"
        text += f"; {again} {noun} made here too: others start from their checkpoints"
    stderr.print(text, highlight=False, markup=False, soft_wrap=True)
