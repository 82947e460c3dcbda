"""Claims as plain data, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sparseflow.measure.comparison import Comparison
from sparseflow.report.claims.judge import Claim, Judgement
from sparseflow.report.text import NONE, markdown

NOTE = (
    "Every interval is of 95 % by itself; nothing is corrected for the number of claims. A claim "
    "holds if the whole interval lies on the claimed side, does not hold if none of it does, and "
    "is not settled else, or where its windows differ."
)


def claims_rows(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Claims as plain data, for JSON: what is not finite is None."""
    return [
        {
            "name": claim.name,
            "sentence": claim.sentence,
            "paper": claim.paper,
            "verdict": claim.verdict,
            "figure": claim.figure,
            "note": claim.note,
            "judgements": [_judgement(judgement) for judgement in claim.judgements],
        }
        for claim in claims
    ]


def claims_markdown(claims: Sequence[Claim]) -> str:
    """One row a judgement; the claim stands in its first."""
    table = [["claim", "paper", "verdict", "judged in", "here", "in that window"], ["---"] * 6]
    for claim in claims:
        head = [claim.sentence, claim.paper, f"**{claim.verdict}**"]
        if not claim.judgements:
            table.append([*head, NONE, "no data", NONE])
        for i, judgement in enumerate(claim.judgements):
            cells = [judgement.window, judgement.ours, judgement.verdict]
            table.append([*(head if i == 0 else [""] * 3), *cells])
    lines = "\n".join(f"| {' | '.join(map(markdown, row))} |" for row in table)
    notes = "\n".join(f"- {claim.sentence} {claim.note}" for claim in claims if claim.note)
    return f"{lines}\n\n{NOTE}\n\n{notes}\n"


def claims_csv(claims: Sequence[Claim]) -> str:
    """One line a judgement, numbers unformatted; a claim without one has a line too."""
    out = io.StringIO()
    fields = ["claim", "sentence", "paper", "claim_verdict", *_judgement(None)]
    writer = csv.DictWriter(out, fields, lineterminator="\n", restval="")
    writer.writeheader()
    for claim in claims:
        head = {
            "claim": claim.name,
            "sentence": claim.sentence,
            "paper": claim.paper,
            "claim_verdict": claim.verdict,
        }
        for judgement in claim.judgements or (None,):
            writer.writerow(head | _judgement(judgement))
    return out.getvalue()


def _judgement(judgement: Judgement | None) -> dict[str, Any]:
    """Columns of one judgement; empty without one."""
    compared = judgement and judgement.comparison
    tests = ("p", "p_exact", "effect", "dominance")
    parts = asdict(judgement.estimate) if judgement else {}
    return {
        "window": judgement.window if judgement else None,
        "ours": judgement.ours if judgement else None,
        "verdict": judgement.verdict if judgement else None,
        **{name: _finite(parts.get(name)) for name in ("value", "low", "high", "n", "level")},
        **{name: _finite(_part(compared, name)) for name in tests},
    }


def _part(compared: Comparison | None, name: str) -> float | None:
    return None if compared is None else getattr(compared, name)


def _finite(value: Any) -> Any:
    return value if value is not None and math.isfinite(value) else None
