"""Interleaved timing: what is compared runs side by side, round after round.

A busy or throttled machine slows all sides of a round alike, so the ratio
within a round stays meaningful where the times themselves do not.
"""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import torch


@dataclass(frozen=True)
class Record:
    """One measured figure, with its target where there is one.

    Attributes:
        benchmark: name of the benchmark.
        case: what it ran on.
        figure: what the value says.
        value: median over the rounds.
        low: first quartile.
        high: third quartile.
        unit: of value, low, high and target.
        measured_ms: median time of what is measured.
        baseline_ms: median time of what it is compared with.
        rounds: rounds that enter.
        target: the value should be at most this.
        met: whether it is; None without a target.
    """

    benchmark: str
    case: str
    figure: str
    value: float
    low: float
    high: float
    unit: str
    measured_ms: float
    baseline_ms: float
    rounds: int
    target: float | None
    met: bool | None


@dataclass(frozen=True)
class Timings:
    """Seconds of every side in every round.

    Attributes:
        benchmark: name of the benchmark.
        case: what it ran on.
        seconds: one list a side, all of the same length.
    """

    benchmark: str
    case: str
    seconds: dict[str, list[float]]

    def record(
        self,
        figure: str,
        measured: str,
        baseline: str,
        value: Callable[[float, float], float],
        unit: str,
        target: float | None = None,
    ) -> Record:
        """Reduce two sides: ``value(measured, baseline)`` within each round, then quartiles."""
        ours, theirs = self.seconds[measured], self.seconds[baseline]
        values = [value(m, b) for m, b in zip(ours, theirs, strict=True)]
        low, middle, high = quantiles(values, n=4, method="inclusive")
        return Record(
            benchmark=self.benchmark,
            case=self.case,
            figure=figure,
            value=middle,
            low=low,
            high=high,
            unit=unit,
            measured_ms=1e3 * median(ours),
            baseline_ms=1e3 * median(theirs),
            rounds=len(values),
            target=target,
            met=None if target is None else middle <= target,
        )


def interleave(
    benchmark: str,
    case: str,
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    warm: int = 3,
) -> Timings:
    """Time every side once a round; every second round runs them in reverse order."""
    for _ in range(warm):
        for run in sides.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for name in list(sides)[:: -1 if turn % 2 else 1]:
                start = perf_counter()
                sides[name]()
                seconds[name].append(perf_counter() - start)
    finally:
        gc.enable()
    return Timings(benchmark, case, seconds)


def load() -> list[float] | None:
    """Load average over 1, 5 and 15 minutes, where the system tells."""
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None


def machine() -> dict[str, object]:
    """Say what the figures were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
