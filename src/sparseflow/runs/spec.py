"""The run specification: plain frozen data, from which a run follows entirely.

A specification holds the specifications of its parents, so lineage is data: a
ticket, its pruning run and what is measured between them form one graph.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, Literal, get_args

import msgspec

from sparseflow.core.choices import Execution
from sparseflow.core.errors import SpecError

NUMERICS = 1
"""Raise it when a mended bug changes results: old runs are then not reused."""


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
    pattern: Literal["random", "uneven", "constant_fan_in"] = "random"


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


class InitSpec(_Spec, frozen=True):
    """Initialisation, see :class:`sparseflow.Init`; the default is the authors' Glorot uniform."""

    kind: Literal["dense", "layer", "neuron"] = "dense"
    fan: Literal["in", "out", "avg"] = "avg"
    distribution: Literal["normal", "uniform"] = "uniform"
    scale: float = 1.0


class FreshWeights(_Spec, frozen=True, tag_field="kind", tag="fresh"):
    """Weights drawn anew as ``init`` says."""


class ParentWeights(_Spec, frozen=True, tag_field="kind", tag="parent"):
    """Weights of another run: at a kept step (0 is its initialisation), or at its end."""

    run: RunSpec
    step: int | Literal["end"] = 0


class StaticMethod(_Spec, frozen=True, tag_field="kind", tag="static"):
    """Masks never change."""


class PruneMethod(_Spec, frozen=True, tag_field="kind", tag="prune"):
    """Gradual magnitude pruning per layer to the run's density, allocated over the layers."""

    start: int = 3000
    stop: int = 7000
    every: int = 100
    power: float = 3.0
    allocation: Literal["uniform", "erk"] = "uniform"


class _DynamicMethod(_Spec, frozen=True, tag_field="kind"):
    every: int = 100
    start: int = 0
    stop: int | None = None
    drop: float = 0.3
    anneal: Literal["lr", "cosine", "constant"] = "lr"


class SetMethod(_DynamicMethod, frozen=True, tag="set"):
    """Drop the smallest weights, grow at random."""


class RigLMethod(_DynamicMethod, frozen=True, tag="rigl"):
    """Drop the smallest weights, grow the largest gradients."""

    grow: Literal["probe", "batch"] = "probe"


class RigLInvertedMethod(_DynamicMethod, frozen=True, tag="rigl-inverted"):
    """Drop the smallest weights, grow the smallest gradients."""

    grow: Literal["probe", "batch"] = "probe"


MethodSpec = StaticMethod | PruneMethod | SetMethod | RigLMethod | RigLInvertedMethod


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
    """What is measured on the way: gradient flow, and accuracy on the test set."""

    every: int = 200
    updates: bool = True
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
    init: InitSpec = InitSpec()
    weights: FreshWeights | ParentWeights = FreshWeights()
    method: MethodSpec = StaticMethod()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    measure: Measure = Measure()
    seeds: Seeds = Seeds()
    execution: Execution = "auto"


LETTERS = re.compile(r"[\w+\-.:/=, ]{0,200}")


def from_data(content: Any) -> RunSpec:
    """Read a specification from JSON-like data; only listed fields of listed types are made.

    Raises:
        SpecError: if it is none.
    """
    try:
        spec = msgspec.convert(content, RunSpec)
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
    found = [part.run for part in (spec.mask, spec.weights) if hasattr(part, "run")]  # type: ignore[union-attr]
    if len(found) < 2:
        return found
    return list({identity(run): run for run in found}.values())


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


NAMELESS = ("recipe", "resume")
"""Fields that do not enter the hash."""


def identity(spec: RunSpec) -> str:
    """Hash of everything that determines the run, its parents included.

    The recipe's name does not enter, nor does ``train.resume``, nor a field that
    has its default: a new field with a default keeps old runs valid. Equal
    specifications have one identity.
    """
    try:
        return _hash(spec, NUMERICS)
    except TypeError:  # made by hand, with a list in the place of a tuple
        return _hash.__wrapped__(spec, NUMERICS)


@lru_cache(maxsize=2**16)
def _hash(spec: RunSpec, numerics: int) -> str:
    """Hash as above, kept: a sweep asks for each many times."""
    content = {"numerics": numerics, "spec": _essential(spec)}
    text = msgspec.json.encode(content, order="deterministic")
    return hashlib.sha256(text).hexdigest()[:16]


def as_data(spec: RunSpec) -> Any:
    """Turn into what :func:`from_data` reads; equal specifications give equal data."""
    return _essential(spec, without=())


@cache
def fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Fields of a part; looked up once, since that evaluates all annotations anew."""
    return msgspec.structs.fields(kind)


@cache
def _scalar(kind: Any) -> Callable[[Any], Any] | None:
    """What the numbers of a field are: bool, int or float."""
    return next((t for t in (bool, int, float) if t in (kind, *get_args(kind))), None)


def _number(value: Any, kind: Any) -> Any:
    """Write equal numbers alike, 1 as 1.0 where real ones belong: equal parts have one hash."""
    if isinstance(value, tuple):
        return tuple(_number(each, kind) for each in value)
    scalar = _scalar(kind) if isinstance(value, bool | int | float) else None
    if scalar is None:
        return value
    try:
        exact = scalar(value)
    except (OverflowError, ValueError):  # beyond all floats, infinite or no number
        return value
    return exact + 0.0 if scalar is float else exact if exact == value else value


def _essential(part: Any, without: Sequence[str] = NAMELESS) -> Any:
    """Fields that differ from their defaults, and the kind of each part."""
    if not isinstance(part, msgspec.Struct):
        return part
    kept = {
        field.name: _essential(_number(getattr(part, field.name), field.type), without)
        for field in fields(type(part))
        if field.name not in without and getattr(part, field.name) != field.default
    }
    config = part.__struct_config__
    return {config.tag_field: config.tag, **kept} if config.tag_field else kept
