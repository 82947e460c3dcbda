"""Values: frozen dataclasses that stand in a specification as they are.

A method, an initialisation, a schedule is such a value. Written as data it is

    {"kind": "rigl", "when": {"kind": "every", "n": 100}, "drop": {"kind": "cosine", "value": 0.3}}

where fields that have their default are left out; as text see
:mod:`sparseflow.core.expressions`.
Reading never imports what it names: a kind that is not registered is kept as it
stands, and refused only when it is used.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import operator
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, TypeVar

import msgspec

from sparseflow.core.code import Code, code_of
from sparseflow.core.errors import SparseflowError, SpecError, brief, first_line, unknown
from sparseflow.core.fields import exact, hints_of, is_default, is_required
from sparseflow.core.registry import Registry

V = TypeVar("V", bound="Value")

USE = "load it with --use FILE.py (or SPARSEFLOW_USE, or sf.use)"

PARTS: Registry[type[Value]] = Registry("part", USE)
"""Schedules, and whatever else a method is made of."""


class UnknownKindError(SpecError):
    """Data of a kind that is not registered here."""


class Value:
    """Base of what can stand in a specification.

    Subclasses are frozen dataclasses whose fields are numbers, words, tuples,
    mappings, other values, or functions of a module.

    Example:
        >>> import sparseflow as sf
        >>> to_data(sf.RigL(sf.every(50), sf.cosine(0.3)).scaled(0.1))["when"]
        {'kind': 'every', 'n': 5}
    """

    def scaled(self: V, factor: float) -> V:
        """Return the value for a training ``factor`` times as long; parts are scaled alike."""
        return self._with_parts(lambda part: part.scaled(factor))

    def bound(self: V, task: Any) -> V:
        """Return the value as it serves in one training, see :class:`sparseflow.topology.Task`."""
        return self._with_parts(lambda part: part.bound(task))

    def _with_parts(self: V, change: Callable[[Value], Value]) -> V:
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]
        changed = {name: change(part) for name, part in parts.items() if isinstance(part, Value)}
        return dataclasses.replace(self, **changed) if changed else self  # type: ignore[type-var]


def register_part(name: str) -> Callable[[type[V]], type[V]]:
    """Make a class of schedules (or of other parts of a method) known by name.

    Example:
        >>> @register_part("half")
        ... @dataclasses.dataclass(frozen=True)
        ... class Half(Value):
        ...     value: float
        ...     def __call__(self, moment): return self.value / 2
        >>> to_data(Half(0.4))
        {'kind': 'half', 'value': 0.4}
    """
    return registering(PARTS, name)


_REGISTERED: dict[type, tuple[str, ...]] = {}
"""Names of each class of values."""


def registering(registry: Registry[Any], *names: str, **facts: Any) -> Callable[[type[V]], type[V]]:
    """Decorator that adds a class of values to a registry.

    Raises:
        SpecError: if it is not a frozen dataclass, or a name is taken.
    """

    def add(cls: type[V]) -> type[V]:
        if not _is_frozen(cls):
            raise SpecError(
                f"{registry.sort} {names[0]!r} must be a class under @dataclass(frozen=True): "
                "put that decorator between this one and the class"
            )
        if len(names) == 1 and "kind" in {f.name for f in dataclasses.fields(cls)}:  # type: ignore[arg-type]
            raise SpecError(
                f"{registry.sort} {names[0]!r} has a field named kind, which is the place of its "
                "name in a specification: call it something else"
            )
        for name in names:
            registry.add(name, cls, cls, **facts)
        _REGISTERED[cls] = names
        return cls

    return add


def _is_frozen(cls: Any) -> bool:
    """Say whether a class is of frozen values, all of whose fields are fields."""
    if not (isinstance(cls, type) and issubclass(cls, Value)):
        return False
    named = "__dataclass_params__" in vars(cls) or not vars(cls).get("__annotations__")
    return named and dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]


def kind_of(value: Value) -> str | None:
    """Name under which the class of a value is registered; None if it is not.

    A class that is registered under several names has a field ``kind`` that says which.
    """
    names = _REGISTERED.get(type(value))
    return None if names is None else names[0] if len(names) == 1 else value.kind  # type: ignore[attr-defined]


# ---- as data


def to_data(value: Any) -> Any:
    """Turn a value into JSON-like data; equal values give equal data.

    Raises:
        SpecError: for what has no name to be found by: a lambda, a closure, a class
            that is not registered.
    """
    if isinstance(value, UnknownValue):
        return value.data
    if isinstance(value, Value):
        name = kind_of(value)
        if name is None:
            raise SpecError(
                f"{type(value).__name__} has no name: a run needs one, given by a decorator such "
                'as @sf.register_method("mine")'
            )
        fields = {f.name: f for f in dataclasses.fields(value) if f.init}  # type: ignore[arg-type]
        kept = {n: getattr(value, n) for n, f in fields.items() if not is_default(value, f)}
        kept.pop("kind", None)
        hints = hints_of(type(value))
        for field, number in kept.items():
            if isinstance(number, float) and not math.isfinite(number):
                raise SpecError(f"{name}: {field}={number} must be finite to stand in a run")
        return {"kind": name} | {n: to_data(exact(v, hints[n])) for n, v in kept.items()}
    if isinstance(value, Mapping):
        return {str(key): to_data(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [to_data(each) for each in value]
    if callable(value):
        return {"function": path_of(value)}
    return value


def from_data(data: Any, registry: Registry[Any]) -> Any:
    """Read a value of a registry's kinds.

    Raises:
        UnknownKindError: if its kind, or that of a part of it, is not registered.
        SpecError: if a field is unknown, missing or of another type.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
        raise SpecError(f"a {registry.sort} is an object with a kind, not {str(data)[:80]}")
    kind = data["kind"]
    if kind not in registry:
        raise UnknownKindError(f"{unknown(registry.sort, kind, registry)}; {registry.way}")
    return make(registry[kind], {n: v for n, v in data.items() if n != "kind"}, kind)


