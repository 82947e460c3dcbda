"""The probes of ``measure``: from words to a study, and from what it found to tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from rich.table import Table

import sparseflow as sf
from sparseflow.cli.show import table
from sparseflow.cli.work import step_of
from sparseflow.core.errors import SpecError, StoreError

Probe = Literal["flow", "hessian", "update", "interpolate", "plane", "distance", "agreement"]

NEEDS = {
    "flow": (1, 1),
    "hessian": (1, 1),
    "update": (1, 1),
    "interpolate": (2, 2),
    "plane": (3, 3),
    "distance": (2, None),
    "agreement": (2, None),
}
"""Fewest and most checkpoints of each probe."""


TAKES = {
    "hessian": ("--examples", "--exact"),
    "update": ("--examples",),
    "interpolate": ("--examples", "--aligned"),
    "plane": ("--examples",),
    "distance": (),
    "agreement": ("--reference",),
}
"""Options of each probe."""


@dataclass(frozen=True)
class Place:
    """A run and one of its steps."""

    run: sf.runs.Run
    step: int


def places(
    names: Sequence[str], seeds: Sequence[int], at: str, store: sf.runs.Store, **making: Any
) -> list[Place]:
    """Find the checkpoints that names stand for.

    Args:
        names: ids (or their start) and recipes, each with ``@STEP`` if wanted;
            a recipe stands for its runs of all seeds.
        seeds: of the recipes.
        at: step of the names that have none.
        store: where the runs are.
        making: scale and settings of the recipes.
    """
    found = []
    for name in names:
        which, mark, step = name.partition("@")
        if "/" in which:
            runs = [store.run(sf.recipes.make_spec(which, seed=seed, **making)) for seed in seeds]
            missing = [run.label for run in runs if not run.kept]
            if missing:
                raise StoreError(
                    f"{', '.join(missing)} not in {store.root}: sparseflow run {which}, with the "
                    "same --seed, --scale and --set"
                )
        else:
            runs = [store.find(which)]
        found += [Place(run, step_of(run, step if mark else at)) for run in runs]
    return found


def check_count(probe: Probe, found: Sequence[Place]) -> None:
    """Raise a SpecError unless a probe can take so many checkpoints."""
    low, high = NEEDS[probe]
    if low <= len(found) <= (high or len(found)):
        return
    need = f"{low}" if high else f"at least {low}"
    noun = "checkpoint" if need == "1" else "checkpoints"
    raise SpecError(f"--probe {probe} is of {need} {noun}, not of {len(found)}")


def make_study(
    probe: Probe,
    found: Sequence[Place],
    *,
    examples: int | None = None,
    exact: bool = False,
    aligned: bool = False,
    reference: Place | None = None,
) -> sf.studies.Study:
    """Build the study of a probe.

    Raises:
        SpecError: if it has too few or too many checkpoints.
    """
    check_count(probe, found)
    given = {
        "--examples": examples is not None,
        "--exact": exact,
        "--aligned": aligned,
        "--reference": reference is not None,
    }
    odd = [name for name, used in given.items() if used and name not in TAKES[probe]]
    if odd:
        raise SpecError(f"--probe {probe} takes no {' and no '.join(odd)}")
    some: dict[str, Any] = {} if examples is None else {"examples": examples}
    if probe == "update":
        place = found[0]
        short = place.run.spec.recipe.rpartition("/")[2]
        label = sf.studies.label_of(short, place.run.spec.seeds.data, str(place.step))
        return sf.studies.UpdateStudy(sf.studies.Point(place.run.id, place.step, label), **some)
    points = [sf.studies.point_of(place.run, place.step) for place in found]
    labels = Counter(point.label for point in set(points))
    points = [
        p if labels[p.label] == 1 else sf.studies.Point(p.run, p.step, f"{p.label} ({p.run[:6]})")
        for p in points
    ]
    match probe:
        case "hessian":
            return sf.studies.SpectrumStudy(points[0], exact=exact, **some)
        case "interpolate":
            return sf.studies.LineStudy(points[0], points[1], aligned, **some)
        case "plane":
            return sf.studies.PlaneStudy((points[0], points[1], points[2]), **some)
        case "distance":
            return sf.studies.DistanceStudy(tuple(points))
        case _:
            named = zip(points, [place.run.spec.recipe for place in found], strict=True)
            groups = groupby(sorted(named, key=lambda pair: pair[1]), key=lambda pair: pair[1])
            beside = reference and sf.studies.point_of(reference.run, reference.step)
            return sf.studies.AgreementStudy(
                tuple(sf.studies.Group(name, tuple(p for p, _ in pairs)) for name, pairs in groups),
                beside,
            )


def tables(found: sf.studies.Figures) -> list[Table]:
    """Show what a study found."""
    match found:
        case sf.studies.Spectrum():
            return [_values("Hessian spectrum", _spectrum(found))]
        case sf.studies.Updates():
            rows = [{"rule": "before", "churn": 0.0, **_around(found.before)}]
            rows += [{"rule": t.rule, "churn": t.churn, **_around(t.spectrum)} for t in found.after]
            return [table(f"one update of {found.label} by each rule", rows)]
        case sf.studies.Line():
            return _line(found)
        case sf.studies.Plane():
            return [_plane(found)]
        case sf.studies.Distances():
            return _distances(found)
        case sf.studies.Agreement():
            return _agreement(found)


def _values(title: str, values: dict[str, Any]) -> Table:
    return table(title, [{"": name, "value": value} for name, value in values.items()])


def _spectrum(found: sf.studies.Spectrum) -> dict[str, Any]:
    return {
        "checkpoint": found.label,
        "active parameters": found.parameters,
        "examples": found.examples,
        "loss": found.loss,
        "gradient norm": found.norm,
        "largest eigenvalue": found.largest,
        "smallest eigenvalue": found.smallest,
        "share of negative eigenvalues": found.negative,
        "… its interval": f"{found.low:.4g} – {found.high:.4g}",
        "computed": "every eigenvalue" if found.exact else "density by Lanczos quadrature",
    }


def _around(found: sf.studies.Spectrum) -> dict[str, Any]:
    return {
        "loss": found.loss,
        "norm": found.norm,
        "largest": found.largest,
        "smallest": found.smallest,
        "negative": round((found.negative or 0) * found.parameters),
    }


def _line(found: sf.studies.Line) -> list[Table]:
    rows = [
        {"α": a, "train loss": tl, "train %": ta, "test loss": el, "test %": ea}
        for a, tl, ta, el, ea in zip(
            found.alphas,
            found.train_loss,
            found.train_accuracy,
            found.test_loss,
            found.test_accuracy,
            strict=True,
        )
    ]
    head = {
        "from": found.labels[0] + (" (aligned)" if found.aligned else ""),
        "to": found.labels[1],
        "L2 distance": found.distance,
        "barrier of the training loss": found.barrier,
        "barrier of the training error, points": found.error_barrier,
        "barrier of the test loss": found.test_barrier,
    }
    return [_values("line", head), table("along the line", rows)]


def _plane(found: sf.studies.Plane) -> Table:
    rows = [
        {"y \\ x": y} | {f"{x:.3g}": loss for x, loss in zip(found.x, line, strict=True)}
        for y, line in zip(found.y, found.losses, strict=True)
    ]
    where = [
        f"{n} ({x:.3g}, {y:.3g})" for n, (x, y) in zip(found.labels, found.positions, strict=True)
    ]
    return table(f"training loss on the plane through {', '.join(where)}", rows)


def _distances(found: sf.studies.Distances) -> list[Table]:
    rows = [
        {
            "": f"{a} – {b}",
            "L2": found.l2[i][j],
            "cosine": found.cosine[i][j],
            "mask Hamming": found.hamming[i][j],
            "mask Jaccard": found.jaccard[i][j],
        }
        for i, a in enumerate(found.labels)
        for j, b in enumerate(found.labels)
        if i < j
    ]
    shown = [table("distances", rows)]
    if found.places:
        spots = zip(found.labels, found.places, strict=True)
        lines = [{"": label, "x": x, "y": y} for label, (x, y) in spots]
        shown.append(table(f"map of the L2 distances (MDS, stress {found.stress:.3f})", lines))
    return shown


def _agreement(found: sf.studies.Agreement) -> list[Table]:
    members = [
        {
            "": m.label,
            "accuracy %": m.accuracy,
            "loss": m.loss,
            "ECE": m.ece,
            "disagreement with the reference": m.reference,
            "KL": m.divergence,
        }
        for group in found.groups
        for m in group.members
    ]
    ensembles = [
        {
            "ensemble": group.name,
            "size": e.size,
            "accuracy %": e.accuracy,
            "loss": e.loss,
            "ECE": e.ece,
            "gain, points": f"{e.gain:+.2f} ± {e.error:.2f}",
        }
        for group in found.groups
        if (e := group.ensemble) is not None
    ]
    pairs = [
        {
            "": f"{a} – {b}",
            "disagreement": found.disagreement[i][j],
            "KL →": found.divergence[i][j],
            "KL ←": found.divergence[j][i],
        }
        for i, a in enumerate(found.labels)
        for j, b in enumerate(found.labels)
        if i < j
    ]
    return [table("members", members), table("pairs", pairs), table("ensembles", ensembles)]
