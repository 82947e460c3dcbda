"""Schedules as values: when to update, how much to drop, and how dense to be.

A *when* schedule maps a step (1 is the first optimiser step) to a bool. A
*fraction* schedule maps a :class:`Moment` to a number in [0, 1]. Any function
will do in a loop of your own; these can stand in a run's specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sparseflow.core.errors import TopologyError
from sparseflow.core.values import Value, register_part


class Moment(NamedTuple):
    """The point in training at which a schedule is asked.

    Attributes:
        step: optimiser steps taken so far (1 after the first).
        lr_ratio: current learning rate over the one at the start; at an update that of
            the parameter group that a weight is in.

    Example:
        >>> lr_proportional(0.3)(Moment(step=500, lr_ratio=0.5))
        0.15
    """

    step: int
    lr_ratio: float = 1.0


When = Callable[[int], bool]
Fraction = Callable[[Moment], float]


def scaled_steps(steps: int, factor: float) -> int:
    """Scale a number of steps; what is not 0 stays at least 1.

    >>> scaled_steps(100, 0.05), scaled_steps(1, 0.05), scaled_steps(0, 2.0)
    (5, 1, 0)
    """
    return max(1, round(steps * factor)) if steps else 0


@register_part("every")
@dataclass(frozen=True)
class Every(Value):
    """Every ``n`` steps, from ``start`` to ``stop``, both included; never at step 0.

    Example:
        >>> when = every(100, start=300, stop=500)
        >>> [s for s in range(0, 700, 50) if when(s)]
        [300, 400, 500]
    """

    n: int
    start: int = field(default=0, kw_only=True)
    stop: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the steps."""
        if self.n < 1:
            raise TopologyError(f"every n={self.n} steps: n must be at least 1")
        if self.start < 0:
            raise TopologyError(f"a schedule from start={self.start}: it must not be negative")
        if self.stop is not None and self.stop < self.start:
            raise TopologyError(
                f"a schedule from step {self.start} to step {self.stop} never fires"
            )

    def __call__(self, step: int) -> bool:
        """Say whether this is one of the steps."""
        last = math.inf if self.stop is None else self.stop
        return step > 0 and self.start <= step <= last and (step - self.start) % self.n == 0

    def scaled(self, factor: float) -> Every:
        """As many updates in a training of another length."""
        stop = None if self.stop is None else scaled_steps(self.stop, factor)
        start = scaled_steps(self.start, factor)
        return Every(scaled_steps(self.n, factor), start=start, stop=stop)


@register_part("constant")
@dataclass(frozen=True)
class Constant(Value):
    """The same fraction throughout.

    Example:
        >>> constant(0.3)(Moment(step=500))
        0.3
    """

    value: float

    def __post_init__(self) -> None:
        """Check the fraction."""
        _check_fraction(self.value)

    def __call__(self, moment: Moment) -> float:
        """Return it."""
        return self.value


@register_part("cosine")
@dataclass(frozen=True)
class Cosine(Value):
    """Cosine annealing from ``value`` to 0 over ``steps`` (RigL, Evci et al. 2020, section 3).

    In a run ``steps`` may be left out: it is then the last step at which masks
    change.

    Example:
        >>> round(cosine(0.3, 100)(Moment(50)), 3)
        0.15
    """

    value: float
    steps: int | None = None

    def __post_init__(self) -> None:
        """Check the fraction and the steps."""
        _check_fraction(self.value)
        if self.steps is not None and self.steps < 1:
            raise TopologyError(f"cosine over steps={self.steps}: steps must be at least 1")

    def __call__(self, moment: Moment) -> float:
        """Return the fraction at a moment."""
        if self.steps is None:
            raise TopologyError(
                f"cosine({self.value}) does not say over how many steps: give steps"
            )
        return self.value / 2 * (1 + math.cos(math.pi * min(moment.step / self.steps, 1)))

    def scaled(self, factor: float) -> Cosine:
        """The same curve over a training of another length."""
        if self.steps is None:
            return self
        return replace(self, steps=scaled_steps(self.steps, factor))

    def bound(self, task: Any) -> Cosine:
        """Take the last step at which masks change, if no other is given."""
        return self if self.steps is not None else replace(self, steps=task.last_update)


@register_part("lr_proportional")
@dataclass(frozen=True)
class LrProportional(Value):
    """``value`` times lr(t)/lr(0), the drop fraction of the paper's MNIST runs.

    Never more than ``value``: a rate that warms up rises above that at the start.

    Example:
        >>> [lr_proportional(0.3)(Moment(1, ratio)) for ratio in (0.5, 1.0, 25.0)]
        [0.15, 0.3, 0.3]
    """

    value: float

    def __post_init__(self) -> None:
        """Check the fraction."""
        _check_fraction(self.value)

    def __call__(self, moment: Moment) -> float:
        """Return the fraction at a moment."""
        return min(self.value * moment.lr_ratio, self.value)


@register_part("cubic")
@dataclass(frozen=True)
class Cubic(Value):
    """Density under gradual pruning, from ``initial`` at ``start`` to ``final`` at ``stop``.

    Zhu & Gupta 2017, equation 1: d = final + (initial − final) · (1 − progress)^power.
    In a run ``final`` and ``stop`` may be left out: they are then the run's density,
    and the last step at which masks change.

    Example:
        >>> [round(cubic(0.1, 0, 10)(s), 3) for s in (0, 5, 10)]
        [1.0, 0.213, 0.1]
    """

    final: float | None = None
    start: int = 0
    stop: int | None = None
    power: float = 3.0
    initial: float = 1.0

    def __post_init__(self) -> None:
        """Check the steps, the densities and the exponent."""
        if self.stop is not None and self.stop <= self.start:
            raise TopologyError(
                f"pruning from step {self.start} to step {self.stop}: stop must be later"
            )
        for name in ("initial", "final"):
            density = getattr(self, name)
            if density is not None and not 0 <= density <= 1:
                raise TopologyError(f"{name}={density} of a pruning schedule is not in [0, 1]")
        if not (self.power > 0 and math.isfinite(self.power)):
            raise TopologyError(f"power={self.power} of the pruning schedule must be positive")

    def __call__(self, step: int) -> float:
        """Return the density after a step."""
        if self.final is None or self.stop is None:
            raise TopologyError(
                "cubic() does not say to which density and until which step: give final and stop"
            )
        progress = min(max((step - self.start) / (self.stop - self.start), 0.0), 1.0)
        return self.final + (self.initial - self.final) * (1 - progress) ** self.power

    def scaled(self, factor: float) -> Cubic:
        """The same curve over a training of another length."""
        start = scaled_steps(self.start, factor)
        stop = None if self.stop is None else max(start + 1, scaled_steps(self.stop, factor))
        return replace(self, start=start, stop=stop)

    def bound(self, task: Any) -> Cubic:
        """Take the run's density and the last step at which masks change, if none are given."""
        final = task.density if self.final is None else self.final
        return replace(self, final=final, stop=task.last_update if self.stop is None else self.stop)


every: type[Every] = Every
constant: type[Constant] = Constant
cosine: type[Cosine] = Cosine
lr_proportional: type[LrProportional] = LrProportional
cubic: type[Cubic] = Cubic


def _check_fraction(value: float) -> None:
    if not 0 <= value <= 1:
        raise TopologyError(f"a drop fraction of {value} is not between 0 and 1")
