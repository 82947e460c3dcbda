"""The table of all runs: as text, and as values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sparseflow.plotting.formats import NONE, accuracy, given, seeds, spread
from sparseflow.plotting.table import Column, Table
from sparseflow.report.results import Results
from sparseflow.report.summary import Row, rows
from sparseflow.studies import Reference

MARK = "✕"
"""Stands beside the accuracy of a dead run."""

_NOBODY = Reference()


def window(results: Results) -> int:
    """Early window of the shared settings, in steps."""
    return results.main[0].window if results.main else 0


def summary_table(results: Results) -> Table:
    """The table for people, with its notes: one line a recipe."""
    shown = rows(results)
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("recipe", lambda row: f"`{row.name}`"),
        ("seeds", seeds_of),
        ("dead", dead),
        ("accuracy %, median of the living [range]", _median),
        ("each seed", lambda row: ", ".join(each(row))),
        ("‖∇L‖ at step 0 (kernels alone)", _start),
        (f"mean ‖∇L‖, steps 0–{window(results):,}", early),
    ]
    if any(row.reference for row in shown):
        columns += [
            (head, lambda row, show=show: show(row.reference or _NOBODY) or NONE)
            for head, show in (
                (f"{results.references.name}: accuracy", code_accuracy),
                ("‖∇L‖ at step 0 (kernels alone)", _code_start),
                ("mean ‖∇L‖", lambda other: given(other.early)),
                ("published accuracy", lambda other: "; ".join(filter(None, published(other)))),
            )
        ]
    heads = tuple(Column(head) for head, _ in columns)
    lines = tuple(tuple(show(row) for _, show in columns) for row in shown)
    return Table(results.title, heads, lines, notes(results))


def markdown_table(results: Results) -> str:
    """The table for README and terminal."""
    return (
        summary_table(results).markdown() if results.runs else "No training run has finished yet.\n"
    )


def seeds_of(row: Row) -> str:
    """Seeds of its runs."""
    return seeds([run.seed for run in row.runs])


def dead(row: Row) -> str:
    """How many runs are dead."""
    return f"{row.dead} of {len(row.runs)}" if row.dead else "0"


def median(row: Row) -> str:
    """Median accuracy of the living."""
    return NONE if row.median is None else accuracy(row.median)


def interval(row: Row) -> str:
    """Range of the living; empty for fewer than three."""
    return "–".join(map(accuracy, row.interval)) if row.interval else ""


def each(row: Row) -> list[str]:
    """Accuracy of every run."""
    return [accuracy(run.test_accuracy) + f" {MARK}" * run.dead for run in row.runs]


def start(row: Row) -> str:
    """Gradient norm at step 0."""
    return spread(run.start.total for run in row.runs)


def kernels(row: Row) -> str:
    """The same over kernels alone."""
    return spread(run.start.kernels for run in row.runs)


def early(row: Row) -> str:
    """Mean gradient norm in the early window."""
    return spread(run.early.total for run in row.runs)


def code_accuracy(other: Reference) -> str:
    """Accuracies that others measured."""
    return ", ".join(map(accuracy, other.accuracy))


def published(other: Reference) -> tuple[str, str]:
    """Accuracy that others published, and what to know about it."""
    if other.published is None:
        return "", other.note
    mean, deviation = other.published
    return accuracy(mean) + (
        f" ± {accuracy(deviation)}" if deviation is not None else ""
    ), other.note


def _median(row: Row) -> str:
    return f"**{median(row)}**" + f" [{interval(row)}]" * bool(row.interval)


def _start(row: Row) -> str:
    return f"{start(row)} ({kernels(row)})"


def _code_start(other: Reference) -> str:
    alone = given(other.kernels)
    return f"{given(other.start)} ({alone})" if alone else given(other.start)


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
