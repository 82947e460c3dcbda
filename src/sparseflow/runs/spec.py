"""The run specification: plain frozen data, from which a run follows entirely.

A specification holds the specifications of its parents, so lineage is data: a
ticket, its pruning run and what is measured between them form one graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal

import msgspec

from sparseflow.core.choices import Execution
from sparseflow.core.errors import SpecError
from sparseflow.core.fields import exact
from sparseflow.core.values import UnknownKindError, UnknownValue, Value, to_data
from sparseflow.core.values import from_data as value_from
from sparseflow.init import GLOROT, INITS, Initialisation
from sparseflow.topology import METHODS, Method, Static


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every part."""


class Seeds(_Spec, frozen=True):
    """Seeds of the three sources of randomness."""

    init: int = 0
    mask: int = 0
    data: int = 0


class Data(_Spec, frozen=True):
    """Data set, the size of the probe batches cut from its start, and a limit for quick trials.

    ``augment`` varies the training examples as the data set's literature does;
    probes are never varied. ``image`` is the side that ImageNet's images are brought to.
    """

    name: str = "mnist"
    probe: int = 1000
    limit: int | None = None
    augment: bool = False
    image: int = 224


class Model(_Spec, frozen=True):
    """Architecture; ``shrink`` solves the widths from the parameters of a sparse one."""

    name: str = "lenet5"
    widths: tuple[int, ...] = ()
    shrink: bool = False


class FullMask(_Spec, frozen=True, tag_field="kind", tag="full"):
    """Every weight active: a dense network."""


class _RandomMask(_Spec, frozen=True, tag_field="kind"):
    """``density`` is the run's own unless another is given, as for a method that prunes."""

    pattern: Literal["random", "uneven", "constant_fan_in"] = "random"
    density: float | None = None


class UniformMask(_RandomMask, frozen=True, tag="uniform"):
    """The same density in every layer."""


class ErMask(_RandomMask, frozen=True, tag="er"):
    """Erdős–Rényi."""


class ErkMask(_RandomMask, frozen=True, tag="erk"):
    """Erdős–Rényi with kernel sizes."""


class ParentMask(_Spec, frozen=True, tag_field="kind", tag="parent"):
    """The final mask of another run."""

    run: RunSpec


class ShuffledMask(_Spec, frozen=True, tag_field="kind", tag="shuffled"):
    """The final mask of another run, shuffled within each layer."""

    run: RunSpec


MaskSource = FullMask | UniformMask | ErMask | ErkMask | ParentMask | ShuffledMask


class FreshWeights(_Spec, frozen=True, tag_field="kind", tag="fresh"):
    """Weights drawn as ``init`` says."""


class ParentWeights(_Spec, frozen=True, tag_field="kind", tag="parent"):
    """Weights of another run: at a kept step (0 is its initialisation), or at its end."""

    run: RunSpec
    step: int | Literal["end"] = 0


class Optimizer(_Spec, frozen=True):
    """Optimiser and learning rate.

    ``weight_decay`` is PyTorch's (an L2 penalty of λ‖w‖² is 2λ), on kernels only.
    ``inner_momentum`` keeps the learning rate inside the velocity, as the
    authors' code does.
    """

    kind: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    inner_momentum: bool = True
    weight_decay: float = 1e-3
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[int, ...] = ()
    warmup: int = 0


class Train(_Spec, frozen=True):
    """Length of training, its loss, and what is kept of it.

    ``keep``: steps between checkpoints. ``resume``: steps between those that an
    interrupted run goes on from, of which the last is kept; it does not enter the
    hash, since it changes nothing of the result.
    """

    steps: int = 11_719
    batch: int = 128
    keep: int = 1000
    resume: int = 500
    label_smoothing: float = 0.0


class Measure(_Spec, frozen=True):
    """Steps between measurements on the way.

    ``every``: of gradient flow. ``updates``: of gradient flow just before and just
    after a mask update, at most one in that many steps; 0 for none. ``evaluate``: of
    accuracy on the test set.
    """

    every: int = 200
    updates: int = 100
    evaluate: int = 1000


