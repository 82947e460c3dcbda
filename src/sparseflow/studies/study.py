"""What a study is, and the registry of all kinds of study.

A study is plain frozen data, as runs are. It names checkpoints by run and step;
runs are named by the hash of all that determines them, so a study's own hash
names its result for good. What it measures is a record, which is what the store
keeps. Each kind stands in a file of its own, which ends in :func:`register_study`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Union

import msgspec
from msgspec.structs import replace

from sparseflow.core.code import Code, code_of
from sparseflow.core.errors import SpecError, StoreError
from sparseflow.core.registry import Registry
from sparseflow.core.values import USE
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.table import Table
from sparseflow.runs import Run, Store
from sparseflow.runs.hashing import NUMERICS
from sparseflow.studies.evidence import Evidence


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


class Place(NamedTuple):
    """A run and one of its steps."""

    run: Run
    step: int


def label_of(recipe: str, seed: int, when: str) -> str:
    """Name a checkpoint for people: short recipe, seed, and start, end or step.

    >>> label_of("scratch:inits", 3, "end")
    'scratch:inits 3 end'
    """
    return f"{recipe} {seed} {when}"


def point_of(run: Run, step: int) -> Point:
    """Refer to a checkpoint of a run.

    Raises:
        StoreError: if the run does not keep that step, and will not.
    """
    spec = run.spec
    last = spec.train.steps
    if step != last and (step % spec.train.keep or not 0 <= step < last):
        raise StoreError(
            f"{run.label} keeps a checkpoint every {spec.train.keep:,} of its {last:,} steps, "
            f"none at step {step}"
        )
    when = {0: "start", last: "end"}.get(step, str(step))
    short = spec.recipe.rpartition("/")[2] or run.id[:8]
    return Point(run.id, step, label_of(short, spec.seeds.data, when))


def points_at(places: Sequence[Place]) -> tuple[Point, ...]:
    """Refer to several checkpoints; the run's id tells apart those of one label."""
    points = [point_of(*place) for place in places]
    labels = Counter(point.label for point in set(points))
    return tuple(
        p if labels[p.label] == 1 else replace(p, label=f"{p.label} ({p.run[:6]})") for p in points
    )


class Tagged(msgspec.Struct, frozen=True, tag_field="kind"):
    """Studies and records say in JSON of what kind they are."""


class Record:
    """What a study measures."""

    __slots__ = ()

    def tables(self) -> list[Table]:
        """Show it, as ``measure --probe`` does."""
        raise NotImplementedError


class Study:
    """What to measure."""

    __slots__ = ()

    @classmethod
    def of(cls, places: Sequence[Place], **options: Any) -> Study:
        """Make the study of a probe; the options are those that it was registered with."""
        return cls(points_at(places), **options)  # type: ignore[call-arg]

    @property
    def checkpoints(self) -> tuple[Point, ...]:
        """All that it needs."""
        raise NotImplementedError

    def measure(self, store: Store) -> Record:
        """Measure.

        Raises:
            StoreError: if a run or checkpoint is missing or damaged, or the runs
                cannot be compared.
            MeasureError: if the measurement has no meaning or did not converge.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class StudyKind:
    """A kind of study, see :func:`register_study`.

    Attributes:
        study: its type, a :class:`Tagged` struct.
        record: type of what ``study.measure`` returns, another with the same tag.
        probe: its name for ``measure --probe``.
        takes: fewest and most checkpoints of the probe; None for any number.
        options: of ``measure`` that the probe takes, handed to ``study.of``.
        figures: drawn from its records.
        order: where its figures stand on the page, the lowest first.
        version: of how it measures; raise it when that changes.
    """

    study: type[Study]
    record: type[Record]
    probe: str
    takes: tuple[int, int | None]
    options: tuple[str, ...] = ()
    figures: tuple[Figure[Evidence], ...] = ()
    order: int = 100
    version: int = 1

    @property
    def code(self) -> tuple[Code, ...]:
        """Source files of the user's that measure it; none for what comes with this package.

        Raises:
            SpecError: if a source cannot be read.
        """
        return tuple(dict.fromkeys(code_of(self.study) + code_of(self.record)))


STUDIES: Registry[StudyKind] = Registry("study", USE)
"""Every kind of study, by the tag that it has in JSON."""


def register_study(study: type[Study], record: type[Record], **facts: Any) -> None:
    """Make a kind of study known to the store, to ``measure --probe`` and to the report.

    Args:
        study: what to measure, a :class:`Tagged` struct.
        record: what it returns, another with the same tag.
        facts: the other fields of :class:`StudyKind`: ``probe`` and ``takes``, and more.

    Raises:
        SpecError: if its tag or its probe is taken, or study and record have different tags.

    Example:
        >>> class Length(Record, Tagged, frozen=True, tag="length"):
        ...     steps: int
        >>> class LengthStudy(Study, Tagged, frozen=True, tag="length"):
        ...     at: Point
        ...     def measure(self, store):
        ...         return Length(self.at.step)
        >>> register_study(LengthStudy, Length, probe="length", takes=(1, 1))
        >>> STUDIES["length"].probe
        'length'
    """
    kind = StudyKind(study=study, record=record, **facts)
    tag, other = tag_of(study), tag_of(record)
    if tag != other:
        raise SpecError(f"study {tag!r} has a record with the tag {other!r}: give both one tag")
    for name, present in STUDIES.items():
        if name != tag and present.probe == kind.probe:
            raise SpecError(f"probe {kind.probe!r} is that of study {name!r}: choose another name")
    STUDIES.add(tag, kind, study)


def tag_of(tagged: type[Study] | type[Record]) -> str:
    """Name that a study or a record bears in JSON."""
    return str(tagged.__struct_config__.tag)  # type: ignore[attr-defined]


def figures() -> list[Figure[Evidence]]:
    """List the figures of all kinds, in the order of the page."""
    kinds = sorted(STUDIES.values(), key=lambda kind: kind.order)
    return [figure for kind in kinds for figure in kind.figures]


def decode(kind: type, content: Any) -> Any:
    """Read a study or a record of any registered kind: a ``dec_hook`` for msgspec."""
    field = {Study: "study", Record: "record"}[kind]
    types = tuple(getattr(each, field) for each in STUDIES.values())
    return msgspec.convert(content, Union[types])  # noqa: UP007


def key(study: Study) -> str:
    """Hash of everything that determines the result, the user's code included; labels do not.

    Raises:
        SpecError: if the study is of an unknown kind, or its source cannot be read.
    """
    kind = STUDIES[tag_of(type(study))]
    content = {
        "numerics": NUMERICS,
        "method": kind.version,
        "study": _without_labels(msgspec.to_builtins(study)),
    }
    if digests := sorted(each.digest for each in kind.code):
        content["code"] = digests
    text = msgspec.json.encode(content, order="deterministic")
    return hashlib.sha256(text).hexdigest()[:16]


def _without_labels(part: object) -> object:
    if isinstance(part, dict):
        return {k: _without_labels(v) for k, v in part.items() if k != "label"}
    return [_without_labels(v) for v in part] if isinstance(part, list | tuple) else part
