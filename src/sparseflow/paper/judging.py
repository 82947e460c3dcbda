"""How a claim is judged: groups, what is claimed of them, and a verdict from intervals alone.

Ratios are compared as logarithms, so their mean is the geometric one and their
interval lies evenly about it on a log scale. Each interval is of 95 % by
itself: nothing is corrected for the number of claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sparseflow.measure.comparison import Comparison, paired, unpaired
from sparseflow.measure.statistics import LEVEL, Estimate, Verdict, mean_interval, verdict
from sparseflow.plotting.formats import accuracy, change, count, minus, short, signed
from sparseflow.report.results import Results


@dataclass(frozen=True)
class Judgement:
    """One claim in one window.

    Attributes:
        window: what it was judged in, such as ``whole run``.
        ours: our value in words, with its interval and how many runs it rests on.
        estimate: that the verdict comes from; a ratio is given as such, not as
            its logarithm.
        verdict: computed.
        comparison: of the two groups, as logarithms for a ratio; None where
            there are not two groups, or too few runs.
    """

    window: str
    ours: str
    estimate: Estimate
    verdict: Verdict
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Sample:
    """A group of runs, each with one value.

    Attributes:
        name: of the group.
        values: by seed, on the scale that they are compared on.
        dead: runs left out because they ended at chance.
        missing: runs left out because they have no finite value.
    """

    name: str
    values: Mapping[str, float] = field(default_factory=dict)
    dead: int = 0
    missing: int = 0


@dataclass(frozen=True)
class Scale:
    """How values are compared and written.

    Attributes:
        back: from the scale of comparison to the one that is shown.
        level: a group's mean, shown.
        number: a difference, shown without its unit.
        before: unit in front.
        after: unit behind.
    """

    back: Callable[[float], float]
    level: Callable[[float], str]
    number: Callable[[float], str]
    before: str = ""
    after: str = ""

    def words(self, estimate: Estimate) -> str:
        """A number with its interval."""
        text = f"{self.before}{self.number(estimate.value)}{self.after}"
        if math.isnan(estimate.low):
            return f"{text}, no interval"
        return f"{text} [{self.number(estimate.low)}, {self.number(estimate.high)}]"


@dataclass(frozen=True)
class Bound:
    """What is claimed of a value: that it lies strictly between two numbers."""

    low: float | int = -math.inf
    high: float | int = math.inf

    def judge(self, estimate: Estimate) -> Verdict:
        """Judge each finite side; one that fails is enough to fail."""
        sides: list[Verdict] = []
        if self.low > -math.inf:
            sides.append(verdict(estimate, above=self.low))
        if self.high < math.inf:
            sides.append(verdict(estimate, below=self.high))
        if "does not hold" in sides:
            return "does not hold"
        return "not settled" if "not settled" in sides else "holds"


def log(value: float | int | None) -> float | None:
    """Logarithm; None for what is missing, not finite or not positive.

    >>> log(1.0), log(0.0), log(None)
    (0.0, None, None)
    """
    return math.log(value) if value and 0 < value < math.inf else None


def exp(value: float) -> float:
    """Exponential, infinite where it is too large for a float.

    >>> exp(0.0), exp(1000.0)
    (1.0, inf)
    """
    return math.exp(value) if value < 700 else value * math.inf


def ratio(value: float) -> str:
    """A ratio, with two decimals near one.

    >>> ratio(1.042), ratio(14.2), ratio(0.0712), ratio(0.998), ratio(float("inf"))
    ('1.04', '14', '0.071', '1.00', '∞')
    """
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if 0.1 <= value < 10 else short(value)


RATIO = Scale(exp, lambda mean: short(exp(mean)), ratio, before="×")
"""Values are logarithms; shown as a factor."""
CHANGE = Scale(exp, lambda mean: change(exp(mean) - 1), lambda v: change(v - 1))
"""Values are logarithms; shown as a relative change. The bound is that of the factor."""
POINTS = Scale(float, lambda v: f"{accuracy(v)} %", lambda v: minus(f"{v:+.2f}"), after=" points")
"""Values are percentages."""
NUMBER = Scale(float, lambda v: minus(short(v)), signed)
"""Values are anything else."""


def against(
    window: str,
    a: Sample,
    b: Sample,
    bound: Bound,
    *,
    scale: Scale = RATIO,
    together: bool = True,
) -> list[Judgement]:
    """Judge how far group a lies from group b; nothing if there is nothing to compare.

    Args:
        window: what it is judged in.
        a: one group.
        b: the other.
        bound: of a/b, or of a − b.
        scale: of the values.
        together: whether runs of one seed share something and are compared in pairs.
    """
    shared = [seed for seed in a.values if seed in b.values]
    x = [a.values[seed] for seed in shared] if together else list(a.values.values())
    y = [b.values[seed] for seed in shared] if together else list(b.values.values())
    if not x or not y:
        return []
    compared = None
    if together and len(shared) > 1:
        compared = paired(a.values, b.values)
    elif not together and min(len(x), len(y)) > 1:
        compared = unpaired(x, y)
    left, right = sum(x) / len(x), sum(y) / len(y)
    estimate = (
        compared.difference
        if compared
        else Estimate(left - right, math.nan, math.nan, len(x) if together else len(x) + len(y))
    )
    runs = count(len(x), "seed") if together else f"{len(x)} and {count(len(y), 'run')}"
    start = f"{scale.level(left)} against {scale.level(right)}: "
    return [_judgement(window, estimate, bound, scale, start, runs + left_out(a, b), compared)]


def alone(window: str, a: Sample, bound: Bound, *, scale: Scale = RATIO) -> list[Judgement]:
    """Judge the mean of one group; nothing if it is empty."""
    if not a.values:
        return []
    estimate = mean_interval(a.values.values())
    return [_judgement(window, estimate, bound, scale, "", count(estimate.n, "seed") + left_out(a))]


Measure = Callable[[Results], Sample]
"""Takes a group's values from the results."""

