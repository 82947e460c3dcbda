"""Recipes against each other, seed by seed: differences, exact tests, and what the pairs share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparseflow.core.errors import SpecError, StoreError
from sparseflow.data import DATA
from sparseflow.measure import Comparison, paired
from sparseflow.measure.comparison import holm, mcnemar
from sparseflow.plotting.formats import count, listing
from sparseflow.report.collect import LENGTH, WINDOW
from sparseflow.runs import Run, RunSpec
from sparseflow.runs.cost import training_flops
from sparseflow.runs.spec import FreshWeights, generation, parents
from sparseflow.studies import dead_below

TERA = 1e12

RunsBySeed = Mapping[int, Run]
"""Runs of one recipe by seed."""


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        recipe: as it was asked for.
        seed: of the pair.
        run: its id.
        execution: masked dense or truly sparse.
        dead: whether it ended under twice the accuracy of guessing.
        values: each metric; NaN where it is not known.
    """

    recipe: str
    seed: int
    run: str
    execution: str
    dead: bool
    values: dict[str, float]


@dataclass(frozen=True)
class Difference:
    """One metric of one recipe less that of the baseline, over the pairs that live.

    Attributes:
        metric: key of :attr:`Compared.metrics`.
        values: difference of each seed.
        baseline: mean of the baseline over these seeds.
        other: mean of the other.
        comparison: interval and tests; None for fewer than two pairs.
        p_holm: ``comparison.p_exact``, corrected over the recipes compared.
    """

    metric: str
    values: dict[int, float]
    baseline: float
    other: float
    comparison: Comparison | None
    p_holm: float = math.nan


