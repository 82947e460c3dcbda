"""A specification for people: every field with its value, what it may be, and how to set it."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec

from sparseflow.core.expressions import written
from sparseflow.core.fields import hints_of, is_required
from sparseflow.core.values import PARTS, UnknownValue, Value, to_data
from sparseflow.data import DATA
from sparseflow.init import NAMED
from sparseflow.models import MODELS
from sparseflow.runs.override import members
from sparseflow.runs.spec import VALUES, Initialisation, RunSpec, fields
from sparseflow.runs.validate import range_of
from sparseflow.train.optim import OPTIMIZERS

NAMED_FIELDS: dict[str, Callable[[], list[str]]] = {
    "model.name": lambda: list(MODELS),
    "data.name": lambda: list(DATA),
    "optimizer.kind": lambda: list(OPTIMIZERS),
}
"""Fields whose words are the names of a registry."""

ABSENT = "–"
"""Stands for a field that a part of another kind does not have."""


class Field(NamedTuple):
    """One field of a specification.

    Attributes:
        path: as ``--set`` takes it.
        value: as ``--set`` takes it.
        default: of a new specification; empty where there is none.
        takes: type and legal values.
        settable: whether ``--set`` can reach it; what comes from another run is set by
            the fields of that run.
    """

    path: str
    value: str
    default: str
    takes: str
    settable: bool = True


class FieldDifference(NamedTuple):
    """A field in which two specifications differ; :data:`ABSENT` where one lacks it."""

    path: str
    one: str
    other: str


def text_of(value: Any) -> str:
    """Write the value of a field as ``--set`` reads it.

    >>> text_of((3, 4)), text_of(None), text_of(True), text_of("erk")
    ('[3,4]', 'null', 'true', 'erk')
    """
    if isinstance(value, UnknownValue):
        return msgspec.json.encode(value.data).decode()
    if isinstance(value, Value):
        return written(value)
    if isinstance(value, RunSpec):
        return value.recipe or "a run"
    if isinstance(value, msgspec.Struct):
        return _tag_of(value)
    if isinstance(value, str) and not _reads_as_data(value):
        return value
    if callable(value):
        value = to_data(value)
    return msgspec.json.encode(value).decode()


def describe(spec: RunSpec) -> list[Field]:
    """Every field of a run; of its parents those are shown by ``describe(parent)``.

    Example:
        >>> from sparseflow.recipes import make_spec
        >>> rows = {row.path: row for row in describe(make_spec("mlp-mnist/dense"))}
        >>> rows["optimizer.lr"].value, rows["optimizer.lr"].default, rows["optimizer.lr"].takes
        ('0.2', '0.05', 'number, positive')
    """
    return list(_rows(spec, ""))


def differences(one: RunSpec, other: RunSpec) -> list[FieldDifference]:
    """Fields in which two specifications differ, their own first, then those of their parents.

    A parent that gives both mask and weights, on both sides, is compared once.

    Example:
        >>> from sparseflow.recipes import make_spec
        >>> differences(make_spec("mlp-mnist/dense"), make_spec("mlp-mnist/dense", seed=1))[0]
        FieldDifference(path='seeds.init', one='0', other='1')
    """
    rows = [FieldDifference(path, text_of(a), text_of(b)) for path, a, b in pairs(one, other)]
    if _one_parent(one) and _one_parent(other):
        rows = [each for each in rows if not each.path.startswith("weights.run.")]
    return sorted(rows, key=lambda each: ".run" in each.path)


def pairs(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Paths at which two parts differ, with both values, as deep as their kinds agree."""
    if one == other:
        return
    structs = isinstance(one, msgspec.Struct) and isinstance(other, msgspec.Struct)
    mine, theirs = (_parts(one), _parts(other)) if structs or type(one) is type(other) else ({}, {})
    if type(one) is not type(other) or not mine:
        yield path, one, other
    for name in dict.fromkeys((*mine, *theirs)):
        below = f"{path}.{name}".lstrip(".")
        if name in mine and name in theirs:
            yield from pairs(mine[name], theirs[name], below)
        else:
            yield below, mine.get(name, ABSENT), theirs.get(name, ABSENT)


def _one_parent(spec: RunSpec) -> bool:
    mask, weights = getattr(spec.mask, "run", None), getattr(spec.weights, "run", None)
    return mask is None or weights is None or mask == weights


def _parts(part: Any) -> dict[str, Any]:
    """Fields of a part that has some, by name."""
    if isinstance(part, UnknownValue):
        return {}
    if isinstance(part, msgspec.Struct):
        return {f.name: getattr(part, f.name) for f in fields(type(part))}
    if isinstance(part, Value):
        return {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}  # type: ignore[arg-type]
    return {}


def _rows(part: Any, path: str) -> Iterator[Field]:
    for name, hint, default in _declared(part):
        below, value = f"{path}.{name}".lstrip("."), getattr(part, name)
        lineage = isinstance(value, RunSpec)
        if lineage or not isinstance(value, msgspec.Struct) or _tag_of(value):
            shown = "" if default is msgspec.NODEFAULT else text_of(default)
            yield Field(below, text_of(value), shown, takes(hint, below), not lineage)
        if not lineage:
            yield from _rows(value, below)


def _declared(part: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of each field."""
    if isinstance(part, msgspec.Struct):
        for field in fields(type(part)):
            yield field.name, field.type, field.default
    elif isinstance(part, Value) and not isinstance(part, UnknownValue):
        hints = hints_of(type(part))
        for field in dataclasses.fields(part):  # type: ignore[arg-type]
            if field.init:
                made = field.default_factory
                default = field.default if made is dataclasses.MISSING else made()
                yield (
                    field.name,
                    hints[field.name],
                    msgspec.NODEFAULT if is_required(field) else default,
                )


def takes(hint: Any, path: str) -> str:
    """Say what a field may be: its type, the words or kinds that it has, its range."""
    if path in NAMED_FIELDS:
        return " | ".join(NAMED_FIELDS[path]())
    if hint in VALUES:
        names = NAMED if hint is Initialisation else {}
        return " | ".join(dict.fromkeys((*names, *VALUES[hint])))
    if tagged := [_tag_of(member) for member in members(hint) if _tag_of(member)]:
        return " | ".join(tagged)
    limits = range_of(path)
    words = " | ".join(dict.fromkeys(_words(hint)))
    return f"{words}, {limits}" if limits else words


def _words(hint: Any) -> Iterator[str]:
    plain = {bool: "true | false", int: "whole number", float: "number", str: "word"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in plain:
        yield plain[hint]
    elif hint is type(None):
        yield "null"
    elif origin is Literal:
        yield from map(text_of, arguments)
    elif origin is tuple:
        inside = (word for each in arguments if each is not ... for word in _words(each))
        yield f"[{', '.join(dict.fromkeys(inside))}, …]"
    elif origin is collections.abc.Callable:
        yield from _makers(arguments[-1])
    elif origin is collections.abc.Mapping:
        yield "{name: …}"
    elif isinstance(hint, type) and issubclass(hint, RunSpec):
        yield "another run"
    else:
        for each in arguments:
            yield from _words(each)


def _makers(result: Any) -> Iterator[str]:
    """Parts that serve as a function of this result, and functions in general."""
    for name, part in PARTS.items():
        call = vars(part).get("__call__")
        if call is None or typing.get_type_hints(call).get("return", result) is result:
            yield f"{name}(…)"
    yield "a function"


def _tag_of(part: Any) -> str:
    """Kind of a part, or of a type of parts."""
    return str(part.__struct_config__.tag or "")


def _reads_as_data(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True
