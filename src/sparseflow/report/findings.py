"""Sentences that say what these runs show; every word follows from their values."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from sparseflow.plotting.formats import accuracy, change, count, finite, listing, percent, short
from sparseflow.plotting.vocabulary import inits_in_order, mark_of, parse_recipe
from sparseflow.report.results import Number, Results, StartValues
from sparseflow.report.summary import Row, changes, early_window, rows

Table = dict[str, Row]

DENSE = ("dense", "small-dense")
BEST = 3
"""Sparse networks that the first sentence names."""


def findings(results: Results) -> list[str]:
    """The few sentences at the head of the page."""
    table = compared(results)
    sentences = [
        ranking(results),
        deaths(results),
        dead_or_alive(table),
        dynamic(table),
        ticket_accuracy(table),
        ticket_norm(table),
        update_changes(table),
        signal_at_start(results),
    ]
    return [sentence for sentence in sentences if sentence]


def compared(results: Results) -> Table:
    """Rows of the shared settings by recipe, those that are what their recipe's name says."""
    return {row.recipe: row for row in rows(results) if not row.variant and _as_named(row)}


def _as_named(row: Row) -> bool:
    told = [setting for run in row.runs if run.told for setting in run.told.settings]
    return not any(re.match(r"(method|mask|weights)=|init\b", setting) for setting in told)


def ranking(results: Results) -> str:
    """The best sparse networks first, each with its range, and what the dense one reaches."""
    living = [row for row in rows(results) if row.median is not None]
    living.sort(key=lambda row: -(row.median or 0))
    sparse = [row for row in living if parse_recipe(row.recipe).method not in DENSE]
    dense = "; ".join(_standing(row) for row in living if row not in sparse)
    if not sparse:
        return f"Accuracy: {dense}." if dense else ""
    best, *others = sparse
    text = f"Best of the sparse networks: {_standing(best)}" if others else _standing(best)
    if others:
        text += f"; then {'; '.join(map(_standing, others[: BEST - 1]))}{_apart(best, others[0])}"
    if len(others) >= BEST:
        text += f"; {count(len(others) - BEST + 1, 'other')} below"
    return text + (f". For comparison: {dense}." if dense else ".")


def _standing(row: Row) -> str:
    if row.interval:
        return f"{row.name}, {_median(row)} [{'–'.join(map(accuracy, row.interval))}]"
    return f"{row.name}, {_median(row)} (living: {count(len(row.living), 'seed')})"


def _apart(best: Row, other: Row) -> str:
    if not best.interval or not other.interval:
        return ""
    overlap = best.interval[0] <= other.interval[1]
    return f" (the ranges of the first two {'overlap' if overlap else 'do not overlap'})"


def deaths(results: Results) -> str:
    """How many runs died, and of which recipes."""
    dead, of = sum(run.dead for run in results.runs), count(len(results.runs), "run")
    below = f"under {results.dead_below:g} %"
    if not results.runs:
        return ""
    if not dead:
        return f"None of {of} is dead, which is to end {below}." if len(results.runs) > 1 else ""
    said = [f"{row.name} {row.dead} of {len(row.runs)}" for row in rows(results) if row.dead]
    died = f"{dead} of {of} {'are dead, they end' if dead > 1 else 'is dead, it ends'} {below}"
    return f"{died}: {', '.join(said)}."


def dead_or_alive(table: Table) -> str:
    """How many runs die, with and without an initialisation that knows the mask."""
    names = ("shuffled", "static", "set", "rigl")
    plain = [table[n] for n in names if n in table]
    aware = [table[f"{n}+"] for n in names if f"{n}+" in table]
    said = [
        f"With {init} initialisation{where} ({_names(group)}), {_deaths(group)}."
        for init, where, group in (
            ("masked dense", " on a random mask", plain),
            ("per-neuron fan-in", "", aware),
        )
        if group
    ]
    return " ".join(said)


def dynamic(table: Table) -> str:
    """Where RigL ends, against the static mask, SET and the pruned network."""
    best, pruned = table.get("rigl+"), table.get("prune")
    if best is None or best.median is None:
        return ""
    others = [
        table[n]
        for n in ("shuffled+", "static+", "set+")
        if n in table and table[n].median is not None
    ]
    text = f"RigL with per-neuron fan-in initialisation (rigl+) ends at {accuracy(best.median)} %"
    if others:
        text += f", against {_medians(others)}"
    if pruned is not None and pruned.median is not None:
        gap = best.median - pruned.median
        side = "below" if gap < 0 else "above"
        text += f": {accuracy(abs(gap))} points {side} the pruned network ({_median(pruned)})"
    return text + "."


def ticket_accuracy(table: Table) -> str:
    """What a ticket gets from the mask alone, and what from its weights."""
    ticket = table.get("lottery")
    if ticket is None or ticket.median is None:
        return ""
    text = f"A lottery ticket ends at {accuracy(ticket.median)} %"
    scratch = table.get("scratch")
    if scratch is None:
        return text + "."
    text += "; its mask with other weights of the same distribution (scratch) "
    if scratch.median is None:
        return text + f"dies in {_all(scratch.dead)}."
    dies = f", {scratch.dead} of {len(scratch.runs)} runs dead" if scratch.dead else ""
    return text + f"at {accuracy(scratch.median)} %{dies}."


