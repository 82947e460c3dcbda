"""Schedules as closures: when to update, and how much to drop.

A *when* schedule maps a step (1 is the first optimiser step) to a bool. A
*fraction* schedule maps a :class:`Moment` to a number in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from sparseflow.core.errors import TopologyError


class Moment(NamedTuple):
    """The point in training at which a schedule is asked.

    Attributes:
        step: optimiser steps taken so far (1 after the first).
        lr_ratio: current learning rate over the one at the start.
    """

    step: int
    lr_ratio: float = 1.0


When = Callable[[int], bool]
Fraction = Callable[[Moment], float]


def every(n: int, *, start: int = 0, stop: int | None = None) -> When:
    """Every ``n`` steps, from ``start`` to ``stop``, both included; never at step 0.

    >>> when = every(100, start=300, stop=500)
    >>> [s for s in range(0, 700, 50) if when(s)]
    [300, 400, 500]
    """
    if n < 1:
        raise TopologyError(f"every n={n} steps: n must be at least 1")
    if stop is not None and stop < start:
        raise TopologyError(f"a schedule from step {start} to step {stop} never fires")
    last = math.inf if stop is None else stop
    return lambda step: step > 0 and start <= step <= last and (step - start) % n == 0


def constant(value: float) -> Fraction:
    """The same fraction throughout."""
    _check_fraction(value)
    return lambda moment: value


def cosine(value: float, steps: int) -> Fraction:
    """Cosine annealing from ``value`` to 0 over ``steps`` (RigL, Evci et al. 2020, section 3).

    >>> round(cosine(0.3, 100)(Moment(50)), 3)
    0.15
    """
    _check_fraction(value)
    if steps < 1:
        raise TopologyError(f"cosine over steps={steps}: steps must be at least 1")
    return lambda moment: value / 2 * (1 + math.cos(math.pi * min(moment.step / steps, 1)))


def lr_proportional(value: float) -> Fraction:
    """``value`` times lr(t)/lr(0), the drop fraction of the paper's MNIST runs."""
    _check_fraction(value)
    return lambda moment: min(value * moment.lr_ratio, 1.0)


def cubic(final: float, start: int, stop: int, power: float = 3.0) -> Callable[[int], float]:
    """Density under gradual magnitude pruning, from 1 at ``start`` to ``final`` at ``stop``.

    Zhu & Gupta 2017, equation 1: sparsity grows as 1 - (1 - progress)^power.

    >>> [round(cubic(0.1, 0, 10)(s), 3) for s in (0, 5, 10)]
    [1.0, 0.213, 0.1]
    """
    if stop <= start:
        raise TopologyError(f"pruning from step {start} to step {stop}: stop must be later")

    def density(step: int) -> float:
        progress = min(max((step - start) / (stop - start), 0.0), 1.0)
        return final + (1 - final) * (1 - progress) ** power

    return density


def _check_fraction(value: float) -> None:
    if not 0 <= value <= 1:
        raise TopologyError(f"a drop fraction of {value} is not between 0 and 1")
