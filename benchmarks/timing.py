"""Interleaved timing: all sides of a comparison run in turn, round after round.

A busy or throttled machine slows all sides of a round alike, so the ratio within
a round stays meaningful when the times themselves are not.
"""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, sleep
from typing import Any, Literal

import torch

Clock = Callable[[Callable[[], object], int], float]
Direction = Literal["at most", "at least"]
LEAST_ROUNDS = 4


@dataclass(frozen=True)
class Record:
    """One measured value, with its target if there is one.

    Attributes:
        benchmark: name of the benchmark.
        case: what was timed: model, batch, sparsity.
        figure: what the value is (the name in results written so far).
        value: median over the rounds.
        low: first quartile.
        high: third quartile.
        unit: of value, low, high and target.
        measured_ms: median time of the measured side; None if it was not timed.
        baseline_ms: median time of the other side; None without one.
        rounds: number of rounds.
        target: bound on the value, or None.
        met: whether the value is within the target; None without one.
        direction: whether the target is an upper or a lower bound.
        settings: the conditions one by one, for plots and tables to sort by.
    """

    benchmark: str
    case: str
    figure: str
    value: float
    low: float
    high: float
    unit: str
    measured_ms: float | None
    baseline_ms: float | None
    rounds: int
    target: float | None
    met: bool | None
    direction: Direction = "at most"
    settings: Mapping[str, Any] = field(default_factory=dict)


def reduce(
    values: Sequence[float], target: float | None, direction: Direction
) -> dict[str, float | bool | None]:
    """Median and quartiles of the values of all rounds, and whether the median meets the target."""
    low, middle, high = quantiles(values, n=4, method="inclusive")
    met = None
    if target is not None:
        met = middle <= target if direction == "at most" else middle >= target
    return {"value": middle, "low": low, "high": high, "target": target, "met": met}


@dataclass(frozen=True)
class Timings:
    """Seconds of every side in every round.

    Attributes:
        benchmark: name of the benchmark.
        case: what was timed.
        seconds: one list for each side, all of the same length.
        settings: the conditions, for the records.
    """

    benchmark: str
    case: str
    seconds: dict[str, list[float]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def record(
        self,
        figure: str,
        measured: str,
        baseline: str,
        value: Callable[[float, float], float],
        unit: str,
        target: float | None = None,
        direction: Direction = "at most",
    ) -> Record:
        """Reduce two sides: ``value(measured, baseline)`` within each round, then quartiles."""
        ours, theirs = self.seconds[measured], self.seconds[baseline]
        values = [value(m, b) for m, b in zip(ours, theirs, strict=True)]
        return Record(
            benchmark=self.benchmark,
            case=self.case,
            figure=figure,
            unit=unit,
            measured_ms=1e3 * median(ours),
            baseline_ms=1e3 * median(theirs),
            rounds=len(values),
            direction=direction,
            settings=self.settings,
            **reduce(values, target, direction),  # type: ignore[arg-type]
        )

    def speedup(
        self, figure: str, measured: str, baseline: str, target: float | None = None
    ) -> Record:
        """How many times faster than the baseline; a target is the least it should be."""
        return self.record(figure, measured, baseline, lambda m, b: b / m, "×", target, "at least")


def wall(run: Callable[[], object], repeats: int) -> float:
    """Mean seconds of some calls, by the host's clock."""
    start = perf_counter()
    for _ in range(repeats):
        run()
    return (perf_counter() - start) / repeats


def on_gpu(run: Callable[[], object], repeats: int) -> float:
    """Mean seconds of some calls between two events in the GPU's queue, which is empty before."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(repeats):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / repeats


def interleave(
    benchmark: str,
    case: str,
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    warm: int = 3,
    *,
    turn: float = 0.0,
    budget: float = float("inf"),
    settings: Mapping[str, Any] | None = None,
    clock: Clock = wall,
) -> Timings:
    """Time every side once per round; every second round runs them in reverse order.

    Args:
        benchmark: name of the benchmark.
        case: what is timed.
        sides: the functions to compare, by name.
        rounds: number of rounds, at most.
        warm: untimed runs of each side before the first round.
        turn: seconds that a side's turn should last at least: shorter ones are
            repeated within their turn, and the mean is taken.
        budget: seconds after which no further pair of rounds begins, once there are four.
        settings: the conditions, for the records.
        clock: gives the mean seconds of a number of calls.
    """
    last = dict.fromkeys(sides, 0.0)
    for _ in range(warm):
        last = {name: clock(run, 1) for name, run in sides.items()}
    repeats = {name: _repeats(seconds, turn) for name, seconds in last.items()}
    # OpenMP's threads spin for a while after their work, and would take cores from a side
    # that uses another thread pool.
    pause = 0.002 if torch.get_num_threads() > 1 else 0.0
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.disable()
    end = perf_counter() + budget
    try:
        for number in range(rounds):
            if number >= LEAST_ROUNDS and number % 2 == 0 and perf_counter() > end:
                break
            for name in list(sides)[:: -1 if number % 2 else 1]:
                if pause:
                    sleep(pause)
                seconds[name].append(clock(sides[name], repeats[name]))
    finally:
        gc.enable()
    conditions = {**(settings or {}), "threads": torch.get_num_threads()}
    return Timings(benchmark, case, seconds, conditions)


def fastest(sides: Mapping[str, Callable[[], object]], runs: int = 2) -> str:
    """Name of the side with the shortest of a few runs, after one warm-up each."""
    least = dict.fromkeys(sides, float("inf"))
    for run in sides.values():
        run()
    for _ in range(runs):
        for name, run in sides.items():
            least[name] = min(least[name], wall(run, 1))
    return min(least, key=lambda name: least[name])


def _repeats(seconds: float, turn: float) -> int:
    return max(1, min(100, round(turn / max(seconds, 1e-7))))


def load() -> list[float] | None:
    """Load average over 1, 5 and 15 minutes, on systems that have it."""
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None


def machine() -> dict[str, object]:
    """Describe the machine and the versions that were measured."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
