"""The paper's table for MNIST beside ours: accuracy, ensembles, disagreement."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseflow.measure.statistics import Estimate, mean_interval, pair_interval
from sparseflow.report.paper import PRUNED, PUBLISHED, PUBLISHED_TABLE, PublishedLine
from sparseflow.report.results import Agreement, Results
from sparseflow.report.text import NONE, accuracy, estimate, finite, markdown, minus
from sparseflow.report.vocabulary import GROUPS
from sparseflow.studies.figures import Ensemble, GroupFigures, Member


@dataclass(frozen=True)
class Ours:
    """What the runs of one group show; everything but the counts is over the living.

    Attributes:
        runs: of the group.
        dead: how many ended at chance.
        accuracy: mean test accuracy in %.
        median: of the same, where some are dead.
        ensemble: of the living.
        disagreement: mean over pairs.
        pruned: mean disagreement with the pruned solution, of all that are not it.
    """

    runs: int
    dead: int
    accuracy: Estimate | None
    median: float | None
    ensemble: Ensemble | None
    disagreement: Estimate | None
    pruned: Estimate | None


@dataclass(frozen=True)
class PublishedRow:
    """One line: the paper's figures and ours; either may be missing."""

    start: str
    group: str
    paper: PublishedLine | None
    ours: Ours | None


def published_rows(results: Results) -> list[PublishedRow]:
    """Lines of the paper's table, then groups that it lacks.

    The paper's figures hold for its own settings: where the runs have others
    they are left out.

    Returns:
        Nothing if no predictions were compared.
    """
    found = results.agreement
    if found is None:
        return []
    lines = PUBLISHED_TABLE.get(results.family, ())
    theirs = bool(results.main) and all(run.published for run in results.main)
    rows = [
        PublishedRow(line.start, line.group, line if theirs else None, _ours(found, line.group))
        for line in lines
    ]
    known = {line.group for line in lines}
    rows += [
        PublishedRow(GROUPS.get(group.name, group.name), group.name, None, _ours(found, group.name))
        for group in found.groups
        if group.name not in known
    ]
    return [row for row in rows if row.paper or row.ours]


def _ours(found: Agreement, name: str) -> Ours | None:
    if name == PRUNED:
        return _reference(found)
    place = 0
    for group in found.groups:
        if group.name == name:
            places = range(place, place + len(group.members))
            return _summary(found, group, places)
        place += len(group.members)
    return None


def _summary(found: Agreement, group: GroupFigures, places: Sequence[int]) -> Ours:
    alive = [i for i, member in zip(places, group.members, strict=True) if not member.dead]
    living = [member for member in group.members if not member.dead]
    reached = finite(member.accuracy for member in living)
    apart = finite(member.reference for member in living)
    table = np.array(found.disagreement, dtype=float)
    return Ours(
        runs=len(group.members),
        dead=len(group.members) - len(living),
        accuracy=mean_interval(reached) if reached else None,
        median=statistics.median(reached) if reached and len(living) < len(places) else None,
        ensemble=group.ensemble,
        disagreement=pair_interval(table[np.ix_(alive, alive)]) if len(alive) > 1 else None,
        pruned=mean_interval(apart) if apart else None,
    )


def _reference(found: Agreement) -> Ours | None:
    """The pruned network itself: one run, wherever it is a member."""
    total = sum(len(group.members) for group in found.groups)
    if len(found.labels) == total:
        return None
    members: list[Member] = [member for group in found.groups for member in group.members]
    for member in members:
        if member.label == found.labels[-1] and member.accuracy is not None:
            one = mean_interval([member.accuracy])
            return Ours(1, int(member.dead), one, None, None, None, None)
    return None


COLUMNS = ("accuracy", "ensemble", "disagreement", "pruned", "loss", "ece")
HEADS = {
    "accuracy": "test accuracy %",
    "ensemble": "ensemble %",
    "disagreement": "disagreement",
    "pruned": "disagreement with pruned",
    "loss": "ensemble's loss",
    "ece": "ensemble's ECE",
}
"""Columns of the table and what to call them; the paper has the first four."""


@dataclass(frozen=True)
class Cell:
    """One figure as text; empty where there is none.

    Attributes:
        head: of the column.
        paper: the paper's.
        ours: ours.
        interval: of ours.
        more: what else to know about ours.
    """

    head: str
    paper: str
    ours: str
    interval: str = ""
    more: str = ""


@dataclass(frozen=True)
class Line:
    """One line of the table as text."""

    start: str
    group: str
    runs: str
    dead: bool
    cells: tuple[Cell, ...]


def published_lines(results: Results) -> list[Line]:
    """Format the table."""
    return [_line(row) for row in published_rows(results)]


