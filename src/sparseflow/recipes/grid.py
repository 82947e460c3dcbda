"""Grids of settings: ``optimizer.lr=0.1,0.05`` is two settings, ``model.widths=[8,6]`` is one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sparseflow.core.errors import SpecError

_OPEN, _CLOSE, _QUOTES = "([{", ")]}", "'\""


def grid(settings: Sequence[str]) -> list[tuple[str, ...]]:
    """All combinations of the values of each setting; the last setting varies fastest.

    A comma within brackets or quotes belongs to its value.

    Args:
        settings: each ``path=value`` or ``path=value,value,...``.

    Returns:
        One tuple of ``path=value`` settings a variant, in a fixed order.

    Raises:
        SpecError: if a field is set twice, or a value is missing.

    Example:
        >>> grid(["density=0.02,0.05", "model.widths=[8,6]"])
        [('density=0.02', 'model.widths=[8,6]'), ('density=0.05', 'model.widths=[8,6]')]
    """
    axes: dict[str, list[str]] = {}
    for setting in settings:
        path, sign, text = setting.partition("=")
        path = path.strip()
        if not (sign and path):
            raise SpecError(f"setting {setting!r} is not of the form path=value")
        if path in axes:
            raise SpecError(
                f"{path} is set twice: write --set {path}={','.join(axes[path])},{text} "
                "where both are meant"
            )
        axes[path] = list(dict.fromkeys(_values(text, setting)))
    choices = [[f"{path}={value}" for value in values] for path, values in axes.items()]
    return list(itertools.product(*choices))


def one_each(settings: Sequence[str]) -> tuple[str, ...]:
    """Return settings of which each has one value, for what is of one run.

    Raises:
        SpecError: if one has several values, a field is set twice, or a value is missing.
    """
    for setting in settings:
        path, _, text = setting.partition("=")
        if len(_values(text, setting)) > 1:
            raise SpecError(
                f"--set {setting} has several values, of which this command takes one: give one, "
                f"or write {path.strip()}=[{text}] if it is a list ('sweep' and 'report' take "
                "several)"
            )
    (only,) = grid(settings)
    return only


def _values(text: str, setting: str) -> list[str]:
    """Split at the commas outside of brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in _QUOTES:
            quote = sign
        elif sign in _OPEN + _CLOSE:
            depth += 1 if sign in _OPEN else -1
        elif sign == "," and depth == 0:
            values.append("")
            continue
        values[-1] += sign
    values = [value.strip() for value in values]
    if len(values) > 1 and not all(values):
        raise SpecError(f"--set {setting} has an empty value")
    return values
