"""Measure a run on its way and append what was measured to ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import msgspec
from torch import Tensor

from sparseflow.core.parameters import named_weights, sparse_weights
from sparseflow.data import in_batches
from sparseflow.masks import churn
from sparseflow.masks.positions import at_union
from sparseflow.masks.state import NonZeros, State
from sparseflow.measure import Distance, Flow, distance, gradient_flow, step_decrease
from sparseflow.runs.build import Assembly
from sparseflow.runs.journal import Journal
from sparseflow.runs.spec import RunSpec
from sparseflow.topology import Topology
from sparseflow.train import evaluate

Weights = dict[str, Tensor | NonZeros]
"""Copies of all parameters; those of truly sparse layers with their positions."""


class Recorder:
    """Writes one JSON line for each thing measured.

    Events: ``signal`` (step 0), ``flow`` (at the cadence), ``update`` (just
    before and just after a mask update), ``eval``. Nothing that depends on the
    clock or the machine's load is written, so equal runs write equal bytes. A
    number that is not finite, or not known as the dense gradient's norm of a
    truly sparse network, is null.
    """

    def __init__(self, spec: RunSpec, parts: Assembly, journal: Journal) -> None:
        """Remember where the weights start, and add to ``journal``."""
        self._spec, self._parts, self._journal = spec, parts, journal
        self._start = self._weights()
        self._seen: tuple[int, Flow] | None = None
        self.accuracy: float = float("nan")

    def start_from(self, state: State) -> None:
        """Measure distances from these weights (a resumed run's own beginning)."""
        for name, weight in self._start.items():
            if isinstance(weight, NonZeros):
                self._start[name] = state.masked[name]
                continue
            kept = state.masked.get(name)
            start = state.others[name] if kept is None else kept.dense()
            self._start[name] = start.to(weight.device)

    def observe(self, topology: Topology, step: int) -> None:
        """Measure what is due after ``step`` steps."""
        measure, last = self._spec.measure, step == self._spec.train.steps
        if step == 0:
            self._write({"event": "signal", "step": 0, **self._parts.beginning})
        if step % measure.every == 0 or last:
            self._write({"event": "flow", "step": step, **self._flow_record(topology, step)})
        if step % measure.evaluate == 0 or last:
            test = in_batches(self._parts.dataset.test)
            self.accuracy, loss = evaluate(self._parts.model, test)
            record = {"test_accuracy": self.accuracy, "test_loss": loss}
            self._write({"event": "eval", "step": step, **record})

    @contextmanager
    def around(self, topology: Topology) -> Iterator[None]:
        """Measure just before and just after a mask update."""
        if not self._is_measured(topology):
            yield
            return
        before, masks = self._flow(topology), topology.masks
        yield
        after = self._flow(topology)
        self._seen = (topology.step, after)
        self._write(
            {
                "event": "update",
                "step": topology.step,
                "before": _brief(before),
                "after": _brief(after),
                "active": topology.masks.nnz,
                "churn": churn(masks, topology.masks),
            }
        )

    def _is_measured(self, topology: Topology) -> bool:
        """Say whether this update is the first of its ``measure.updates`` steps.

        It follows from the step alone, so that a resumed run measures the same ones.
        """
        apart, step = self._spec.measure.updates, topology.step
        if not apart:
            return False
        return not any(map(topology.method.due, range(max(1, step - step % apart), step)))

    def _flow(self, topology: Topology) -> Flow:
        parts = self._parts
        return gradient_flow(parts.model, parts.loss, parts.probe, topology.masks)

    def _flow_record(self, topology: Topology, step: int) -> dict[str, Any]:
        parts = self._parts
        fresh = self._seen is None or self._seen[0] != step
        flow = self._flow(topology) if fresh else self._seen[1]  # type: ignore[index]
        lr = parts.rate(min(step, max(self._spec.train.steps - 1, 0)))
        drop = step_decrease(parts.model, parts.loss, parts.probe, topology.masks, lr)
        return {
            **asdict(flow),
            "lr": lr,
            "decrease": asdict(drop),
            "distance": asdict(_moved(self._start, self._weights())),
        }

    def _weights(self) -> Weights:
        model = self._parts.model
        weights: Weights = {n: p.detach().clone() for n, p in named_weights(model).items()}
        for name, layer in sparse_weights(model).items():
            values = layer.values.detach().clone()
            weights[name] = NonZeros(layer.indices(), values, layer.shape)
        return weights

    def _write(self, record: dict[str, Any]) -> None:
        self._journal.append(msgspec.json.encode(record) + b"\n")  # NaN becomes null


def _moved(before: Weights, after: Weights) -> Distance:
    """Distance between two states of one model; of sparse layers over all places active in either.

    Everywhere else both are zero: the dense weights have the same distance.
    """
    a, b = {}, {}
    for name, was in before.items():
        now = after[name]
        if isinstance(was, NonZeros) and isinstance(now, NonZeros):
            a[name], b[name] = at_union([was, now])
        else:
            a[name], b[name] = was, now
    return distance(a, b)


def _brief(flow: Flow) -> dict[str, float]:
    return {k: v for k, v in asdict(flow).items() if k != "per_layer"}