def _line(row: PublishedRow) -> Line:
    ours, own = row.ours, _our_texts(row.ours)
    runs = ""
    if ours is not None:
        runs = f"{ours.runs}, {ours.dead} dead" if ours.dead else f"{ours.runs}"
    theirs = _paper_texts(row.paper)
    cells = tuple(Cell(HEADS[c], theirs.get(c, ""), *own.get(c, ("",))) for c in COLUMNS)
    return Line(row.start, row.group, runs, bool(ours and ours.dead), cells)


def _our_texts(ours: Ours | None) -> dict[str, tuple[str, ...]]:
    if ours is None:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    if ours.accuracy is not None:
        middle = "" if ours.median is None else f"median {accuracy(ours.median)}"
        found["accuracy"] = (*_apart(ours.accuracy, accuracy), middle)
    for name in ("disagreement", "pruned"):
        value: Estimate | None = getattr(ours, name)
        if value is not None:
            found[name] = _apart(value, _share)
    if ours.ensemble is not None:
        e = ours.ensemble
        gain = "" if e.gain is None else f"{e.gain:+.2f} ± {e.error or 0:.2f}".replace("-", "−")
        found["ensemble"] = (NONE if e.accuracy is None else accuracy(e.accuracy), "", gain)
        for name, number in (("loss", e.loss), ("ece", e.ece)):
            found[name] = (NONE if number is None else _share(number),)
    return found


def _paper_texts(line: PublishedLine | None) -> dict[str, str]:
    if line is None:
        return {}
    mean, deviation = line.accuracy
    found = {"accuracy": accuracy(mean) + (f" ± {accuracy(deviation)}" if deviation else "")}
    if line.ensemble is not None:
        found["ensemble"] = accuracy(line.ensemble)
    for name in ("disagreement", "pruned"):
        pair = getattr(line, name)
        if pair is not None:
            found[name] = f"{_share(pair[0])} ± {_share(pair[1])}"
    return found


def _apart(found: Estimate, shown: Callable[[float], str]) -> tuple[str, str]:
    value, _, interval = estimate(found, shown).partition(" ")
    return value, interval


def _share(value: float) -> str:
    return minus(f"{value:.4f}")


def published_notes(results: Results) -> str:
    """What the figures of the table mean."""
    text = (
        "Ours: mean over the living runs [95 % interval]: Student's t over runs; for "
        "disagreement a jackknife over runs, since pairs share them. "
        f"Dead: test accuracy under {results.dead_below:g} %; counted, and left out of everything "
        "else. With an ensemble: its gain over the mean of its members, ± one standard error over "
        "the test images. ECE: expected calibration error."
    )
    if any(row.paper for row in published_rows(results)):
        return f"{text} Paper: {PUBLISHED}, mean ± standard deviation."
    if results.family in PUBLISHED_TABLE:
        return f"{text} The paper's figures are for its own settings, so none stand beside these."
    return text


def published_markdown(results: Results) -> str:
    """The table with two columns a figure, and its notes."""
    lines = published_lines(results)
    head = ["start", "our runs"]
    for name in COLUMNS:
        head += [f"{HEADS[name]}: paper", "ours"] if name in COLUMNS[:4] else [HEADS[name]]
    table = [head, ["---"] * len(head)]
    for line in lines:
        row = [line.start, line.runs or NONE]
        for name, cell in zip(COLUMNS, line.cells, strict=True):
            parts = (cell.ours, cell.interval, f"({cell.more})" if cell.more else "")
            own = " ".join(part for part in parts if part) or NONE
            row += [cell.paper or NONE, own] if name in COLUMNS[:4] else [own]
        table.append([markdown(cell) for cell in row])
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return f"{text}\n\n{published_notes(results)}\n"


def published_data(results: Results) -> list[dict[str, Any]]:
    """The table as plain data, flat; None where there is no figure."""
    return [_data(row) for row in published_rows(results)]


def published_csv(results: Results) -> str:
    """The table with unformatted numbers."""
    out = io.StringIO()
    lines = published_data(results)
    if lines:
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return out.getvalue()


def _data(row: PublishedRow) -> dict[str, Any]:
    paper, ours = row.paper, row.ours
    together = ours.ensemble if ours else None
    data: dict[str, Any] = {
        "start": row.start,
        "group": row.group,
        "runs": ours.runs if ours else None,
        "dead": ours.dead if ours else None,
        "median_accuracy": ours.median if ours else None,
    }
    for name in ("accuracy", "disagreement", "pruned"):
        own: Estimate | None = getattr(ours, name) if ours else None
        for field in ("value", "low", "high"):
            number = getattr(own, field) if own else math.nan
            data[f"{name}_{field}"] = number if math.isfinite(number) else None
        pair = getattr(paper, name) if paper else None
        data[f"paper_{name}"], data[f"paper_{name}_sd"] = pair or (None, None)
    for name in ("accuracy", "gain", "error", "loss", "ece"):
        data[f"ensemble_{name}"] = getattr(together, name) if together else None
    data["paper_ensemble"] = paper.ensemble if paper else None
    return data