def make(cls: type[V], given: Mapping[str, Any], kind: str) -> V:
    """Build a value from the data of its fields.

    Raises:
        SpecError: if a field is unknown, missing or of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = hints_of(cls)
    if "kind" in fields:
        given = {**given, "kind": kind}
    for name in given:
        if name not in fields:
            raise SpecError(unknown(f"field of {kind}", name, fields))
    if missing := [n for n, f in fields.items() if n not in given and is_required(f)]:
        raise SpecError(f"{kind} needs {', '.join(missing)}")
    read = {n: read_field(v, hints[n], f"{kind}.{n}") for n, v in given.items()}
    try:
        return cls(**read)
    except SparseflowError as error:
        raise SpecError(str(error)) from error
    except Exception as error:  # whatever a user's own check raises
        raise SpecError(f"{kind}: {brief(error)}") from error


def read_field(data: Any, hint: Any, shown: str, *, strict: bool = True) -> Any:
    """Read the data of one field; if not ``strict``, numbers may be words.

    Raises:
        SpecError: if it does not fit what the class says of the field.
    """
    if isinstance(data, Value) or (callable(data) and not isinstance(data, type)):
        return data
    if isinstance(data, Mapping) and "kind" in data:
        return from_data(data, PARTS)
    if isinstance(data, Mapping) and set(data) == {"function"}:
        return _function(data["function"])
    plain = plain_hint(hint)
    try:
        return exact(msgspec.convert(data, plain, strict=strict), plain)
    except (msgspec.ValidationError, TypeError) as error:
        words = [w for w in typing.get_args(plain) if isinstance(w, str)]
        hint_text = f" ({', '.join(words)})" if words else ""
        raise SpecError(f"{shown}={data!r}: {first_line(error)}{hint_text}") from error


def plain_hint(hint: Any) -> Any:
    """What a field may hold besides values and functions.

    >>> plain_hint(int | Callable[[int], bool] | None)
    int | None
    """
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        members = [plain_hint(m) for m in typing.get_args(hint)]
        kept = [m for m in members if m is not _Nothing]
        return reduce(operator.or_, kept) if kept else _Nothing
    if typing.get_origin(hint) is collections.abc.Callable:
        return _Nothing
    if isinstance(hint, type) and issubclass(hint, Value):
        return _Nothing
    return hint


class _Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No plain data fits a field that holds a value or a function."""


# ---- functions


def path_of(function: Callable[..., Any]) -> str:
    """Return ``module:name``, under which a function is found again.

    Raises:
        SpecError: if it has no such name.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if (
        not module
        or "<" in name
        or not name
        or getattr(sys.modules.get(module), name, None) is not function
    ):
        raise SpecError(
            f"{name or function!r} cannot be found by name: a run needs a function of a module, "
            "or a value such as sf.cosine(0.3, 1000); lambdas and closures serve in a loop of "
            "your own"
        )
    return f"{module}:{name}"


def _function(path: Any) -> Callable[..., Any]:
    module, _, name = str(path).partition(":")
    function = getattr(sys.modules.get(module), name, None)
    if not callable(function):
        raise UnknownKindError(f"function {path} is not loaded; {USE}")
    return function


# ---- code


def code_in(value: Any) -> Iterator[Code]:
    """Source files of the user's that a value rests on.

    Raises:
        SpecError: if a source cannot be read.
    """
    if isinstance(value, UnknownValue):
        raise UnknownKindError(value.problem)
    if isinstance(value, Value):
        yield from code_of(type(value))
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            yield from code_in(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from code_in(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from code_in(each)
    elif callable(value):
        yield from code_of(value)


@dataclasses.dataclass(frozen=True)
class UnknownValue(Value):
    """What a specification holds of a kind that is not registered here.

    Attributes:
        data: as it stands there.
        problem: why it cannot be used, and what to do.
    """

    data: Any
    problem: str

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return str(self.data.get("kind")) if isinstance(self.data, Mapping) else "?"

    def __hash__(self) -> int:
        """By the text of the data."""
        return hash(msgspec.json.encode(self.data, order="deterministic"))
