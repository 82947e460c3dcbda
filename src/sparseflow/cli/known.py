"""Runs that compact results hold already, so that a sweep need not make them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from sparseflow.cli.show import stderr


def without_known(
    specs: Sequence[Any], files: Iterable[Path]
) -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """Leave out specifications whose runs are in results files.

    Returns:
        The others, and a row for each run that was left out, by its id.

    Raises:
        StoreError: if a file is missing or damaged.
    """
    from sparseflow.cli.work import row_of  # noqa: PLC0415
    from sparseflow.report import load_results  # noqa: PLC0415
    from sparseflow.runs import Run, identity  # noqa: PLC0415
    from sparseflow.runs.spec import code_of_run  # noqa: PLC0415

    accuracy: dict[str, float | None] = {}
    for file in files:
        results = load_results(file)
        accuracy |= {run.id: run.test_accuracy for run in results.runs}
        accuracy |= {start.id: None for start in results.at_start}
    missing, rows = [], {}
    for spec in specs:
        name = identity(spec)
        if name not in accuracy:
            missing.append(spec)
            continue
        run = Run(Path(name), spec, code=code_of_run(spec))
        rows[name] = row_of(run) | {
            "state": "known",
            "step": spec.train.steps,
            "test_accuracy": accuracy[name],
        }
    return missing, rows


def tell_known(total: int, known: Collection[str], made: Collection[str]) -> None:
    """Say how many runs were left out, and how many of those were needed all the same."""
    text = f"{len(known)} of {total} runs are known from results"
    if again := sum(name in made for name in known):
        text += f"; {again} of them are made here too: other runs start from their checkpoints"
    stderr.print(text, highlight=False, markup=False)
