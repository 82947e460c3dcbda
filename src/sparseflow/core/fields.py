"""Fields of frozen dataclasses: their types and defaults, and numbers written alike."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Types of the fields of a class."""
    return typing.get_type_hints(cls)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Say whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def is_default(value: Any, field: dataclasses.Field[Any]) -> bool:
    """Say whether a field of a value has its default."""
    if is_required(field):
        return False
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    return getattr(value, field.name) == default


@cache
def _scalar(hint: Any) -> Callable[[Any], Any] | None:
    """What the numbers of a field are: bool, int or float."""
    return next((t for t in (bool, int, float) if t in (hint, *typing.get_args(hint))), None)


def exact(value: Any, hint: Any) -> Any:
    """Write equal numbers alike, 1 as 1.0 where real ones belong: equal parts have one hash."""
    if isinstance(value, tuple):
        return tuple(exact(each, hint) for each in value)
    scalar = _scalar(hint) if isinstance(value, bool | int | float) else None
    if scalar is None:
        return value
    try:
        number = scalar(value)
    except (OverflowError, ValueError):  # beyond all floats, infinite or not a number
        return value
    return number + 0.0 if scalar is float else number if number == value else value
