"""What to measure on finished runs: plain frozen data, as runs are.

A study names checkpoints by run and step. Runs are named by the hash of all
that determines them, so a study's own hash names its result for good.
"""

from __future__ import annotations

import hashlib

import msgspec

from sparseflow.runs.spec import NUMERICS

RULES = ("rigl", "set", "rigl-inverted", "random")
"""Rules that an update is tried by: ``random`` drops and grows at random, a control."""


class Point(msgspec.Struct, frozen=True, order=True):
    """One checkpoint.

    Attributes:
        run: id of the run.
        step: one that the run kept.
        label: what to call it, for people; it does not enter the hash.
    """

    run: str
    step: int
    label: str = ""


def label_of(recipe: str, seed: int, when: str) -> str:
    """Name a checkpoint for people: short recipe, seed, and start, end or step.

    >>> label_of("scratch:inits", 3, "end")
    'scratch:inits 3 end'
    """
    return f"{recipe} {seed} {when}"


class _Study(msgspec.Struct, frozen=True, tag_field="kind"):
    """Base of every study."""


class SpectrumStudy(_Study, frozen=True, tag="spectrum"):
    """Hessian spectrum of the training loss at one checkpoint.

    Attributes:
        at: the checkpoint.
        examples: of the training set, from its start.
        exact: the full spectrum, or its density by Lanczos quadrature.
        steps: of Lanczos.
        probes: random vectors of the density.
    """

    at: Point
    examples: int = 1000
    exact: bool = True
    steps: int = 80
    probes: int = 4


class UpdateStudy(_Study, frozen=True, tag="update"):
    """Loss, gradient norm and Hessian spectrum before and after a mask update by each rule.

    Attributes:
        at: one and the same network for all rules.
        draws: updates tried by each rule that draws at random.
        examples: of the training set, from its start.
    """

    at: Point
    draws: int = 3
    examples: int = 1000


class LineStudy(_Study, frozen=True, tag="line"):
    """Loss and accuracy along the straight line from one checkpoint to another.

    Attributes:
        start: at α = 0.
        end: at α = 1.
        aligned: whether the start's units are first permuted to match the end's.
        points: values of α from -0.2 to 1.2.
        examples: of the training set, from its start; the test set is used whole.
    """

    start: Point
    end: Point
    aligned: bool = False
    points: int = 29
    examples: int = 60_000


class PlaneStudy(_Study, frozen=True, tag="plane"):
    """Training loss over the plane through three checkpoints."""

    corners: tuple[Point, Point, Point]
    points: int = 21
    examples: int = 5000


class DistanceStudy(_Study, frozen=True, tag="distance"):
    """Distances between all checkpoints, and their map."""

    points: tuple[Point, ...]


class Group(msgspec.Struct, frozen=True):
    """Runs whose predictions are compared with each other."""

    name: str
    members: tuple[Point, ...]


class AgreementStudy(_Study, frozen=True, tag="agreement"):
    """Predictions of groups of runs on the test set.

    Attributes:
        groups: compared within; each makes an ensemble.
        reference: every member is compared with it too; None for no one.
    """

    groups: tuple[Group, ...]
    reference: Point | None = None


Study = SpectrumStudy | UpdateStudy | LineStudy | PlaneStudy | DistanceStudy | AgreementStudy


def points_of(study: Study) -> list[Point]:
    """All checkpoints that a study needs."""
    match study:
        case SpectrumStudy() | UpdateStudy():
            return [study.at]
        case LineStudy():
            return [study.start, study.end]
        case PlaneStudy():
            return list(study.corners)
        case DistanceStudy():
            return list(study.points)
        case AgreementStudy():
            members = [point for group in study.groups for point in group.members]
            return members + ([study.reference] if study.reference else [])


METHODS = {"update": 2, "agreement": 2}
"""Version of how each kind of study measures, 1 if not named; raise it when that changes."""


def key(study: Study) -> str:
    """Hash of everything that determines the result; labels do not."""
    kind = str(type(study).__struct_config__.tag)
    content = {
        "numerics": NUMERICS,
        "method": METHODS.get(kind, 1),
        "study": _without_labels(msgspec.to_builtins(study)),
    }
    text = msgspec.json.encode(content, order="deterministic")
    return hashlib.sha256(text).hexdigest()[:16]


def _without_labels(part: object) -> object:
    if isinstance(part, dict):
        return {k: _without_labels(v) for k, v in part.items() if k != "label"}
    return [_without_labels(v) for v in part] if isinstance(part, list | tuple) else part