def ticket_norm(table: Table) -> str:
    """Is the ticket's gradient norm early on smaller or larger than the others'?"""
    ticket = table.get("lottery")
    if ticket is None or ticket.early is None:
        return ""
    own = ticket.early
    others = [
        (n, table[n].early) for n in ("shuffled+", "static+", "scratch+", "rigl+") if n in table
    ]
    parts = [
        (word, [f"{n} ({short(e)})" for n, e in others if e is not None and (e > own) == larger])
        for word, larger in (("smaller than that of", True), ("larger than that of", False))
    ]
    said = [f"{word} {listing(names)}" for word, names in parts if names]
    if not said:
        return ""
    over = early_window([*ticket.runs, *(run for n, _ in others for run in table[n].runs)])
    when = "At step 0 the" if over == "step 0 alone" else f"Over {over} the mean"
    return f"{when} gradient norm of a ticket, {short(own)}, is {' and '.join(said)}."


def kernels_at_start(table: Table) -> str:
    """Gradient norms at step 0 with the biases and without."""
    said = []
    for name in ("shuffled", "shuffled+", "lottery", "dense"):
        starts = [run.start for run in table[name].runs] if name in table else []
        totals, kernels = finite(s.total for s in starts), finite(s.kernels for s in starts)
        if totals and kernels:
            total, kernel = statistics.median(totals), statistics.median(kernels)
            said.append(f"{name} {short(total)}, of which kernels {short(kernel)}")
    return f"At step 0: {'; '.join(said)}." if said else ""


def update_changes(table: Table) -> str:
    """What one mask update does to the gradient norm, by method."""
    said = []
    for name in ("rigl+", "set+", "rigl-inverted+"):
        early = _early_changes(table[name]) if name in table else []
        if early:
            up = sum(value > 0 for value in early) / len(early)
            median = change(statistics.median(early))
            said.append(f"{name}: {median} (it rises in {percent(round(up, 2))})")
    if not said:
        return ""
    return (
        "Median change of the gradient norm at a mask update in the first half of training: "
        f"{'; '.join(said)}."
    )


def signal_at_start(results: Results) -> str:
    """Standard deviation of the output at initialisation, sparse and dense."""
    return _at_start(
        results,
        "standard deviation of the output on noise",
        [s.signal_noise for s in results.at_start],
    )


def norm_at_start(results: Results) -> str:
    """Gradient norm at initialisation, sparse and dense."""
    starts = results.at_start
    parts = {
        "gradient norm": [s.norms.total for s in starts],
        "gradient norm over kernels alone": [s.norms.kernels for s in starts],
    }
    return " ".join(_at_start(results, what, values) for what, values in parts.items()).strip()


def _at_start(results: Results, what: str, values: Sequence[Number]) -> str:
    points = list(zip(results.at_start, values, strict=True))
    sparse = {s.sparsity for s in results.at_start if s.sparsity}
    if not sparse:
        return ""
    nearest = min(sparse, key=lambda s: abs(s - (1 - results.density)))
    said = []
    for init in inits_in_order(s.init for s in results.at_start):
        value = _median_at(points, init, nearest)
        if value is not None:
            said.append(f"{short(value)} {mark_of(init).label}")
    dense = _median_at(points, None, 0.0)
    whole = f", where the dense network has {short(dense)}" if dense is not None else ""
    return f"At {percent(nearest)} sparsity the {what} is {listing(said)}{whole}."


def _median_at(
    points: list[tuple[StartValues, Number]], init: str | None, sparsity: float
) -> float | None:
    values = finite(
        v for s, v in points if s.sparsity == sparsity and (init is None or s.init == init)
    )
    return statistics.median(values) if values else None


def _early_changes(row: Row) -> list[float]:
    return [value for run in row.living for step, value in changes([run]) if 2 * step <= run.steps]


def _deaths(table: list[Row]) -> str:
    dead, total = sum(r.dead for r in table), sum(len(r.runs) for r in table)
    below = table[0].runs[0].dead_below
    medians = f"medians are {_medians(table)}" if len(_living(table)) > 1 else _medians(table)
    if dead == 0:
        return f"none of {count(total, 'run')} ends under {below:g} %: {medians}"
    if dead == total:
        return f"{_all(dead)} {'end' if dead > 1 else 'ends'} under {below:g} %, dead"
    ends = "end" if dead > 1 else "ends"
    return f"{dead} of {count(total, 'run')} {ends} under {below:g} %, dead; of the rest, {medians}"


def _living(table: list[Row]) -> list[Row]:
    return [row for row in table if row.median is not None]


def _names(table: list[Row]) -> str:
    return listing([row.recipe for row in table])


def _medians(table: list[Row]) -> str:
    return listing([f"{_median(row)} ({row.recipe})" for row in _living(table)])


def _median(row: Row) -> str:
    return f"{accuracy(row.median or 0)} %"


def _all(dead: int) -> str:
    return "the one run" if dead == 1 else f"all {dead} runs"
