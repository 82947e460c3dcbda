"""Change a specification: ``--set`` paths, seeds, and scaling of all schedules."""

from __future__ import annotations

import copy
import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from sparseflow.core.errors import SparseflowError, SpecError, unknown
from sparseflow.core.expressions import is_call, parse
from sparseflow.core.fields import hints_of, is_required
from sparseflow.core.registry import Registry
from sparseflow.core.schedules import scaled_steps
from sparseflow.core.values import PARTS, Value, from_data, make, read_field
from sparseflow.init import INITS, NAMED
from sparseflow.runs.spec import VALUES, ParentWeights, RunSpec, Seeds, fields

SHARED = ("data", "model", "execution")
"""Parts that a run shares with its parents: setting them sets the parents' too."""

NAMES = {"optimizer": "kind", "model": "name", "data": "name"}
"""Parts that a word alone sets by this field: ``optimizer=adam``."""


def with_overrides(spec: RunSpec, settings: Sequence[str]) -> RunSpec:
    """Apply ``path=value`` settings, such as ``train.steps=2000`` or ``mask=erk``.

    Values are JSON, plain words, or written as in Python: ``method.drop=cosine(0.3)``.
    A part that has kinds may be set by its kind alone: ``mask=erk``,
    ``method=set``, ``init=fan_in``; fields that both kinds have are kept.
    ``data.*``, ``model.*`` and ``execution`` reach the parents as well; other fields
    of a parent are reached by path (``mask.run.train.steps``).

    Raises:
        SpecError: for an unknown field (with a suggestion) or an impossible value.
    """
    return _everywhere(assigned(spec, settings), lambda run: _checked(run, settings))


def assigned(spec: RunSpec, settings: Sequence[str]) -> RunSpec:
    """Apply settings as :func:`with_overrides` does, before their values are looked at together.

    Raises:
        SpecError: for an unknown field, or a value of another type.
    """
    for setting in settings:
        path, sign, text = setting.partition("=")
        if not sign or not path:
            raise SpecError(f"setting {setting!r} is not of the form path=value")
        spec = _set(spec, path.strip().split("."), _parse(text.strip()), path.strip())
    return spec


def path_of(setting: str) -> str:
    """Field that a setting is of.

    >>> path_of("train.steps=20")
    'train.steps'
    """
    return setting.partition("=")[0].strip()


def matches(spec: RunSpec, settings: Sequence[str]) -> bool:
    """Say whether a run has these settings already: setting them changes nothing.

    Raises:
        SpecError: as :func:`with_overrides`.
    """
    return assigned(spec, settings) == spec


def _checked(spec: RunSpec, settings: Sequence[str]) -> RunSpec:
    """Let methods and initialisations look at their fields, now that all are set."""
    changed = {}
    for name in ("method", "init"):
        try:
            changed[name] = _made_again(getattr(spec, name))
        except SparseflowError as error:
            about = [s.strip() for s in settings if re.search(rf"(^|\.){name}\b", s)]
            raise SpecError(f"{', '.join(about)}: {error}") from error
    return msgspec.structs.replace(spec, **changed)


def _made_again(value: Value) -> Value:
    parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}  # type: ignore[arg-type]
    made = {n: _made_again(part) if isinstance(part, Value) else part for n, part in parts.items()}
    return type(value)(**made)


def with_seeds(spec: RunSpec, seed: int) -> RunSpec:
    """Set all three seeds, here and in every ancestor."""
    return _everywhere(
        spec, lambda run: msgspec.structs.replace(run, seeds=Seeds(seed, seed, seed))
    )


def scaled(spec: RunSpec, factor: float) -> RunSpec:
    """Scale the steps and every schedule together, here and in every ancestor.

    The number of steps between two measurements stays, so that a short trial costs
    as little as it looks.

    Raises:
        SpecError: if the factor is not positive.
    """
    if not 0 < factor <= 100:
        raise SpecError(f"scale={factor} is not between 0 and 100")
    if factor == 1:
        return spec
    return _everywhere(spec, lambda run: _scaled_alone(run, factor))


def _scaled_alone(spec: RunSpec, factor: float) -> RunSpec:
    def times(value: int) -> int:
        return scaled_steps(value, factor)

    replace = msgspec.structs.replace
    weights, train, optimizer = spec.weights, spec.train, spec.optimizer
    if isinstance(weights, ParentWeights) and weights.step != "end":
        weights = replace(weights, step=times(weights.step))
    return replace(
        spec,
        method=spec.method.scaled(factor),
        weights=weights,
        optimizer=replace(
            optimizer,
            warmup=times(optimizer.warmup),
            milestones=tuple(times(m) for m in optimizer.milestones),
        ),
        train=replace(
            train, steps=times(train.steps), keep=times(train.keep), resume=times(train.resume)
        ),
    )


def _everywhere(spec: RunSpec, change: Callable[[RunSpec], RunSpec]) -> RunSpec:
    parts = {}
    for field in ("mask", "weights"):
        part = getattr(spec, field)
        if hasattr(part, "run"):
            parts[field] = msgspec.structs.replace(part, run=_everywhere(part.run, change))
    return change(msgspec.structs.replace(spec, **parts))


