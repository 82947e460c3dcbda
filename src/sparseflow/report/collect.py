"""From run folders to compact results; metrics are read line by line."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from sparseflow.core.errors import StoreError
from sparseflow.core.values import kind_of
from sparseflow.data import DATA
from sparseflow.init import marks
from sparseflow.plotting.vocabulary import inits_in_order, parse_recipe
from sparseflow.report.commands import told
from sparseflow.report.layers import layers
from sparseflow.report.results import (
    EvalCurve,
    FlowCurve,
    Norms,
    Number,
    Results,
    RunValues,
    StartValues,
    UpdateCurve,
)
from sparseflow.report.variants import Variant, shared_settings, short_name, variants
from sparseflow.runs import Run, identity, with_seeds
from sparseflow.runs.spec import Train
from sparseflow.studies import Record
from sparseflow.studies.values import rounded

AT_START = "init-"
"""Prefix of recipes that measure a network at initialisation and never train it."""

WINDOW, LENGTH = 1000, Train().steps
"""The early window, in the authors' number of steps."""

ROWS = 120
"""Points of a curve that are kept at most."""

RESOLUTION = 1e-5
"""Least predicted decrease of the loss that its float32 tells from rounding."""

NORMS = ("total", "kernels", "biases", "dense")
_Row = TypeVar("_Row", bound=tuple)


def collect(
    runs: Sequence[Run],
    *,
    family: str,
    title: str,
    published: bool = False,
    evidence: Sequence[Record] = (),
) -> Results:
    """Reduce finished runs to what the report shows.

    Runs are grouped by recipe. Runs of one recipe whose settings differ in more
    than the seeds are told apart by :attr:`RunValues.variant`.

    Args:
        runs: finished runs of one family.
        family: its name.
        title: what was run, in a few words.
        published: whether the settings are the authors' own (the recipes as
            they stand), so that their values may stand next to these.
        evidence: what studies of the runs' checkpoints measured.

    Raises:
        StoreError: if there are no runs, or one is unfinished or damaged.
    """
    unique = {run.id: run for run in runs}
    trained = [r for r in unique.values() if not short_name(r.spec).startswith(AT_START)]
    untrained = [r for r in unique.values() if short_name(r.spec).startswith(AT_START)]
    if not unique:
        raise StoreError(f"no run of {family} is finished: sparseflow sweep {family}")
    density, steps = shared_settings(trained or untrained)
    labels = variants(trained, density, steps)
    figures = [_run_values(run, labels[run.id], published) for run in trained]
    compared = _comparable(untrained)
    starts = [_start_values(run) for run in compared]
    others = tuple(run.label for run in untrained if run.id not in {each.id for each in compared})
    return Results(
        family,
        title,
        density,
        steps,
        tuple(sorted_runs(figures)),
        tuple(sorted_starts(starts)),
        tuple(evidence),
        others,
    )


def sorted_runs(runs: Sequence[RunValues]) -> list[RunValues]:
    """Runs in the order of the table."""
    return sorted(runs, key=lambda r: (parse_recipe(r.recipe).order, r.variant, r.seeds, r.id))


def sorted_starts(starts: Sequence[StartValues]) -> list[StartValues]:
    """Networks at initialisation in the order of the pictures."""
    order = inits_in_order(s.init for s in starts)
    return sorted(starts, key=lambda s: (order.index(s.init), s.sparsity, s.seed))


class _Thinned(Generic[_Row]):
    """Rows of a curve, of which never more than :data:`ROWS` are kept.

    When they get too many every other one is dropped, and from then on only
    every second, fourth, ... is taken. The last row always stays.
    """

    def __init__(self) -> None:
        self._rows: list[_Row] = []
        self._last: list[_Row] = []
        self._stride, self._seen = 1, 0

    def add(self, row: _Row) -> None:
        self._last = []
        if self._seen % self._stride == 0:
            self._rows.append(row)
            if len(self._rows) > ROWS:
                self._rows = self._rows[::2]
                self._stride *= 2
        else:
            self._last = [row]
        self._seen += 1

    def columns(self, width: int) -> list[tuple]:
        rows = self._rows + self._last
        return [tuple(column) for column in zip(*rows, strict=True)] if rows else [()] * width


class _Means:
    """Running means of gradient norms."""

    def __init__(self) -> None:
        self._sums, self._count = dict.fromkeys(NORMS, 0.0), 0

    def add(self, record: dict[str, Any]) -> None:
        self._count += 1
        for name in NORMS:
            self._sums[name] += record[name]

    def norms(self) -> Norms:
        return _norms({n: s / max(self._count, 1) for n, s in self._sums.items()})


class _EvalRow(NamedTuple):
    step: int
    accuracy: Number
    loss: Number


class _UpdateRow(NamedTuple):
    step: int
    before: Number
    after: Number


