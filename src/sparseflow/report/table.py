"""The table of all runs: as text, and as values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sparseflow.plotting.formats import NONE, accuracy, given, seeds, spread
from sparseflow.plotting.table import Column, Table
from sparseflow.report.results import Results
from sparseflow.report.summary import Row, early_window, rows
from sparseflow.studies import Reference

MARK = "✕"
"""Follows the accuracy of a dead run."""

_NOBODY = Reference()
_START = "‖∇L‖ at step 0 (kernels alone)"


TEXTS: dict[str, Callable[[Row], str]] = {
    "recipe": lambda row: row.name,
    "seeds": lambda row: seeds([run.seed for run in row.runs]),
    "dead": lambda row: f"{row.dead} of {len(row.runs)}" if row.dead else "0",
    "median": lambda row: NONE if row.median is None else accuracy(row.median),
    "interval": lambda row: "–".join(map(accuracy, row.interval)) if row.interval else "",
    "start": lambda row: spread(run.start.total for run in row.runs),
    "kernels": lambda row: spread(run.start.kernels for run in row.runs),
    "early": lambda row: spread(run.early.total for run in row.runs),
}
"""What the table says of a recipe."""

REFERENCE_TEXTS: dict[str, Callable[[Reference], str]] = {
    "accuracy": lambda other: ", ".join(map(accuracy, other.accuracy)),
    "start": lambda other: given(other.start),
    "kernels": lambda other: given(other.kernels),
    "early": lambda other: given(other.early),
    "published": lambda other: _published(other.published),
    "note": lambda other: other.note,
}
"""What others measured of it."""


def each(row: Row) -> list[str]:
    """Accuracy of every run."""
    return [accuracy(run.test_accuracy) + f" {MARK}" * run.dead for run in row.runs]


def texts_of(row: Row) -> tuple[dict[str, str], dict[str, str]]:
    """All texts of a row, and of what others measured; the latter are empty without."""
    other = row.reference or _NOBODY
    return (
        {name: show(row) for name, show in TEXTS.items()},
        {name: show(other) for name, show in REFERENCE_TEXTS.items()},
    )


def summary_table(results: Results) -> Table:
    """The table for people, with its notes: one line a recipe."""
    shown = rows(results)
    heads = [
        "recipe",
        "seeds",
        "dead",
        "accuracy %, median of the living [range]",
        "each seed",
        _START,
        f"mean ‖∇L‖, {early_window(results.runs)}",
    ]
    referred = any(row.reference for row in shown)
    if referred:
        name = results.references.name
        heads += [f"{name}: accuracy", _START, "mean ‖∇L‖", "published accuracy"]
    lines = tuple(_line(row)[: len(heads)] for row in shown)
    return Table(results.title, tuple(map(Column, heads)), lines, notes(results))


def _line(row: Row) -> tuple[str, ...]:
    own, other = texts_of(row)
    alone = f" ({other['kernels']})" if other["kernels"] else ""
    published = "; ".join(filter(None, (other["published"], other["note"])))
    theirs = (other["accuracy"], other["start"] + alone, other["early"], published)
    return (
        f"`{own['recipe']}`",
        own["seeds"],
        own["dead"],
        f"**{own['median']}**" + f" [{own['interval']}]" * bool(row.interval),
        ", ".join(each(row)),
        f"{own['start']} ({own['kernels']})",
        own["early"],
        *(text or NONE for text in theirs),
    )


def _published(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return ""
    mean, deviation = value
    return accuracy(mean) + (f" ± {accuracy(deviation)}" if deviation is not None else "")


def markdown_table(results: Results) -> str:
    """The table for README and terminal."""
    if not results.runs:
        return "No training run has finished yet.\n"
    return summary_table(results).markdown()


def notes(results: Results) -> str:
    """What the columns of the table mean."""
    text = (
        f"Dead ({MARK}): test accuracy under {results.dead_below:g} % at the end; counted, and "
        "left out of the median. [range]: of three living runs or more; it holds the true median "
        "with a confidence of 75 % for three, 94 % for five. "
        "Gradient norms: range over all seeds."
    )
    if any(row.reference for row in rows(results)):
        return f"{text} Beside them: {results.references.source}."
    return f"{text} {results.references.absent}".rstrip()


def summary_rows(results: Results) -> list[dict[str, Any]]:
    """Rows as plain data: values of each seed, their median, and the reference."""
    return [
        {
            "recipe": row.recipe,
            "variant": row.variant,
            "seeds": [run.seed for run in row.runs],
            "dead": row.dead,
            "median": row.median,
            "interval": list(row.interval) if row.interval else None,
            "accuracy": [run.test_accuracy for run in row.runs],
            "active": [run.active for run in row.runs],
            "start_total": [run.start.total for run in row.runs],
            "start_kernels": [run.start.kernels for run in row.runs],
            "early_total": [run.early.total for run in row.runs],
            "window": row.runs[0].window,
            "reference": msgspec.structs.asdict(row.reference) if row.reference else None,
        }
        for row in rows(results)
    ]


def summary_values(results: Results) -> Table:
    """One line a recipe, unformatted, several values joined by spaces: for CSV."""
    pairs = zip(rows(results), summary_rows(results), strict=True)
    return Table.of(results.title, [_values(row, data) for row, data in pairs])


def _values(row: Row, data: dict[str, Any]) -> dict[str, Any]:
    other = row.reference or _NOBODY
    low, high = row.interval or (None, None)
    several = ("seeds", "accuracy", "start_total", "start_kernels", "early_total")
    theirs = ("accuracy", "start", "kernels", "early")
    return {
        "recipe": row.recipe,
        "variant": row.variant,
        "runs": len(row.runs),
        "dead": row.dead,
        "median": row.median,
        "low": low,
        "high": high,
        **{name: " ".join(map(str, data[name])) for name in several},
        "window": data["window"],
        **{f"authors_{name}": " ".join(map(str, getattr(other, name))) for name in theirs},
        "published": other.published[0] if other.published else None,
    }
