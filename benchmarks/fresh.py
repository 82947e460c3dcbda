"""Steps of grown connections under AdamW: what ages change in the loss, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from statistics import mean
from typing import Any

import torch
from torch import nn

import sparseflow as sf
from benchmarks.cases import DENSITY, LENET5
from benchmarks.progress import progress
from benchmarks.timing import Record, interleave, reduce
from sparseflow.data import load_mnist
from sparseflow.models import build
from tests.helpers import transformer

SEEDS = 10
FIRST, INTERVAL, UPDATES = 1000, 100, 10
"""First update, steps between updates, and their number: bias correction is long over by then."""

AFTER = (1, 2, 5, 20)
"""Steps after an update at which the loss is looked at."""

SLOWER = 3.0
"""Percent of a step that ages may cost."""


@dataclass(frozen=True)
class Task:
    """A model, what it is trained on with AdamW, and how fast.

    Attributes:
        name: name in the tables.
        model: builds the model.
        loss: of a model and a batch.
        batch: the batch of a step; -1 is the probe.
        rate: learning rate.
        density: of the maskable weights.
        rounds: rounds of a full timing.
        example: inputs to convert the model with; None if it is not timed truly sparse.
    """

    name: str
    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    batch: Callable[[int], Any]
    rate: float
    density: float
    rounds: int
    example: torch.Tensor | None = None


_mnist = cache(load_mnist)


def _digits(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    train = _mnist().train
    stream = torch.Generator().manual_seed(step % 2**31)
    chosen = torch.randint(len(train), (LENET5.batch if step >= 0 else 1000,), generator=stream)
    return train[chosen]


def _tokens(step: int) -> dict[str, torch.Tensor]:
    return transformer.tokens(step % 2**31, 16 if step >= 0 else 500)


TASKS = (
    Task(
        f"{LENET5.title}, MNIST",
        partial(build, "lenet5"),
        sf.cross_entropy,
        _digits,
        rate=1e-3,
        density=DENSITY,
        rounds=1000,
        example=LENET5.examples(LENET5.batch)[0],
    ),
    Task(
        "GPT, 2 blocks of width 16",
        transformer.gpt2,
        transformer.loss,
        _tokens,
        rate=3e-3,
        density=0.2,
        rounds=1000,
    ),
)


def fresh_loss(share: float) -> list[Record]:
    """Loss on a probe before, at and after updates by RigL, with and without ages."""
    seeds = max(2, round(share * SEEDS))
    records = []
    for task in TASKS:
        rises: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for seed in range(seeds):
            progress.print(f"{task.name}, seed {seed}")
            for fresh, of_seeds in rises.items():
                of_seeds.append(_rises(task, seed, share, fresh=fresh))
        for when in rises[True][0]:
            for fresh, of_seeds in rises.items():
                whose = "own ages" if fresh else "the optimiser's count"
                values = [rise[when] for rise in of_seeds]
                records.append(_record(task, f"{when}, {whose}", values))
            pairs = zip(rises[False], rises[True], strict=True)
            values = [was[when] - ours[when] for was, ours in pairs]
            records.append(_record(task, f"{when}, less with own ages by", values))
    return records


def _record(task: Task, what: str, values: list[float]) -> Record:
    summary = reduce(values, None, "at most")
    return Record(
        "fresh-loss",
        task.name,
        what,
        unit="nats",
        measured_ms=None,
        baseline_ms=None,
        rounds=len(values),
        **summary,  # type: ignore[arg-type]
    )


def _rises(task: Task, seed: int, share: float, *, fresh: bool) -> dict[str, float]:
    """Train; mean over updates of the loss before them, and of what it is above that after."""
    torch.manual_seed(seed)
    model = task.model()
    masks = sf.sparsify(model, density=task.density, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.rate)
    losses: dict[str, list[float]] = {}
    since = torch.inf

    def look(when: str) -> None:
        with torch.no_grad():
            losses.setdefault(when, []).append(float(task.loss(model, task.batch(-1))))

    @contextmanager
    def around(_: sf.Topology) -> Iterator[None]:
        nonlocal since
        look("before")
        yield
        look("at the update")
        since = 0

    first = max(INTERVAL, round(share * FIRST))
    last = first + (UPDATES - 1) * INTERVAL
    method = sf.RigL(sf.every(INTERVAL, start=first, stop=last + 1), sf.constant(0.3))
    sf.attach(model, optimizer, masks, method, seed=seed, around=around, fresh_steps=fresh)
    for step in range(last + max(AFTER)):
        optimizer.zero_grad()
        task.loss(model, task.batch(step + seed * 2**20)).backward()
        optimizer.step()
        if since in AFTER:
            look(f"{int(since)} steps after")
        since += 1
    before = losses.pop("before")
    rises = {"loss before updates": mean(before)}
    for when, values in losses.items():
        rises[f"rise {when}"] = mean(v - b for v, b in zip(values, before, strict=True))
    return rises


def fresh_step(share: float) -> list[Record]:
    """A step when all connections are young, over one without ages."""
    records = []
    for task in TASKS:
        for execution in ("masked", "sparse") if task.example is not None else ("masked",):
            sides = {f: _step(task, fresh=f, sparse=execution == "sparse") for f in (False, True)}
            timings = interleave(
                "fresh-step",
                f"{task.name}, {execution}",
                {"own ages" if fresh else "one count": step for fresh, step in sides.items()},
                max(4, round(share * task.rounds)),
                settings={"execution": execution},
            )
            records.append(
                timings.record(
                    "AdamW's step with ages over one without",
                    "own ages",
                    "one count",
                    lambda ages, count: 100 * (ages / count - 1),
                    "%",
                    SLOWER,
                )
            )
    return records


def _step(task: Task, *, fresh: bool, sparse: bool) -> Callable[[], None]:
    """A step of training, after updates that have made nearly all connections young."""
    torch.manual_seed(0)
    model = task.model()
    masks = sf.sparsify(model, density=task.density)
    model = sf.to_sparse(model, masks, task.example) if sparse else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    method = sf.SET(sf.every(10, stop=300), sf.constant(0.3))
    sf.attach(model, optimizer, masks, method, fresh_steps=fresh)
    batch = task.batch(0)

    def step() -> None:
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()

    for _ in range(300):
        step()
    return step