class _Reader:
    """Takes the records of one run as they come."""

    def __init__(self, window: int, every: int) -> None:
        self._window, self._every = window, every
        self.early, self.whole = _Means(), _Means()
        self.signal: dict[str, Any] = {}
        self.first: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self._flow: _Thinned[tuple] = _Thinned()
        self._evals: _Thinned[_EvalRow] = _Thinned()
        self._updates: _Thinned[_UpdateRow] = _Thinned()
        self._count = self._raised = 0

    def add(self, record: dict[str, Any]) -> None:
        match record["event"]:
            case "signal":
                self.signal = record
            case "flow":
                self._add_flow(record)
            case "eval":
                loss = rounded(record["test_loss"])
                row = _EvalRow(record["step"], rounded(record["test_accuracy"]), loss)
                self._evals.add(row)
            case "update":
                before, after = record["before"]["total"], record["after"]["total"]
                self._count += 1
                self._raised += after > before
                self._updates.add(_UpdateRow(record["step"], rounded(before), rounded(after)))

    def _add_flow(self, record: dict[str, Any]) -> None:
        step, gain = record["step"], record["decrease"]
        self.first = self.first or record
        self.last = record
        if step % self._every == 0:
            self.whole.add(record)
            if step <= self._window:
                self.early.add(record)
        names = ("total", "kernels", "biases", "effective", "loss")
        told = gain["predicted"] > RESOLUTION
        ratio = rounded(gain["actual"] / gain["predicted"]) if told else None
        values = [rounded(record[name]) for name in names]
        self._flow.add((step, *values, rounded(record["distance"]["l2"]), ratio))

    def flow(self) -> FlowCurve:
        return FlowCurve(*self._flow.columns(8))

    def evals(self) -> EvalCurve:
        return EvalCurve(*self._evals.columns(3))

    def updates(self) -> UpdateCurve | None:
        if not self._count:
            return None
        return UpdateCurve(*self._updates.columns(3), count=self._count, raised=self._raised)


def _read(run: Run, window: int) -> _Reader:
    reader = _Reader(window, run.spec.measure.every)
    try:
        for record in run.metrics():
            reader.add(record)
        if not reader.first or not reader.signal:
            raise StoreError(f"run {run.id} ({run.spec.recipe}): metrics.jsonl lacks step 0")
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"run {run.id} ({run.spec.recipe}): metrics.jsonl holds a record without {error}"
        ) from error
    return reader


def _run_values(run: Run, variant: Variant, published: bool) -> RunValues:
    spec, final = run.spec, run.result
    window = round(WINDOW * spec.train.steps / LENGTH)
    reader = _read(run, window)
    return RunValues(
        recipe=short_name(spec),
        variant=variant.label,
        id=run.id,
        seeds=(spec.seeds.init, spec.seeds.mask, spec.seeds.data),
        density=spec.density,
        steps=spec.train.steps,
        published=published,
        test_accuracy=float(f"{final['test_accuracy']:.5g}"),
        test_loss=rounded(final["test_loss"]),
        train_accuracy=rounded(final["train_accuracy"]),
        active=final["active_weights"],
        start=_norms(reader.first),
        early=reader.early.norms(),
        whole=reader.whole.norms(),
        window=window,
        distance=rounded(reader.last["distance"]["l2"]),
        cosine=rounded(reader.last["distance"]["cosine"]),
        **_signal(reader),
        flow=reader.flow(),
        evals=reader.evals(),
        updates=reader.updates(),
        classes=DATA[spec.data.name].classes,
        varied=variant.varied,
        told=told(run),
        layers=layers(run),
    )


def _start_values(run: Run) -> StartValues:
    reader, init = _read(run, 0), kind_of(run.spec.init) or ""
    return StartValues(
        init=marks()[init].name if init in marks() else init,
        sparsity=round(1 - run.spec.density, 6),
        seed=run.seed,
        id=run.id,
        norms=_norms(reader.first),
        **_signal(reader),
        told=told(run),
    )


def _signal(reader: _Reader) -> dict[str, Any]:
    return {
        "signal_images": rounded(reader.signal["images"]["output"]),
        "signal_noise": rounded(reader.signal["noise"]["output"]),
        "cut_off": reader.signal["neurons_without_input"],
    }


def _norms(record: dict[str, Any]) -> Norms:
    return Norms(*(rounded(record[name]) for name in NORMS))


def _comparable(runs: Sequence[Run]) -> list[Run]:
    """Keep, for each recipe, the runs of the settings that most have."""
    settings: dict[str, str] = {r.id: identity(with_seeds(r.spec, 0), r.code) for r in runs}
    recipes: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        recipes[short_name(run.spec)].append(run)
    chosen = []
    for group in recipes.values():
        counts = Counter(settings[run.id] for run in group)
        main = max(counts, key=lambda key: (counts[key], key))
        chosen += [run for run in group if settings[run.id] == main]
    return chosen
