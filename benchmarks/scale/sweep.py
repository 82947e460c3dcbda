"""Overhead of a sweep of 10,000 runs, on a simulated cluster of 100 machines."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable
from pathlib import Path
from time import process_time

from benchmarks.timing import Record, reduce
from sparseflow.recipes import expand, make_spec
from sparseflow.runs import Store, plan, sweep
from sparseflow.runs.jobs import Ended, Event, Executor, Task
from sparseflow.runs.spec import RunSpec

RUNS, MACHINES, CORES = 10_000, 100, 16
SECONDS = 10.0
"""The shortest realistic run: LeNet-300-100, truly sparse, the authors' 11,719 steps, on one core
at somewhat less than a millisecond a step, measurements included."""

LIMIT = 1.0
CASE = f"{RUNS:,} runs of {SECONDS:g} s, {MACHINES} machines of {CORES} cores, simulated"


class Simulated(Executor):
    """An executor whose runs take time on a simulated clock.

    The processor time of the sweep between two waits is added to the clock, so that a
    slow sweep leaves machines idle as it would on a real cluster.
    """

    def __init__(self, places: int, *, charged: bool) -> None:
        """Simulate ``places`` cores; ``charged`` says whether the sweep's time is added."""
        super().__init__()
        self._places, self._charged = places, charged
        self._under_way: list[tuple[float, str]] = []
        self._lined_up: list[str] = []
        self._since = process_time()
        self.clock = 0.0

    def _capacity(self) -> int:
        return 2 * self._places

    def _start(self, task: Task) -> None:
        self._lined_up.append(task.key)
        self._fill(self._now())

    def _now(self) -> float:
        return self.clock + (process_time() - self._since if self._charged else 0.0)

    def _fill(self, now: float) -> None:
        while self._lined_up and len(self._under_way) < self._places:
            heapq.heappush(self._under_way, (now + SECONDS, self._lined_up.pop(0)))

    def _poll(self, seconds: float) -> Iterable[Event]:
        self.clock = max(self._now(), self._under_way[0][0])
        self._since, ended = process_time(), []
        while self._under_way and self._under_way[0][0] <= self.clock:
            at, key = heapq.heappop(self._under_way)
            ended.append(Ended(key, 98.0))
            self._fill(at)  # the core starts the next run in the queue
        return ended

    def _stop(self) -> None:
        """Stop nothing: no run is real."""


def sweep_overhead(share: float) -> list[Record]:
    """Processor time of planning and sweeping, and the delay of the last run that it causes."""
    specs = _specs()
    own, later = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs")
        for _ in range(2 if share < 1 else 5):
            ideal, _ = _sweep(specs, store, charged=False)
            real, seconds = _sweep(specs, store, charged=True)
            own.append(seconds / RUNS)
            later.append(100 * (real / ideal - 1))
    cpu = [100 * seconds / SECONDS for seconds in own]
    made = {"runs": RUNS, "machines": MACHINES, "cores": CORES, "run_seconds": SECONDS}
    return [
        _record("the sweep's processor time, of a run's", cpu, own, made),
        _record("the end of the last run, later than without it", later, [], made),
    ]


def _specs() -> list[RunSpec]:
    names = [n for n in expand(["mlp-mnist"]) if "/init-" not in n]
    each = -(-RUNS // len(names))
    return [make_spec(name, seed=seed) for seed in range(each) for name in names][:RUNS]


def _sweep(specs: list[RunSpec], store: Store, *, charged: bool) -> tuple[float, float]:
    """End of the last run on the simulated clock, and total processor time."""
    began = process_time()
    executor = Simulated(MACHINES * CORES, charged=charged)  # its clock includes planning
    sweep(plan(specs, store), store, executor)
    return executor.clock, process_time() - began


def _record(figure: str, values: list[float], seconds: list[float], made: dict) -> Record:
    times = sorted(1e3 * s for s in seconds)
    return Record(
        benchmark="sweep",
        case=CASE,
        figure=figure,
        unit="%",
        measured_ms=times[len(times) // 2] if times else None,
        baseline_ms=1e3 * SECONDS if times else None,
        rounds=len(values),
        settings=made,
        **reduce(values, LIMIT, "at most"),  # type: ignore[arg-type]
    )
