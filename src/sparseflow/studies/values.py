"""Values as studies and the report keep them: rounded, and None where they are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

Number = float | None
"""A value rounded to five significant digits; None where it is not finite."""

Row = tuple[Number, ...]
Matrix = tuple[Row, ...]


def rounded(value: float) -> Number:
    """Round to five significant digits; None if not finite.

    >>> rounded(0.123456789), rounded(float("nan"))
    (0.12346, None)
    """
    return float(f"{value:.5g}") if math.isfinite(value) else None


def row(values: Iterable[float]) -> Row:
    """Round every value."""
    return tuple(rounded(float(value)) for value in values)


def matrix(values: Iterable[Iterable[float]]) -> Matrix:
    """Round every value of every row."""
    return tuple(map(row, values))


def dead_below(classes: int) -> float:
    """Test accuracy in % under which a run counts as dead: twice that of guessing.

    >>> dead_below(10), dead_below(1000)
    (20.0, 0.2)
    """
    return 200 / classes