def _parse(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _set(spec: RunSpec, path: list[str], value: Any, shown: str) -> RunSpec:
    if path[0] in SHARED:
        return _everywhere(spec, lambda run: _replace(run, path, value, shown))
    return _replace(spec, path, value, shown)


def _replace(part: Any, path: list[str], value: Any, shown: str) -> Any:
    """Rebuild ``part`` with the field at ``path`` replaced, its type checked."""
    name, rest = path[0], path[1:]
    hints, tag = _fields_of(part)
    if name == tag and not rest:
        raise SpecError(f"set {shown.rpartition('.')[0]}={value} instead of {shown}")
    if name not in hints:
        where = f"field of {shown.rpartition('.')[0]}" if "." in shown else "field"
        raise SpecError(unknown(where, name, [*hints, *([tag] if tag else [])]))
    hint, current = hints[name], getattr(part, name)
    if rest == ["kind"] and "kind" not in _fields_of(current)[0]:
        rest = []
    if rest:
        new = _replace_inside(current, rest, value, name, shown)
    else:
        new = _new_value(part, name, hint, current, value, shown)
    return _with(part, name, new)


def _replace_inside(current: Any, rest: list[str], value: Any, name: str, shown: str) -> Any:
    if not isinstance(current, msgspec.Struct | Value):
        raise SpecError(f"{shown}: {name} is a plain value and has no field {rest[0]!r}")
    return _replace(current, rest, value, shown)


def _new_value(part: Any, name: str, hint: Any, current: Any, value: Any, shown: str) -> Any:
    """What a field becomes: another kind, a part set by its name, or plain data."""
    registry = VALUES.get(hint) or (PARTS if isinstance(current, Value) else None)
    if registry is not None:
        return _switch_value(current, registry, value, shown)
    if isinstance(value, str) and members(hint):
        if name in NAMES and isinstance(current, msgspec.Struct):
            return _named(current, NAMES[name], value, shown)
        return _switch(current, hint, value, shown)
    if isinstance(part, Value):
        return read_field(value, hint, shown, strict=False)
    return _convert(value, hint, shown)


def _named(current: msgspec.Struct, field: str, value: str, shown: str) -> Any:
    """Set a part by its name alone; what only another one has goes back to its default."""
    new = _replace(current, [field], value, f"{shown}.{field}")
    if shown == "optimizer" and value != "sgd":
        new = msgspec.structs.replace(new, inner_momentum=False)
        if value != "rmsprop":
            new = msgspec.structs.replace(new, momentum=0.0)
    return new


def _switch_value(current: Any, registry: Registry[Any], value: Any, shown: str) -> Any:
    """Another value of a registry's kinds: by kind alone, as in Python, or as data."""
    if isinstance(value, Mapping):
        return from_data(value, registry)
    if not isinstance(value, str):
        hint = f"; for its number set {shown}.value={value}" if hasattr(current, "value") else ""
        raise SpecError(
            f"{shown}={value!r} must be written as in Python, such as cosine(0.3){hint}"
        )
    if is_call(value):
        return parse(value, registry)
    if registry is INITS and value in NAMED:
        return NAMED[value]
    if registry is INITS and value not in INITS:
        raise SpecError(f"{unknown(shown, value, [*NAMED, *INITS])}; {registry.way}")
    return converted(current, registry[value], value, shown)


def converted(current: Any, cls: type[Any], kind: str, shown: str = "method") -> Any:
    """A value of another kind that keeps the fields which both kinds have.

    Raises:
        SpecError: if the other kind needs fields that are not there.
    """
    given = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if hasattr(current, field.name) and _fits(getattr(current, field.name), cls, field.name):
            given[field.name] = getattr(current, field.name)
        elif is_required(field):
            raise SpecError(
                f"{shown}={kind} needs {field.name}, which this recipe does not have: "
                f"write {shown}={kind}({field.name}=...)"
            )
    return make(cls, given, kind)


def _fits(value: Any, cls: type[Any], name: str) -> bool:
    try:
        read_field(value, hints_of(cls)[name], name)
    except SpecError:
        return False
    return True


def _switch(current: Any, union: Any, kind: str, shown: str) -> Any:
    kinds = {str(m.__struct_config__.tag): m for m in members(union) if m.__struct_config__.tag}
    if not kinds:
        raise SpecError(f"{shown}={kind}: {shown} has fields, set one of them: {shown}.FIELD=...")
    if kind not in kinds:
        raise SpecError(unknown(f"{shown.removesuffix('.kind')} kind", kind, kinds))
    chosen = kinds[kind]
    wanted = {f.name: f for f in fields(chosen)}
    shared = {n: getattr(current, n) for n in wanted if hasattr(current, n)}
    missing = [n for n, f in wanted.items() if f.required and n not in shared]
    if missing:
        raise SpecError(
            f"{shown}={kind} needs {', '.join(missing)}, which this recipe does not have"
        )
    return chosen(**shared)


def _with(part: Any, name: str, new: Any) -> Any:
    """Replace one field; a value looks at all of its fields only once all are set."""
    if isinstance(part, msgspec.Struct):
        return msgspec.structs.replace(part, **{name: new})
    draft = copy.copy(part)
    object.__setattr__(draft, name, new)
    return draft


def _convert(value: Any, kind: Any, shown: str) -> Any:
    words = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else (value,)
    if value not in words:
        raise SpecError(unknown(shown, str(value), words))
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SpecError(f"{shown}={value!r}: {error}") from error


def _fields_of(part: Any) -> tuple[dict[str, Any], str | None]:
    """Types of the fields of a part, and the name of the field that says its kind."""
    if isinstance(part, msgspec.Struct):
        return {f.name: f.type for f in fields(type(part))}, part.__struct_config__.tag_field
    if isinstance(part, Value):
        hints = hints_of(type(part))
        named = {f.name: hints[f.name] for f in dataclasses.fields(part) if f.init}  # type: ignore[arg-type]
        return named, None if "kind" in named else "kind"
    return {}, None


def members(kind: Any) -> list[type]:
    """Kinds of a part that is one of several; none for what is not a part."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return [m for m in typing.get_args(kind) if hasattr(m, "__struct_config__")]
    return [kind] if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else []
