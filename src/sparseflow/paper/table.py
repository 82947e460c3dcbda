"""The paper's table for MNIST with ours: accuracy, ensembles, disagreement."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseflow.measure.statistics import Estimate, mean_interval, pair_interval
from sparseflow.paper.values import PRUNED, PUBLISHED, PUBLISHED_TABLE, PublishedLine
from sparseflow.plotting.formats import NONE, accuracy, estimate, finite, minus
from sparseflow.plotting.table import Column, Table
from sparseflow.plotting.vocabulary import group_label
from sparseflow.report.results import Results
from sparseflow.studies import Agreement
from sparseflow.studies.agreement import Ensemble, GroupRecord, blocks
from sparseflow.studies.evidence import first

HEADS = {
    "accuracy": "test accuracy %",
    "ensemble": "ensemble %",
    "disagreement": "disagreement",
    "pruned": "disagreement with pruned",
    "loss": "ensemble's loss",
    "ece": "ensemble's ECE",
}
"""Columns of the table and what to call them."""

IN_PAPER = tuple(HEADS)[:4]


@dataclass(frozen=True)
class Cell:
    """One value as text; parts are empty where there is none.

    Attributes:
        paper: the paper's.
        ours: ours.
        interval: of ours.
        more: what else to know about ours.
    """

    paper: str = ""
    ours: str = ""
    interval: str = ""
    more: str = ""


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
    median: float | None = None
    ensemble: Ensemble | None = None
    disagreement: Estimate | None = None
    pruned: Estimate | None = None

    def texts(self) -> dict[str, tuple[str, ...]]:
        """Value, interval and what else to know, of each column that there is."""
        texts: dict[str, tuple[str, ...]] = {}
        if self.accuracy is not None:
            middle = "" if self.median is None else f"median {accuracy(self.median)}"
            texts["accuracy"] = (*_apart(self.accuracy, accuracy), middle)
        for name in ("disagreement", "pruned"):
            value: Estimate | None = getattr(self, name)
            if value is not None:
                texts[name] = _apart(value, _share)
        if self.ensemble is not None:
            e = self.ensemble
            gain = "" if e.gain is None else f"{e.gain:+.2f} ± {e.error or 0:.2f}"
            alone = NONE if e.accuracy is None else accuracy(e.accuracy)
            texts["ensemble"] = (alone, "", gain.replace("-", "−"))
            for name, number in (("loss", e.loss), ("ece", e.ece)):
                texts[name] = (NONE if number is None else _share(number),)
        return texts


@dataclass(frozen=True)
class PublishedRow:
    """One line: the paper's values and ours; either may be missing."""

    start: str
    group: str
    paper: PublishedLine | None
    ours: Ours | None

    @property
    def runs(self) -> str:
        """How many runs of ours there are."""
        if self.ours is None:
            return ""
        return f"{self.ours.runs}" + f", {self.ours.dead} dead" * bool(self.ours.dead)

    @property
    def cells(self) -> dict[str, Cell]:
        """The text of every column."""
        theirs = _paper_texts(self.paper) if self.paper else {}
        own = self.ours.texts() if self.ours else {}
        return {name: Cell(theirs.get(name, ""), *own.get(name, ())) for name in HEADS}


def published_rows(results: Results) -> list[PublishedRow]:
    """Lines of the paper's table, then groups that it lacks.

    The paper's values hold for its own settings: where the runs have others
    they are left out.

    Returns:
        Nothing if no predictions were compared.
    """
    agreement = first(results, Agreement)
    if agreement is None:
        return []
    groups = {group.name: _summary(agreement, group, alive) for group, alive in blocks(agreement)}
    lines = PUBLISHED_TABLE.get(results.family, ())
    theirs = bool(results.main) and all(run.published for run in results.main)
    rows = [
        PublishedRow(
            line.start,
            line.group,
            line if theirs else None,
            _reference(agreement) if line.group == PRUNED else groups.get(line.group),
        )
        for line in lines
    ]
    listed = {line.group for line in lines}
    rows += [
        PublishedRow(group_label(name), name, None, ours)
        for name, ours in groups.items()
        if name not in listed
    ]
    return [row for row in rows if row.paper or row.ours]


def _summary(agreement: Agreement, group: GroupRecord, alive: list[int]) -> Ours:
    living = [member for member in group.members if not member.dead]
    dead = len(group.members) - len(living)
    reached = finite(member.accuracy for member in living)
    apart = finite(member.reference for member in living)
    table = np.array(agreement.disagreement, dtype=float)
    return Ours(
        runs=len(group.members),
        dead=dead,
        accuracy=mean_interval(reached) if reached else None,
        median=statistics.median(reached) if reached and dead else None,
        ensemble=group.ensemble,
        disagreement=pair_interval(table[np.ix_(alive, alive)]) if len(alive) > 1 else None,
        pruned=mean_interval(apart) if apart else None,
    )


def _reference(agreement: Agreement) -> Ours | None:
    """The pruned network itself: one run, wherever it is a member."""
    members = [member for group in agreement.groups for member in group.members]
    if len(agreement.labels) == len(members):
        return None
    for member in members:
        if member.label == agreement.labels[-1] and member.accuracy is not None:
            return Ours(1, int(member.dead), mean_interval([member.accuracy]))
    return None


def _paper_texts(line: PublishedLine) -> dict[str, str]:
    mean, deviation = line.accuracy
    texts = {"accuracy": accuracy(mean) + (f" ± {accuracy(deviation)}" if deviation else "")}
    if line.ensemble is not None:
        texts["ensemble"] = accuracy(line.ensemble)
    for name in ("disagreement", "pruned"):
        pair = getattr(line, name)
        if pair is not None:
            texts[name] = f"{_share(pair[0])} ± {_share(pair[1])}"
    return texts


def _apart(value: Estimate, shown: Callable[[float], str]) -> tuple[str, str]:
    text, _, interval = estimate(value, shown).partition(" ")
    return text, interval


def _share(value: float) -> str:
    return minus(f"{value:.4f}")


def published_notes(results: Results) -> str:
    """What the values of the table mean."""
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
        return f"{text} The paper's values are for its own settings, so none stand next to these."
    return text


def published_table(results: Results) -> Table:
    """The table for people: two columns for what the paper gives, its value and ours."""
    heads = ["start", "our runs"]
    for name, head in HEADS.items():
        heads += [f"{head}: paper", "ours"] if name in IN_PAPER else [head]
    rows = []
    for line in published_rows(results):
        row = [line.start, line.runs or NONE]
        for name, cell in line.cells.items():
            parts = (cell.ours, cell.interval, f"({cell.more})" if cell.more else "")
            own = " ".join(part for part in parts if part) or NONE
            row += [cell.paper or NONE, own] if name in IN_PAPER else [own]
        rows.append(tuple(row))
    return Table(PUBLISHED, tuple(map(Column, heads)), tuple(rows), published_notes(results))


def published_markdown(results: Results) -> str:
    """The table as Markdown."""
    return published_table(results).markdown()


def published_data(results: Results) -> list[dict[str, Any]]:
    """The table as plain data, flat; None where there is no value."""
    return [_data(row) for row in published_rows(results)]


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
