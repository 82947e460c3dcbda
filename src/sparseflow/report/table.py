"""The table, as Markdown, CSV, cells for the page and plain data."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import Any

from sparseflow.report.paper import AUTHORS_CODE, PUBLISHED, Reference
from sparseflow.report.results import Results
from sparseflow.report.summary import Row, rows
from sparseflow.report.text import NONE, accuracy, given, markdown, seeds, spread

MARK = "✕"
"""Stands beside the accuracy of a dead run."""

_NOBODY = Reference()


@dataclass(frozen=True)
class Cells:
    """One line of the table as text."""

    recipe: str
    seeds: str
    dead: str
    median: str
    interval: str
    each: tuple[str, ...]
    start: str
    kernels: str
    early: str
    code_accuracy: str
    code_start: str
    code_kernels: str
    code_early: str
    published: str
    note: str


def cells(row: Row) -> Cells:
    """Format one row."""
    other = row.reference or _NOBODY
    median = NONE if row.median is None else accuracy(row.median)
    return Cells(
        recipe=row.name,
        seeds=seeds([run.seed for run in row.runs]),
        dead=f"{row.dead} of {len(row.runs)}" if row.dead else "0",
        median=median,
        interval="–".join(map(accuracy, row.interval)) if row.interval else "",
        each=tuple(accuracy(r.test_accuracy) + f" {MARK}" * r.dead for r in row.runs),
        start=spread(run.start.total for run in row.runs),
        kernels=spread(run.start.kernels for run in row.runs),
        early=spread(run.early.total for run in row.runs),
        code_accuracy=", ".join(map(accuracy, other.accuracy)),
        code_start=given(other.start),
        code_kernels=given(other.kernels),
        code_early=given(other.early),
        published=_published(other),
        note=other.note,
    )


def window(results: Results) -> int:
    """Early window of the shared settings, in steps."""
    return results.main[0].window if results.main else 0


def markdown_table(results: Results) -> str:
    """The table for README and terminal, with its notes."""
    lines = [cells(row) for row in rows(results)]
    if not lines:
        return "No training run has finished yet.\n"
    referred = any(row.reference for row in rows(results))
    head = [
        "recipe",
        "seeds",
        "dead",
        "accuracy %, median of the living [range]",
        "each seed",
        "‖∇L‖ at step 0 (kernels alone)",
        f"mean ‖∇L‖, steps 0–{window(results):,}",
    ]
    reference_head = [
        "authors' code: accuracy",
        "‖∇L‖ at step 0 (kernels alone)",
        "mean ‖∇L‖",
        "published accuracy",
    ]
    table = [head + reference_head * referred]
    table.append(["---"] * len(table[0]))
    table += [_markdown_line(line, referred) for line in lines]
    text = "\n".join(f"| {' | '.join(line)} |" for line in table)
    return f"{text}\n\n{notes(results)}\n"


def notes(results: Results) -> str:
    """What the columns of the table mean."""
    text = (
        f"Dead ({MARK}): test accuracy under {results.dead_below:g} % at the end; counted, and "
        "left out of the median. [range]: of three living runs or more; it holds the true median "
        "with a confidence of 75 % for three, 94 % for five. "
        "Gradient norms: range over all seeds."
    )
    if any(row.reference for row in rows(results)):
        return f"{text} Beside them: {AUTHORS_CODE}; published: {PUBLISHED}."
    return f"{text} {_why_no_reference(results)}".rstrip()


def summary_rows(results: Results) -> list[dict[str, Any]]:
    """Rows as plain data: figures of each seed, their median, and the reference."""
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
            "reference": asdict(row.reference) if row.reference else None,
        }
        for row in rows(results)
    ]


def csv_table(results: Results) -> str:
    """One line a recipe, numbers unformatted, several of them joined by spaces."""
    out = io.StringIO()
    pairs = zip(rows(results), summary_rows(results), strict=True)
    lines = [_csv_line(row, data) for row, data in pairs]
    if lines:
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return out.getvalue()


def _csv_line(row: Row, data: dict[str, Any]) -> dict[str, Any]:
    other = row.reference or _NOBODY
    low, high = row.interval or ("", "")
    several = {
        name: " ".join(map(str, data[name]))
        for name in ("seeds", "accuracy", "start_total", "start_kernels", "early_total")
    }
    return {
        "recipe": row.recipe,
        "variant": row.variant,
        "runs": len(row.runs),
        "dead": row.dead,
        "median": "" if row.median is None else row.median,
        "low": low,
        "high": high,
        **several,
        "window": data["window"],
        "authors_accuracy": " ".join(map(str, other.accuracy)),
        "authors_start": " ".join(map(str, other.start)),
        "authors_kernels": " ".join(map(str, other.kernels)),
        "authors_early": " ".join(map(str, other.early)),
        "published": other.published[0] if other.published else "",
    }


def _markdown_line(line: Cells, referred: bool) -> list[str]:
    own = [
        f"`{line.recipe}`",
        line.seeds,
        line.dead,
        f"**{line.median}**" + f" [{line.interval}]" * bool(line.interval),
        ", ".join(line.each),
        f"{line.start} ({line.kernels})",
        line.early,
    ]
    code_start = (
        f"{line.code_start} ({line.code_kernels})" if line.code_kernels else line.code_start
    )
    published = f"{line.published}; {line.note}" if line.note else line.published
    other = [line.code_accuracy, code_start, line.code_early, published]
    return [markdown(cell) for cell in own + [cell or NONE for cell in other] * referred]


def _published(other: Reference) -> str:
    if other.published is None:
        return ""
    mean, deviation = other.published
    return accuracy(mean) + (f" ± {accuracy(deviation)}" if deviation is not None else "")


def _why_no_reference(results: Results) -> str:
    if results.family != "lenet5-mnist":
        return ""
    return (
        "The authors' figures are for LeNet5 at 95 % sparsity and 11,719 steps, so none "
        "stand beside these runs."
    )
