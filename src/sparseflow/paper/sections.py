"""What the paper adds to a report: its claims, its published table and the literature."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparseflow.measure.statistics import Verdict
from sparseflow.paper.claims import claims
from sparseflow.paper.claims.forms import NOTE, claims_rows, claims_table, claims_values
from sparseflow.paper.judging import Claim
from sparseflow.paper.table import HEADS, published_data, published_rows, published_table
from sparseflow.paper.values import with_references
from sparseflow.plotting.palette import color_of, variables
from sparseflow.plotting.table import Table
from sparseflow.report import write_report as write_general
from sparseflow.report.page import Section
from sparseflow.report.results import Results

VERDICTS: dict[Verdict, tuple[str, str]] = {
    "holds": ("holds", "✓"),
    "does not hold": ("fails", "✕"),
    "not settled": ("open", "?"),
}
"""Class and sign of each verdict."""


def write_report(results: Results, out: Path) -> list[Path]:
    """Write a report with what the paper adds to it; see :func:`sparseflow.report.write_report`."""
    return write_general(with_references(results), out, sections(results))


def sections(results: Results) -> list[Section]:
    """Sections of the page; claims and published table only where there is evidence."""
    results = with_references(results)
    judged = claims(results) if results.evidence else []
    opening = [claims_section(judged)] if judged else []
    table = published_section(results)
    return [*opening, *([table] if table else []), literature_section(results)]


def claims_section(judged: list[Claim]) -> Section:
    """Every claim with its verdict, and the same as JSON, Markdown and CSV."""
    counts = Counter(claim.verdict for claim in judged)
    rows = json.dumps(claims_rows(judged), indent=1, ensure_ascii=False, allow_nan=False)
    table = claims_table(judged)
    return Section(
        template=_template("claims.html.j2"),
        style=_template("claims.css"),
        values={
            "claims": judged,
            "counts": [(verdict, counts[verdict]) for verdict in VERDICTS],
            "looks": VERDICTS,
            "judging": NOTE,
        },
        files={
            "claims.json": f"{rows}\n",
            "claims.md": table.markdown(),
            "claims.csv": claims_values(judged).csv(),
            "claims.tex": table.latex(),
        },
    )


def published_section(results: Results) -> Section | None:
    """The published table with ours, and the same as Markdown and CSV; None without predictions."""
    rows = published_rows(results)
    if not rows:
        return None
    table, colors = published_table(results), variables()
    return Section(
        template=_template("published.html.j2"),
        values={
            "rows": [(row, colors[color_of(row.group or "prune")]) for row in rows],
            "heads": HEADS,
            "notes": table.notes,
        },
        files={
            "published.md": table.markdown(),
            "published.csv": Table.of("", published_data(results)).csv(),
            "published.tex": table.latex(),
        },
    )


def literature_section(results: Results) -> Section:
    """What the page refers to."""
    values: dict[str, Any] = {"evidence": bool(results.evidence)}
    return Section(template=_template("literature.html.j2"), values=values, last=True)


def _template(name: str) -> str:
    return (files("sparseflow.paper") / "templates" / name).read_text(encoding="utf-8")
