"""Judged claims as tables and as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sparseflow.paper.judging import Claim, Judgement
from sparseflow.plotting.formats import NONE
from sparseflow.plotting.table import Column, Table

NOTE = (
    "Every interval is of 95 % by itself; nothing is corrected for the number of claims. A claim "
    "holds if the whole interval lies on the claimed side, does not hold if none of it does, and "
    "is not settled else, or where its windows differ."
)


def claims_table(claims: Sequence[Claim]) -> Table:
    """One row a judgement; the claim stands in its first."""
    rows = []
    for claim in claims:
        head = (claim.sentence, claim.paper, f"**{claim.verdict}**")
        if not claim.judgements:
            rows.append((*head, NONE, "no data", NONE))
        for i, judgement in enumerate(claim.judgements):
            cells = judgement.window, judgement.ours, judgement.verdict
            rows.append((*(head if i == 0 else ("", "", "")), *cells))
    heads = ("claim", "paper", "verdict", "judged in", "here", "in that window")
    notes = "\n".join(f"- {claim.sentence} {claim.note}" for claim in claims if claim.note)
    return Table("claims", tuple(map(Column, heads)), tuple(rows), f"{NOTE}\n\n{notes}")


def claims_markdown(claims: Sequence[Claim]) -> str:
    """The table of claims as Markdown."""
    return claims_table(claims).markdown()


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
            "judgements": [_values(judgement) for judgement in claim.judgements],
        }
        for claim in claims
    ]


def claims_values(claims: Sequence[Claim]) -> Table:
    """One line a judgement, unformatted; a claim without one has a line too: for CSV."""
    rows = []
    for claim in claims:
        head = {
            "claim": claim.name,
            "sentence": claim.sentence,
            "paper": claim.paper,
            "claim_verdict": claim.verdict,
        }
        rows += [head | _values(judgement) for judgement in claim.judgements or (None,)]
    return Table.of("claims", rows)


def _values(judgement: Judgement | None) -> dict[str, Any]:
    """Columns of one judgement; empty without one."""
    tests = ("p", "p_exact", "effect", "dominance")
    parts = asdict(judgement.estimate) if judgement else {}
    compared = judgement.comparison if judgement else None
    return {
        "window": judgement.window if judgement else None,
        "ours": judgement.ours if judgement else None,
        "verdict": judgement.verdict if judgement else None,
        **{name: _finite(parts.get(name)) for name in ("value", "low", "high", "n", "level")},
        **{name: _finite(getattr(compared, name, None)) for name in tests},
    }


def _finite(value: Any) -> Any:
    return value if value is not None and math.isfinite(value) else None
