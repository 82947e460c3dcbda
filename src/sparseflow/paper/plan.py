"""All that the paper's MNIST table, figures and claims rest on: runs, and studies of them."""

from __future__ import annotations

from dataclasses import dataclass

from sparseflow.core.errors import SpecError
from sparseflow.core.schedules import Every
from sparseflow.recipes.family import GROUPS, start_recipes, train_recipes
from sparseflow.recipes.make import make_spec
from sparseflow.recipes.mnist import LENET5
from sparseflow.runs import RunSpec, Store
from sparseflow.runs.spec import Execution
from sparseflow.studies import (
    AgreementStudy,
    DistanceStudy,
    Group,
    LineStudy,
    PlaneStudy,
    Point,
    SpectrumStudy,
    Study,
    UpdateStudy,
    label_of,
    point_of,
)

SEEDS = {
    **dict.fromkeys(("prune", "lottery", "scratch", "scratch+"), 5),
    **dict.fromkeys(("shuffled", "shuffled+", "set+", "rigl+"), 5),
    **dict.fromkeys(GROUPS, 5),
    "scratch:inits": 10,
}
"""Seeds of each recipe: five as in the published table, ten where about half of the runs die,
and three of the others."""

MAPPED = 5
"""Members of each group on the map."""

TABLE = (*GROUPS, "prune", "rigl+", "set+")
"""Groups whose predictions are compared; the last two are not in the paper."""

AT_BEGINNING = ("dense", "shuffled", "shuffled-liu", "shuffled+", "lottery")
"""Recipes whose curvature at initialisation is measured."""


@dataclass(frozen=True)
class Effort:
    """How much the studies look at.

    Attributes:
        line: training examples of a line.
        plane: training examples of the plane.
        start: training examples of a spectrum at initialisation.
        starts: seeds of those.
        update: training examples of a spectrum around an update.
        networks: seeds of the networks that are updated.
        numbers: which of the run's updates, counted from 1.
        draws: of the rules that draw at random.
    """

    line: int
    plane: int
    start: int
    starts: int
    update: int
    networks: int
    numbers: tuple[int, ...]
    draws: int


FULL = Effort(20_000, 10_000, 5000, 3, 1000, 5, (10,), 3)
SHORT = Effort(5000, 1000, 1000, 1, 250, 2, (10,), 1)
"""For shortened runs, which nobody takes for the paper's."""


@dataclass(frozen=True)
class Reproduction:
    """What to run, and what to measure then.

    Attributes:
        runs: trained for the report's table and curves.
        at_start: measured at initialisation only.
        groups: children of one pruned network, for the studies.
        studies: of the kept checkpoints.
    """

    runs: tuple[RunSpec, ...]
    at_start: tuple[RunSpec, ...]
    groups: tuple[RunSpec, ...]
    studies: tuple[Study, ...]


def reproduction(
    family: str, store: Store, *, scale: float = 1.0, execution: Execution = "auto"
) -> Reproduction:
    """Plan the paper's MNIST evidence.

    Args:
        family: ``lenet5-mnist``.
        store: where the runs are or will be.
        scale: multiplies the steps and all schedules; below 1 the studies look
            at less, too.
        execution: of all runs.

    Raises:
        SpecError: for another family, for which the paper has no such table.
    """
    if family != LENET5.name:
        raise SpecError(f"the paper's table is of {LENET5.name}, not of {family!r}")
    specs = {
        name: tuple(
            make_spec(
                f"{family}/{name}", seed=seed, scale=scale, settings=[f"execution={execution}"]
            )
            for seed in range(SEEDS.get(name, 3))
        )
        for name in (*train_recipes(LENET5), *start_recipes(LENET5), *GROUPS)
    }

    def all_of(names: object) -> tuple[RunSpec, ...]:
        return tuple(spec for name in names for spec in specs[name])  # type: ignore[attr-defined]

    effort = FULL if scale >= 1 else SHORT
    studies = _Studies(specs, store, effort)
    return Reproduction(
        all_of(train_recipes(LENET5)),
        all_of(start_recipes(LENET5)),
        all_of(GROUPS),
        (
            studies.agreement(),
            studies.distances(),
            *studies.lines(),
            studies.plane(),
            *studies.spectra(),
            *studies.updates(),
        ),
    )


class _Studies:
    """The studies of one set of runs."""

    def __init__(self, specs: dict[str, tuple[RunSpec, ...]], store: Store, effort: Effort) -> None:
        self._specs, self._store, self._effort = specs, store, effort

    def agreement(self) -> AgreementStudy:
        groups = [Group(name, tuple(self._all(name, "end"))) for name in TABLE]
        return AgreementStudy(tuple(groups), self._point("prune", 0, "end"))

    def distances(self) -> DistanceStudy:
        points = [self._point("prune", 0, when) for when in ("start", "end")]
        points.append(self._point("lottery:orders", 0, "start"))
        for name in ("lottery:orders", "prune-restart:orders", "scratch:orders"):
            points += self._all(name, "end")[:MAPPED]
        for when in ("start", "end"):
            points += self._all("scratch:inits", when)[:MAPPED]
        unique: dict[tuple[str, int], Point] = {}
        for point in points:
            unique.setdefault((point.run, point.step), point)
        return DistanceStudy(tuple(unique.values()))

    def lines(self) -> list[LineStudy]:
        return [
            LineStudy(
                self._point(name, seed, when),
                self._point("prune", seed, "end"),
                aligned=aligned,
                examples=self._effort.line,
            )
            for name, when, aligned in (
                ("lottery", "start", False),
                ("lottery", "end", False),
                ("scratch", "start", False),
                ("scratch", "end", False),
                ("scratch", "end", True),
                ("rigl+", "end", False),
                ("rigl+", "end", True),
            )
            for seed in range(len(self._specs[name]))
        ]

    def plane(self) -> PlaneStudy:
        pruned, ticket, scratch = (
            self._point(name, 0, "end") for name in ("prune", "lottery", "scratch")
        )
        return PlaneStudy((pruned, ticket, scratch), examples=self._effort.plane)

    def spectra(self) -> list[SpectrumStudy]:
        return [
            SpectrumStudy(
                self._point(name, seed, "start"), self._effort.start, exact=False, probes=2
            )
            for name in AT_BEGINNING
            for seed in range(self._effort.starts)
        ] + [
            SpectrumStudy(self._point("rigl+", 0, "end"), self._effort.update, exact=exact)
            for exact in (True, False)
        ]

    def updates(self) -> list[UpdateStudy]:
        studies = []
        for number in self._effort.numbers:
            for spec in self._specs["rigl+"][: self._effort.networks]:
                when = spec.method.when  # type: ignore[attr-defined]  (what the recipe says)
                assert isinstance(when, Every)
                step = number * when.n
                label = label_of("rigl+", spec.seeds.data, str(step))
                at = Point(self._store.run(spec).id, step, label)
                studies.append(UpdateStudy(at, self._effort.draws, self._effort.update))
        return studies

    def _point(self, name: str, seed: int, when: str) -> Point:
        spec = self._specs[name][seed]
        return point_of(self._store.run(spec), 0 if when == "start" else spec.train.steps)

    def _all(self, name: str, when: str) -> list[Point]:
        return [self._point(name, seed, when) for seed in range(len(self._specs[name]))]
