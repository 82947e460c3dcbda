"""What the figures of studies are drawn from: records, and what others measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from sparseflow.studies.study import Record

R = TypeVar("R")


class Reference(msgspec.Struct, frozen=True):
    """What others measured of one recipe.

    Attributes:
        accuracy: test accuracy in %, one value a seed.
        start: gradient norm at step 0, over seeds.
        kernels: the same over kernels alone.
        early: mean gradient norm over the early window, over seeds.
        published: test accuracy in %, mean and standard deviation (None where
            none is given), as published.
        note: what else to know about the published value.
    """

    accuracy: tuple[float, ...] = ()
    start: tuple[float, ...] = ()
    kernels: tuple[float, ...] = ()
    early: tuple[float, ...] = ()
    published: tuple[float, float | None] | None = None
    note: str = ""


class Curvature(msgspec.Struct, frozen=True):
    """Largest and smallest Hessian eigenvalue at initialisation."""

    largest: float
    smallest: float


class References(msgspec.Struct, frozen=True):
    """What others measured, to be shown with these results where the settings are theirs.

    Attributes:
        name: of those that they ran themselves, such as "authors' code".
        source: whose measurements they are, for the notes of the table.
        runs: by recipe.
        curvature: at initialisation, by recipe.
        figures: which of their figures each of ours answers to, such as
            ``Figure 2 of the paper``.
        absent: what to say where the settings are others.
    """

    name: str = ""
    source: str = ""
    runs: Mapping[str, Reference] = {}
    curvature: Mapping[str, Curvature] = {}
    figures: Mapping[str, str] = {}
    absent: str = ""


@runtime_checkable
class Evidence(Protocol):
    """Records of studies, with what is needed to draw them; the report's results are one."""

    @property
    def evidence(self) -> tuple[Record, ...]:
        """All records."""
        ...

    @property
    def dead_below(self) -> float:
        """Test accuracy in % under which a run counts as dead."""
        ...

    @property
    def references(self) -> References:
        """What others measured, where the settings are theirs."""
        ...


def of(results: Evidence, kind: type[R]) -> list[R]:
    """List the records of one kind."""
    return [record for record in results.evidence if isinstance(record, kind)]


def first(results: Evidence, kind: type[R]) -> R | None:
    """Return the first record of one kind, if there is any."""
    return next(iter(of(results, kind)), None)
