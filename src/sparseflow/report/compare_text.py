"""A comparison of recipes in sentences, as a Markdown table, and as plain data."""

from __future__ import annotations

import math
from typing import Any

from sparseflow.measure import Estimate
from sparseflow.report.compare import Compared, Difference, Versus
from sparseflow.report.text import count, estimate, listing, markdown, seeds, short, signed


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
        return f"{counts}; with {count(len(versus.living), 'pair')} that live there is no more."
    return (
        f"{counts}; over the {count(len(versus.living), 'pair')} that live its test accuracy "
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
    n = len(compared.seeds)
    return (
        "A difference is the recipe's value less the baseline's, with a 95 % t interval; exact p "
        f"counts all flips of signs: of {n} pairs it cannot be less than {short(2 / 2**n)}. Holm's "
        f"correction is over the {count(len(compared.versus), 'comparison')} of each metric. "
        "Seconds are of runs that were not interrupted; operations are counted without zeros."
    )


def _p(difference: Difference) -> str:
    assert difference.comparison is not None
    text = f"exact p = {short(difference.comparison.p_exact)}"
    return f"{text}, by Holm {short(difference.p_holm)}"


def markdown_table(compared: Compared) -> str:
    """One row for each recipe and metric, then the sentences."""
    head = ["recipe", "metric", "pairs", "mean", compared.baseline, "difference", "p", "Holm"]
    lines = [head, ["---"] * len(head)]
    for versus in compared.versus:
        for each in versus.differences:
            found = each.comparison
            lines.append(
                [
                    versus.recipe,
                    compared.metrics[each.metric],
                    str(len(each.values)),
                    _mean(each.metric, each.other),
                    _mean(each.metric, each.baseline),
                    "–" if found is None else estimate(found.difference, signed),
                    "–" if found is None else short(found.p_exact),
                    short(each.p_holm),
                ]
            )
    table = "\n".join(f"| {' | '.join(map(markdown, line))} |" for line in lines)
    title = f"Against {compared.baseline}, seeds {seeds([str(s) for s in compared.seeds])}."
    return "\n\n".join([title, table, *sentences(compared)]) + "\n"


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
    found = difference.comparison
    interval: Estimate | None = found.difference if found else None
    return {
        "metric": difference.metric,
        "values": difference.values,
        "baseline": difference.baseline,
        "other": difference.other,
        "difference": interval.value if interval else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "p": found.p if found else None,
        "p_exact": found.p_exact if found else None,
        "p_holm": difference.p_holm,
        "effect": found.effect if found else None,
    }
