"""Change a specification: ``--set`` paths, seeds, and scaling of all schedules."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sparseflow.core.errors import SpecError, unknown
from sparseflow.runs.spec import ParentWeights, PruneMethod, RunSpec, Seeds, StaticMethod, fields

SHARED = ("data", "model", "execution")
"""Parts that a run shares with its parents: setting them sets the parents' too."""


def with_overrides(spec: RunSpec, settings: Sequence[str]) -> RunSpec:
    """Apply ``path=value`` settings, such as ``train.steps=2000`` or ``mask=erk``.

    Values are JSON or plain words. A part with a ``kind`` may be set by its
    kind alone: ``mask=erk`` is ``mask.kind=erk``, and fields that both kinds
    have are kept. ``data.*``, ``model.*`` and ``execution`` reach the parents as
    well; other fields of a parent are reached by path (``mask.run.train.steps``).

    Raises:
        SpecError: for an unknown field (with a suggestion) or an impossible value.
    """
    for setting in settings:
        path, sign, text = setting.partition("=")
        if not sign or not path:
            raise SpecError(f"setting {setting!r} is not of the form path=value")
        spec = _set(spec, path.strip().split("."), _parse(text.strip()), path.strip())
    return spec


def with_seeds(spec: RunSpec, seed: int) -> RunSpec:
    """Set all three seeds, here and in every ancestor."""
    return _everywhere(
        spec, lambda run: msgspec.structs.replace(run, seeds=Seeds(seed, seed, seed))
    )


def scaled(spec: RunSpec, factor: float) -> RunSpec:
    """Scale the steps and every schedule together, here and in every ancestor.

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
        return max(1, round(value * factor)) if value else 0

    replace = msgspec.structs.replace
    method = spec.method
    if isinstance(method, PruneMethod):
        every, start = times(method.every), times(method.start)
        length = method.stop - method.start
        updates = min(length // method.every, max(1, round(length * factor)))
        method = replace(method, start=start, every=every, stop=start + updates * every)
    elif not isinstance(method, StaticMethod):
        stop = None if method.stop is None else times(method.stop)
        method = replace(method, every=times(method.every), start=times(method.start), stop=stop)
    weights = spec.weights
    if isinstance(weights, ParentWeights) and weights.step != "end":
        weights = replace(weights, step=times(weights.step))
    return replace(
        spec,
        method=method,
        weights=weights,
        optimizer=replace(
            spec.optimizer,
            warmup=times(spec.optimizer.warmup),
            milestones=tuple(times(m) for m in spec.optimizer.milestones),
        ),
        train=replace(spec.train, steps=times(spec.train.steps), keep=times(spec.train.keep)),
        measure=replace(
            spec.measure, every=times(spec.measure.every), evaluate=times(spec.measure.evaluate)
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
    """Rebuild ``part`` with the field at ``path`` replaced; types are checked by msgspec."""
    name, rest = path[0], path[1:]
    known = {f.name: f for f in fields(type(part))}
    tag = type(part).__struct_config__.tag_field
    if name == tag and not rest:
        raise SpecError(f"set {shown.rpartition('.')[0]}={value} instead of {shown}")
    if name not in known:
        where = f"field of {shown.rpartition('.')[0]}" if "." in shown else "field"
        raise SpecError(unknown(where, name, [*known, *([tag] if tag else [])]))
    kind, current = known[name].type, getattr(part, name)
    if rest == [_tag_field(kind)]:
        rest = []
    if rest:
        if not isinstance(current, msgspec.Struct):
            raise SpecError(f"{shown}: {name} is a plain value and has no field {rest[0]!r}")
        new = _replace(current, rest, value, shown)
    elif isinstance(value, str) and _tag_field(kind):
        new = _switch(current, kind, value, shown)
    else:
        new = _convert(value, kind, shown)
    return msgspec.structs.replace(part, **{name: new})


def _switch(current: Any, union: Any, kind: str, shown: str) -> Any:
    members = {m.__struct_config__.tag: m for m in _members(union)}
    if kind not in members:
        raise SpecError(unknown(f"{shown.removesuffix('.kind')} kind", kind, members))
    chosen = members[kind]
    wanted = {f.name: f for f in fields(chosen)}
    shared = {n: getattr(current, n) for n in wanted if hasattr(current, n)}
    kept = {n: v for n, v in shared.items() if _fits(v, wanted[n].type)}
    missing = [n for n, f in wanted.items() if f.required and n not in kept]
    if missing:
        raise SpecError(
            f"{shown}={kind} needs {', '.join(missing)}, which this recipe does not have"
        )
    return chosen(**kept)


def _convert(value: Any, kind: Any, shown: str) -> Any:
    words = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else (value,)
    if value not in words:
        raise SpecError(unknown(shown, str(value), words))
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SpecError(f"{shown}={value!r}: {error}") from error


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(msgspec.to_builtins(value), kind)
    except msgspec.ValidationError:
        return False
    return True


def _members(kind: Any) -> list[type]:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return [m for m in typing.get_args(kind) if hasattr(m, "__struct_config__")]
    return [kind] if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else []


def _tag_field(kind: Any) -> str | None:
    members = _members(kind)
    return members[0].__struct_config__.tag_field if members else None  # type: ignore[attr-defined]
