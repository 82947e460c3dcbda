"""Values as text: the Python that makes them, short of the module.

rigl(every(100), cosine(0.3), grow_from='probe')
"""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

from sparseflow.core.errors import SpecError
from sparseflow.core.fields import is_default
from sparseflow.core.registry import Registry
from sparseflow.core.values import PARTS, UnknownValue, Value, kind_of, make, path_of


def written(value: Any) -> str:
    """Write a value as the Python that makes it.

    >>> from sparseflow.core.schedules import every
    >>> written(every(100, stop=500))
    'every(100, stop=500)'
    """
    if isinstance(value, UnknownValue):
        return f"{value.kind}(?)"
    if not isinstance(value, Value):
        return path_of(value) if callable(value) else repr(value)
    parts, positional = [], True
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        if not field.init or field.name == "kind":
            continue
        if is_default(value, field):
            positional = False
            continue
        positional = positional and not field.kw_only
        text = written(getattr(value, field.name))
        parts.append(text if positional else f"{field.name}={text}")
    return f"{kind_of(value) or type(value).__name__}({', '.join(parts)})"


def parse(text: str, registry: Registry[Any]) -> Any:
    """Read what :func:`written` writes: a kind of the registry, with literal arguments.

    Raises:
        SpecError: if it is something else.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SpecError(f"{text!r} is not of the form name(value, field=value)") from error
    return _evaluate(tree, registry, text)


def is_call(text: str) -> bool:
    """Say whether a word is of the form ``name(...)``."""
    return text.endswith(")") and "(" in text


def _evaluate(node: ast.expr, registry: Registry[Any], text: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        kind = node.func.id
        if kind not in registry and kind.replace("_", "-") in registry:
            kind = kind.replace("_", "-")
        cls = registry[kind]
        fields = [
            f for f in dataclasses.fields(cls) if f.init and not f.kw_only and f.name != "kind"
        ]
        if len(node.args) > len(fields):
            raise SpecError(f"{kind} takes {len(fields)} values in order, not {len(node.args)}")
        given = {f.name: a for f, a in zip(fields, node.args, strict=False)}
        named = {k.arg: k.value for k in node.keywords if k.arg}
        if len(named) < len(node.keywords) or set(named) & set(given):
            raise SpecError(f"{text!r} gives a field twice, or not by its name")
        given |= named
        return make(cls, {n: _evaluate(a, PARTS, text) for n, a in given.items()}, kind)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise SpecError(f"{text!r} is not of the form name(value, field=value)") from error
