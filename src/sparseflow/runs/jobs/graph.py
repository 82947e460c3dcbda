"""The runs of a sweep: what can start, what ended, what its end allows or rules out."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sparseflow.runs.hashing import code_of_run, identity
from sparseflow.runs.run import Run
from sparseflow.runs.spec import RunSpec, ancestors, parents
from sparseflow.runs.store import Store
from sparseflow.runs.validate import check

State = Literal["waiting", "running", "finished", "failed", "skipped"]

RECENT = 8
"""Ended jobs that are remembered for display."""


@dataclass
class Job:
    """One run of a sweep and how it stands."""

    spec: RunSpec
    run: Run
    state: State = "waiting"
    step: int = 0
    accuracy: float = float("nan")
    error: str = ""
    losses: int = 0
    needs: list[str] = field(default_factory=list)


class Graph(Mapping[str, Job]):
    """Jobs by the id of their run, parents before children.

    Each change costs in proportion to the jobs that it touches, not to all of
    them, so that a sweep of 10,000 runs is as light, event by event, as one of ten.

    Attributes:
        counts: jobs in each state.
        running: those under way, by id.
        recent: those that ended last.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        """Take jobs that are waiting or finished, each after those it needs."""
        self._jobs = {job.run.id: job for job in jobs}
        self._places = {name: place for place, name in enumerate(self._jobs)}
        self._children: dict[str, list[Job]] = {}
        self._missing: dict[str, int] = {}
        self._ready: list[tuple[int, Job]] = []
        self.counts = Counter[State](job.state for job in self._jobs.values())
        self.running: dict[str, Job] = {}
        self.recent: deque[Job] = deque(maxlen=RECENT)
        for name, job in self._jobs.items():
            if job.state == "waiting":
                awaited = [n for n in job.needs if self._jobs[n].state != "finished"]
                self._missing[name] = len(awaited)
                for need in awaited:
                    self._children.setdefault(need, []).append(job)
                if not awaited:
                    self._offer(job)

    def __getitem__(self, name: str) -> Job:
        return self._jobs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def ready(self) -> bool:
        """Say whether a job waits for nothing but its start."""
        return bool(self._ready)

    def take(self) -> Job:
        """Start the first of the jobs that are ready."""
        _, job = heapq.heappop(self._ready)
        self._move(job, "running")
        return job

    def finish(self, job: Job, accuracy: float) -> None:
        """Take notice that a job's run is finished: its children may be ready."""
        job.accuracy, job.step = accuracy, job.spec.train.steps
        self._move(job, "finished")
        for child in self._children.get(job.run.id, ()):
            self._missing[child.run.id] -= 1
            if not self._missing[child.run.id] and child.state == "waiting":
                self._offer(child)

    def fail(self, job: Job, error: str) -> list[Job]:
        """Take notice that a job failed; return those that are skipped for it, parents first."""
        job.error = error
        self._move(job, "failed")
        skipped, next_ones = [], deque(self._children.get(job.run.id, ()))
        while next_ones:
            child = next_ones.popleft()
            if child.state == "waiting":
                child.error = "a parent run failed"
                self._move(child, "skipped")
                skipped.append(child)
                next_ones += self._children.get(child.run.id, ())
        return skipped

    def _offer(self, job: Job) -> None:
        heapq.heappush(self._ready, (self._places[job.run.id], job))

    def _move(self, job: Job, state: State) -> None:
        self.counts[job.state] -= 1
        self.counts[state] += 1
        job.state = state
        if state == "running":
            self.running[job.run.id] = job
        elif self.running.pop(job.run.id, None) is not None:
            self.recent.append(job)


def plan(specs: Iterable[RunSpec], store: Store) -> Graph:
    """All runs that these specifications need, parents before children, each once.

    Raises:
        SpecError: if one of them makes no sense.
        StoreError: if a run folder is damaged or of another schema.
    """
    jobs: dict[str, Job] = {}
    there = store.ids()
    for spec in specs:
        for each in (*ancestors(check(spec)), spec):
            code = code_of_run(each)
            name = identity(each, code)
            if name not in jobs:
                run = store.run(each) if name in there else Run(store.root / name, each, code=code)
                job = jobs[name] = Job(each, run, needs=[identity(p) for p in parents(each)])
                job.state = "finished" if name in there and run.settled else "waiting"
    return Graph(jobs.values())