class RunSpec(_Spec, frozen=True):
    """One run. Every field can be set from the command line with ``--set``.

    ``execution`` is masked dense, truly sparse, or chosen when the run starts.
    """

    recipe: str = ""
    density: float = 0.05
    data: Data = Data()
    model: Model = Model()
    mask: MaskSource = FullMask()
    init: Initialisation = GLOROT
    weights: FreshWeights | ParentWeights = FreshWeights()
    method: Method = Static()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    measure: Measure = Measure()
    seeds: Seeds = Seeds()
    execution: Execution = "auto"


LETTERS = re.compile(r"[\w+\-.:/=, ]{0,200}")


VALUES = {Method: METHODS, Initialisation: INITS}
"""Registries of the parts of a specification that are values."""


class UnknownMethod(UnknownValue, Method):
    """A method that is not registered here."""


class UnknownInit(UnknownValue, Initialisation):
    """An initialisation that is not registered here."""


def _read_value(kind: type, content: Any) -> Any:
    """Read a method or an initialisation; one that is not registered stays as it is."""
    if isinstance(content, kind):
        return content
    registry = VALUES[kind]
    try:
        return value_from(content, registry)
    except SpecError as error:
        name = content.get("kind") if isinstance(content, dict) else None
        users = name in registry and registry.entry(name).home  # its class may have changed
        if not (users or isinstance(error, UnknownKindError)):
            raise
        return {Method: UnknownMethod, Initialisation: UnknownInit}[kind](content, str(error))


def from_data(content: Any) -> RunSpec:
    """Read a specification from JSON-like data; only listed fields of listed types are made.

    Nothing is imported: a method or an initialisation that is not registered is
    kept as data, and refused when it is run.

    Raises:
        SpecError: if it is not one.
    """
    try:
        spec = msgspec.convert(content, RunSpec, dec_hook=_read_value)
        lineage = [spec, *ancestors(spec)]
    except msgspec.ValidationError as error:
        raise SpecError(str(error)) from error
    except RecursionError as error:
        raise SpecError("a run within a run within a run, too often") from error
    for run in lineage:
        check_name(run.recipe)
    return spec


def check_name(recipe: str) -> None:
    """Refuse a name that could do harm where it is shown: on a page, in a table, on a terminal.

    Raises:
        SpecError: if it has other signs than letters, digits and a few more.
    """
    if not LETTERS.fullmatch(recipe):
        raise SpecError(
            f"recipe {recipe[:200]!r} has more than 200 signs, or others than letters, "
            "digits, blanks and + - . , : / = _"
        )


def parents(spec: RunSpec) -> list[RunSpec]:
    """Runs that must be finished first, without repeats."""
    runs = [part.run for part in (spec.mask, spec.weights) if hasattr(part, "run")]  # type: ignore[union-attr]
    return runs[:1] if len(runs) == 2 and runs[0] == runs[1] else runs


def ancestors(spec: RunSpec) -> Iterator[RunSpec]:
    """All runs that come before, oldest first (one may appear twice)."""
    for parent in parents(spec):
        yield from ancestors(parent)
        yield parent


def generation(spec: RunSpec) -> int:
    """0 without parents, else one more than the oldest parent's.

    It enters the names of the random streams, so that a run never repeats the
    draws of the runs it comes from: a scratch run is not its own ticket.
    """
    return 1 + max((generation(p) for p in parents(spec)), default=-1)


def as_data(spec: RunSpec) -> Any:
    """Turn into what :func:`from_data` reads; equal specifications give equal data."""
    return essential(spec)


@cache
def fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Fields of a part; looked up once, since that evaluates all annotations again."""
    return msgspec.structs.fields(kind)


def essential(part: Any, without: Sequence[str] = ()) -> Any:
    """Fields that differ from their defaults, and the kind of each part."""
    if isinstance(part, Value):
        return to_data(part)
    if not isinstance(part, msgspec.Struct):
        return part
    kept = {
        field.name: essential(exact(getattr(part, field.name), field.type), without)
        for field in fields(type(part))
        if field.name not in without and getattr(part, field.name) != field.default
    }
    config = part.__struct_config__
    return {config.tag_field: config.tag, **kept} if config.tag_field else kept
