"""A comparison of recipes in sentences, as a table, as plain data, and as files of all three."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from sparseflow.core.files import write_atomic
from sparseflow.measure import Estimate
from sparseflow.plotting.drawing import style
from sparseflow.plotting.formats import count, estimate, listing, seeds, short, signed
from sparseflow.plotting.table import Table
from sparseflow.report.compare import Compared, Difference, Versus
from sparseflow.report.figures.pairs import pairs_figure


def sentences(compared: Compared) -> list[str]:
    """What came of it, one sentence a recipe, and why the seeds are paired."""
    return [
        *(_verdict(each, compared) for each in compared.versus),
        *(_pairing(each, compared) for each in compared.versus),
        _tests(compared),
    ]


def _verdict(versus: Versus, compared: Compared) -> str:
    n, (dead, theirs) = len(compared.seeds), versus.dead
    counts = (
        f"{versus.recipe}: {dead} of {count(n, 'run')} died, of {compared.baseline} {theirs} "
        f"(exact McNemar test: p = {short(versus.p_dead)})"
    )
    accuracy = versus.differences[0].comparison
    if accuracy is None:
        return f"{counts}; {count(len(versus.living), 'pair')} of living runs: too few to compare."
    return (
        f"{counts}; over the {count(len(versus.living), 'pair')} of living runs its test accuracy "
        f"differs by {estimate(accuracy.difference, signed)} points "
        f"({_p(versus.differences[0])})."
    )


def _pairing(versus: Versus, compared: Compared) -> str:
    two = f"{versus.recipe} and {compared.baseline}"
    if versus.shares:
        return f"Seeds pair the runs of {two}, which share {listing(versus.shares)}."
    return (
        f"Seeds pair the runs of {two} by number alone: they share neither draws nor masks nor "
        "order, so pairing makes the intervals no narrower."
    )


def _tests(compared: Compared) -> str:
    pairs = sorted({len(each.living) for each in compared.versus if len(each.living) > 1})
    least = listing([f"{short(2 / 2**n)} for {n} pairs" for n in pairs])
    return (
        "A difference is the recipe's value less the baseline's, with a 95 % t interval; exact p "
        f"counts all flips of signs{f', and is at least {least}' if pairs else ''}. Holm's "
        f"correction is over the {count(len(compared.versus), 'comparison')} of each metric. "
        "Seconds are of runs that were not interrupted; operations are counted without zeros."
    )


def _p(difference: Difference) -> str:
    assert difference.comparison is not None
    text = f"exact p = {short(difference.comparison.p_exact)}"
    return f"{text}, by Holm {short(difference.p_holm)}"


def table(compared: Compared) -> Table:
    """One row for each recipe and metric; the sentences are its notes."""
    rows = [
        {
            "recipe": versus.recipe,
            "metric": compared.metrics[each.metric],
            "pairs": str(len(each.values)),
            "mean": _mean(each.metric, each.other),
            compared.baseline: _mean(each.metric, each.baseline),
            "difference": "–"
            if each.comparison is None
            else estimate(each.comparison.difference, signed),
            "p": "–" if each.comparison is None else short(each.comparison.p_exact),
            "Holm": short(each.p_holm),
        }
        for versus in compared.versus
        for each in versus.differences
    ]
    title = f"Against {compared.baseline}, seeds {seeds([str(s) for s in compared.seeds])}."
    return Table.of(title, rows)


def markdown_table(compared: Compared) -> str:
    """The table, then the sentences."""
    shown = table(compared)
    return "\n\n".join([shown.title, shown.markdown().strip(), *sentences(compared)]) + "\n"


def _mean(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric == "test_accuracy" and math.isfinite(value) else short(value)


def as_data(compared: Compared) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        "baseline": compared.baseline,
        "seeds": list(compared.seeds),
        "metrics": compared.metrics,
        "runs": [vars(outcome) for outcome in compared.outcomes],
        "versus": [
            {
                **vars(versus),
                "differences": [_plain(each) for each in versus.differences],
            }
            for versus in compared.versus
        ],
        "sentences": sentences(compared),
    }


def _plain(difference: Difference) -> dict[str, Any]:
    comparison = difference.comparison
    interval: Estimate | None = comparison.difference if comparison else None
    return {
        "metric": difference.metric,
        "values": difference.values,
        "baseline": difference.baseline,
        "other": difference.other,
        "difference": interval.value if interval else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "p": comparison.p if comparison else None,
        "p_exact": comparison.p_exact if comparison else None,
        "p_holm": difference.p_holm,
        "effect": comparison.effect if comparison else None,
    }


def write_comparison(compared: Compared, out: Path) -> list[Path]:
    """Write a comparison as Markdown, LaTeX, CSV, JSON, SVG and PNG.

    Raises:
        SparseflowError: if matplotlib is missing.
        StoreError: if the folder cannot be written.
    """
    figure, shown = pairs_figure(compared), table(compared)
    contents: dict[str, str | bytes] = {
        "comparison.md": markdown_table(compared),
        "comparison.csv": shown.csv(),
        "comparison.tex": shown.latex(),
        "comparison.json": msgspec.json.format(msgspec.json.encode(as_data(compared)), indent=1),
        "comparison.svg": style.svg(figure),
        "comparison.png": style.png(figure),
    }
    for name, content in contents.items():
        write_atomic(out / name, content)
    return [out / name for name in contents]
