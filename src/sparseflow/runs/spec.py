"""The run specification: plain frozen data, from which a run follows entirely.

A specification holds the specifications of its parents, so lineage is data: a
ticket, its pruning run and what is measured between them form one graph.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, Literal

import msgspec

from sparseflow.core.choices import Execution
from sparseflow.core.code import Code
from sparseflow.core.errors import SpecError
from sparseflow.core.values import UnknownKindError, UnknownValue, Value, code_in, exact, to_data
from sparseflow.core.values import from_data as value_from
from sparseflow.data import DATA
from sparseflow.init import GLOROT, INITS, Initialisation
from sparseflow.models import MODELS
from sparseflow.topology import METHODS, Method, Static

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
    found = [part.run for part in (spec.mask, spec.weights) if hasattr(part, "run")]  # type: ignore[union-attr]
    return found[:1] if len(found) == 2 and found[0] == found[1] else found


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


def identity(spec: RunSpec, code: Sequence[Code] | None = None) -> str:
    """Hash of everything that determines the run, its parents and the user's code included.

    The recipe's name does not enter, nor does ``train.resume``, nor a field that
    has its default: a new field with a default keeps old runs valid. Equal
    specifications have one identity.

    Args:
        spec: the run.
        code: source files that it rests on; by default those loaded here.

    Raises:
        SpecError: if a method or an initialisation has no name, or its code is not
            loaded.
    """
    digests = tuple(sorted(each.digest for each in (code_of_run(spec) if code is None else code)))
    try:
        return _hash(spec, NUMERICS, digests)
    except TypeError:  # made by hand, with a list in the place of a tuple
        return _hash.__wrapped__(spec, NUMERICS, digests)


@lru_cache(maxsize=2**16)
def _hash(spec: RunSpec, numerics: int, code: tuple[str, ...]) -> str:
    """Hash as above, kept: a sweep asks for each many times."""
    return _digest(_essential(spec), numerics, code)


def _digest(spec: Any, numerics: int, code: tuple[str, ...]) -> str:
    content = {"numerics": numerics, "spec": spec} | ({"code": code} if code else {})
    text = msgspec.json.encode(content, order="deterministic")
    return hashlib.sha256(text).hexdigest()[:16]


def identity_of_data(data: Any, code: Sequence[Code]) -> str:
    """Identity of what :func:`as_data` wrote, as it stands: nothing of it is read as a value."""
    digests = tuple(sorted(each.digest for each in code))
    return _digest(_nameless(data), NUMERICS, digests)


def _nameless(data: Any) -> Any:
    """Leave out what does not enter the hash, here and in the runs within."""
    kept = {name: value for name, value in data.items() if name != "recipe"}
    for name, value in kept.items():
        if name == "train" and isinstance(value, dict):
            kept[name] = {n: v for n, v in value.items() if n != "resume"}
        elif name in ("mask", "weights") and isinstance(value, dict) and "run" in value:
            kept[name] = {**value, "run": _nameless(value["run"])}
    return kept


def code_of_run(spec: RunSpec) -> tuple[Code, ...]:
    """Source files of the user's that a run and its ancestors rest on, each once.

    Raises:
        SpecError: if one is not loaded, or cannot be read.
    """
    found: dict[str, Code] = {}
    for run in (*ancestors(spec), spec):
        parts = [*code_in(run.method), *code_in(run.init)]
        for registry, name in ((MODELS, run.model.name), (DATA, run.data.name)):
            parts += registry.entry(name).code
        found |= {code.digest: code for code in parts}
    return tuple(sorted(found.values()))


def as_data(spec: RunSpec) -> Any:
    """Turn into what :func:`from_data` reads; equal specifications give equal data."""
    return _essential(spec, without=())


@cache
def fields(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Fields of a part; looked up once, since that evaluates all annotations again."""
    return msgspec.structs.fields(kind)


def _essential(part: Any, without: Sequence[str] = NAMELESS) -> Any:
    """Fields that differ from their defaults, and the kind of each part."""
    if isinstance(part, Value):
        return to_data(part)
    if not isinstance(part, msgspec.Struct):
        return part
    kept = {
        field.name: _essential(exact(getattr(part, field.name), field.type), without)
        for field in fields(type(part))
        if field.name not in without and getattr(part, field.name) != field.default
    }
    config = part.__struct_config__
    return {config.tag_field: config.tag, **kept} if config.tag_field else kept