Test = Callable[[Results], list[Judgement]]
"""Judges a claim in one window; nothing where there are no data."""


@dataclass(frozen=True)
class Compare:
    """A test of one group against another; see :func:`against`."""

    window: str | Callable[[Results], str]
    a: Measure
    b: Measure
    bound: Bound
    scale: Scale = RATIO
    together: bool = True

    def __call__(self, results: Results) -> list[Judgement]:
        """Judge it."""
        window = self.window if isinstance(self.window, str) else self.window(results)
        return against(
            window,
            self.a(results),
            self.b(results),
            self.bound,
            scale=self.scale,
            together=self.together,
        )


@dataclass(frozen=True)
class Alone:
    """A test of the mean of one group; see :func:`alone`."""

    window: str
    a: Measure
    bound: Bound | Callable[[Results], Bound]
    scale: Scale = RATIO

    def __call__(self, results: Results) -> list[Judgement]:
        """Judge it."""
        bound = self.bound if isinstance(self.bound, Bound) else self.bound(results)
        return alone(self.window, self.a(results), bound, scale=self.scale)


@dataclass(frozen=True)
class Claim:
    """A claim, what would settle it, and how it was judged.

    Attributes:
        name: for links.
        sentence: what is claimed.
        paper: the paper's figure or number, or the authors' code's.
        tests: one a window, or several; each with its threshold and direction.
        figure: that shows it; empty if none does.
        note: margin, dead runs and what else to know; may be empty.
        judgements: one a window, once it is judged; none where there are no data.
    """

    name: str
    sentence: str
    paper: str
    tests: tuple[Test, ...]
    figure: str
    note: str
    judgements: tuple[Judgement, ...] = ()

    def judge(self, results: Results) -> Claim:
        """Hold it against the results."""
        judgements = tuple(judgement for test in self.tests for judgement in test(results))
        return replace(self, judgements=judgements)

    @property
    def verdict(self) -> Verdict:
        """The verdict that all judgements share; else it is not settled."""
        verdicts: set[Verdict] = {judgement.verdict for judgement in self.judgements}
        return next(iter(verdicts)) if len(verdicts) == 1 else "not settled"


def minus_each(a: Sample, b: Sample) -> Sample:
    """Differences within the seeds that both groups have."""
    values = {seed: v - b.values[seed] for seed, v in a.values.items() if seed in b.values}
    return Sample(a.name, values, max(a.dead, b.dead), a.missing + b.missing)


def left_out(*samples: Sample) -> str:
    """Say how many runs do not enter, and why."""
    said = [f"{s.dead} dead ({s.name})" for s in samples if s.dead]
    said += [f"{s.missing} without a value ({s.name})" for s in samples if s.missing]
    return f"; left out: {', '.join(said)}" if said else ""


def normal(value: float, error: float | None, n: int) -> Estimate:
    """A value with the normal interval of its standard error; no interval without one."""
    half = math.nan if error is None else 1.959964 * error
    return Estimate(value, value - half, value + half, n, LEVEL)


def _judgement(
    window: str,
    estimate: Estimate,
    bound: Bound,
    scale: Scale,
    start: str,
    end: str,
    compared: Comparison | None = None,
) -> Judgement:
    value, low, high = (scale.back(v) for v in (estimate.value, estimate.low, estimate.high))
    shown = Estimate(value, low, high, estimate.n, estimate.level)
    ours = f"{start}{scale.words(shown)}, {end}"
    return Judgement(window, ours, shown, bound.judge(shown), compared)