@dataclass(frozen=True)
class Versus:
    """One recipe against the baseline.

    Attributes:
        recipe: the other one.
        shares: what the two runs of a seed have in common.
        dead: dead runs of it, and of the baseline.
        p_dead: exact p-value of McNemar's test.
        living: seeds of which both live.
        differences: by metric.
    """

    recipe: str
    shares: tuple[str, ...]
    dead: tuple[int, int]
    p_dead: float
    living: tuple[int, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Compared:
    """All recipes against the first.

    Attributes:
        baseline: its name.
        seeds: of the pairs.
        metrics: what is compared, with the words for it.
        outcomes: of every run.
        versus: one for each other recipe.
    """

    baseline: str
    seeds: tuple[int, ...]
    metrics: dict[str, str]
    outcomes: tuple[Outcome, ...]
    versus: tuple[Versus, ...]


def compare(groups: Mapping[str, RunsBySeed]) -> Compared:
    """Compare finished runs, seed by seed, with those of the first recipe.

    Args:
        groups: runs by recipe and seed; all have the same seeds.

    Raises:
        SpecError: if there are fewer than two recipes or seeds, or their test sets differ.
        StoreError: if a run is not finished, or damaged.

    Example:
        >>> import tempfile
        >>> from sparseflow.recipes import make_spec
        >>> from sparseflow.runs import Store, execute
        >>> short = ["mask=erk", "train.steps=2", "data.limit=300", "data.probe=64"]
        >>> def runs(recipe, store):
        ...     specs = [make_spec(recipe, seed=seed, settings=short) for seed in (0, 1)]
        ...     return {spec.seeds.data: execute(spec, store) for spec in specs}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     names = ("mlp-mnist/set", "mlp-mnist/set+")
        ...     compared = compare({name: runs(name, Store(folder)) for name in names})
        >>> compared.baseline, compared.versus[0].shares
        ('mlp-mnist/set', ('the starting mask', 'the order of the examples'))
    """
    check(groups)
    baseline, *others = groups
    numbers = tuple(groups[baseline])
    metrics = _metrics(groups[baseline][numbers[0]])
    outcomes = {name: _outcomes(name, group) for name, group in groups.items()}
    versus = [
        Versus(
            recipe=name,
            shares=_shared_by_all(groups[name], groups[baseline]),
            **_paired(outcomes[name], outcomes[baseline], metrics),
        )
        for name in others
    ]
    every = tuple(each for group in outcomes.values() for each in group.values())
    return Compared(baseline, numbers, metrics, every, _corrected(versus))


def check(groups: Mapping[str, Mapping[int, Run]]) -> None:
    """Refuse what cannot be compared, before anything is run.

    Raises:
        SpecError: see :func:`compare`.
    """
    first = next(iter(groups.values()), {})
    if len(groups) < 2 or len(first) < 2:
        raise SpecError(
            f"{count(len(groups), 'recipe')} over {count(len(first), 'seed')}: a paired comparison "
            "takes two recipes and two seeds, or more"
        )
    for (name, runs), (other, others) in itertools.combinations(groups.items(), 2):
        if same := {run.id for run in runs.values()} & {run.id for run in others.values()}:
            raise SpecError(
                f"{name} and {other} are the same runs with these settings "
                f"({', '.join(sorted(same))}): leave out the setting that makes them equal"
            )
    sets = sorted({run.spec.data.name for group in groups.values() for run in group.values()})
    if len(sets) > 1:
        raise SpecError(f"recipes of {listing(sets)} have no test set in common")


def shared(a: RunSpec, b: RunSpec) -> tuple[str, ...]:
    """Say what two runs have in common besides their settings: draws, masks, order."""
    alike = []
    streams = generation(a) == generation(b)
    if isinstance(a.weights, FreshWeights) and isinstance(b.weights, FreshWeights):
        if streams and (a.init, a.seeds.init) == (b.init, b.seeds.init):
            alike.append("the draw of the initial weights")
    elif a.weights == b.weights:
        alike.append("the initial weights")
    if (a.mask, a.density, a.seeds.mask) == (b.mask, b.density, b.seeds.mask):
        alike.append("the starting mask")
    elif parents(a) and parents(a) == parents(b):
        alike.append("the pruned parent")
    if streams and (a.data, a.train.batch, a.seeds.data) == (b.data, b.train.batch, b.seeds.data):
        alike.append("the order of the examples")
    return tuple(alike)


def _shared_by_all(group: RunsBySeed, baseline: RunsBySeed) -> tuple[str, ...]:
    of_each = [shared(group[seed].spec, baseline[seed].spec) for seed in baseline]
    return tuple(what for what in of_each[0] if all(what in each for each in of_each))


def _early(run: Run) -> list[int]:
    """Steps of the early window at which gradient flow was measured."""
    last = round(WINDOW * run.spec.train.steps / LENGTH)
    return [*range(0, last + 1, run.spec.measure.every)]


def _metrics(run: Run) -> dict[str, str]:
    """Metrics in words, as the first run measured them."""
    steps = _early(run)
    early = f"mean gradient norm, steps 0–{steps[-1]:,}" if steps[1:] else "gradient norm at step 0"
    return {
        "test_accuracy": "test accuracy, %",
        "test_loss": "test loss",
        "early": early,
        "whole": "mean gradient norm, whole training",
        "seconds": "seconds",
        "flops": "operations of training, 10¹²",
    }


def _outcomes(recipe: str, group: RunsBySeed) -> dict[int, Outcome]:
    outcomes = {}
    for seed, run in group.items():
        result = run.result
        outcomes[seed] = Outcome(
            recipe=recipe,
            seed=seed,
            run=run.id,
            execution=run.execution,
            dead=result["test_accuracy"] < dead_below(DATA[run.spec.data.name].classes),
            values={
                "test_accuracy": result["test_accuracy"],
                "test_loss": result["test_loss"],
                **_norms(run),
                "seconds": run.seconds if run.resumed_at == 0 else math.nan,
                "flops": training_flops(run) / TERA,
            },
        )
    return outcomes


def _norms(run: Run) -> dict[str, float]:
    """Mean gradient norms over the early window, and over the whole training."""
    every, early = run.spec.measure.every, _early(run)
    try:
        flow = {r["step"]: r["total"] for r in run.metrics() if r["event"] == "flow"}
        whole = [norm for step, norm in flow.items() if step % every == 0]
        return {
            "early": sum(flow[step] for step in early) / len(early),
            "whole": sum(whole) / len(whole),
        }
    except (KeyError, ZeroDivisionError) as error:
        raise StoreError(f"{run.label} ({run.id}): metrics.jsonl lacks {error}") from error


def _paired(
    ours: Mapping[int, Outcome], theirs: Mapping[int, Outcome], metrics: Mapping[str, str]
) -> dict[str, Any]:
    dead = {s for s in ours if ours[s].dead}, {s for s in theirs if theirs[s].dead}
    living = tuple(s for s in ours if s not in dead[0] | dead[1])
    return {
        "dead": (len(dead[0]), len(dead[1])),
        "p_dead": mcnemar(len(dead[0] - dead[1]), len(dead[1] - dead[0])),
        "living": living,
        "differences": tuple(
            _difference(metric, {s: (ours[s], theirs[s]) for s in living}) for metric in metrics
        ),
    }


def _difference(metric: str, pairs: Mapping[int, tuple[Outcome, Outcome]]) -> Difference:
    values = {s: (a.values[metric], b.values[metric]) for s, (a, b) in pairs.items()}
    values = {s: (a, b) for s, (a, b) in values.items() if math.isfinite(a) and math.isfinite(b)}
    a, b = {s: v[0] for s, v in values.items()}, {s: v[1] for s, v in values.items()}
    n = max(len(values), 1)
    return Difference(
        metric=metric,
        values={s: a[s] - b[s] for s in values},
        baseline=sum(b.values()) / n if values else math.nan,
        other=sum(a.values()) / n if values else math.nan,
        comparison=paired(a, b) if len(values) > 1 else None,
    )


def _corrected(versus: Sequence[Versus]) -> tuple[Versus, ...]:
    """Correct the p-values of each metric over the recipes that it is compared in."""
    columns = zip(*(v.differences for v in versus), strict=True)
    corrected = []
    for column in columns:
        p_values = [d.comparison.p_exact if d.comparison else math.nan for d in column]
        pairs = zip(column, holm(p_values), strict=True)
        corrected.append([replace(d, p_holm=p) for d, p in pairs])
    rows = zip(*corrected, strict=True)
    return tuple(replace(v, differences=row) for v, row in zip(versus, rows, strict=True))
