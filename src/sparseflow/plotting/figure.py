"""A figure as a value: what it is called, what it shows, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sparseflow.plotting.drawing import Drawing
from sparseflow.plotting.table import Table

R = TypeVar("R")


@dataclass(frozen=True)
class Figure(Generic[R]):
    """A figure of the page.

    Attributes:
        name: of its files.
        title: headline.
        caption: how to read it.
        missing: what to run, if there is nothing to draw.
        draw: the drawing; None if there is nothing to draw.
        data: the values that are drawn.
        finding: a sentence on what it shows; may be empty.
        evidence: whether it takes studies of checkpoints, not runs alone.
    """

    name: str
    title: str
    caption: str
    missing: str
    draw: Callable[[R], Drawing | None]
    data: Callable[[R], Table]
    finding: Callable[[R], str]
    evidence: bool = False
