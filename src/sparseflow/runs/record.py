"""Measure a run on its way and append what was seen to ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseflow.core.random import generator
from sparseflow.masks import churn
from sparseflow.measure import Flow, distance, gradient_flow, signal, step_decrease
from sparseflow.runs.build import Assembly
from sparseflow.runs.spec import RunSpec
from sparseflow.topology import Topology
from sparseflow.train import evaluate

NOISE = 500
"""Examples of N(0, 1) noise for the signal at initialisation (the paper's figure 1)."""


class Recorder:
    """Writes one JSON line for each thing measured.

    Events: ``signal`` (step 0), ``flow`` (at the cadence), ``update`` (just
    before and just after a mask update), ``eval``. Nothing that depends on the
    clock or the machine's load is written, so equal runs write equal bytes.
    """

    def __init__(self, spec: RunSpec, parts: Assembly, path: Path) -> None:
        """Remember where the weights start, and append to ``path``."""
        self._spec, self._parts, self._path = spec, parts, path
        self._start = self._weights()
        self._seen: tuple[int, Flow] | None = None
        self.accuracy = float("nan")

    def rewind(self, size: int) -> None:
        """Forget what was written after the checkpoint that a run resumes from."""
        with self._path.open("a+b") as file:
            file.truncate(size)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._path.stat().st_size if self._path.exists() else 0

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Measure distances from these weights (a resumed run's own beginning)."""
        device = next(iter(self._start.values())).device
        self._start = {n: weights[n].to(device) for n in self._start}

    def observe(self, topology: Topology, step: int) -> None:
        """Measure what is due after ``step`` steps."""
        measure, last = self._spec.measure, step == self._spec.train.steps
        if step == 0:
            self._write({"event": "signal", "step": 0, **self._signal()})
        if step % measure.every == 0 or last:
            self._write({"event": "flow", "step": step, **self._flow_record(topology, step)})
        if step % measure.evaluate == 0 or last:
            data = self._parts.dataset
            self.accuracy, loss = evaluate(self._parts.model, data.test_x, data.test_y)
            record = {"test_accuracy": self.accuracy, "test_loss": loss}
            self._write({"event": "eval", "step": step, **record})

    @contextmanager
    def around(self, topology: Topology) -> Iterator[None]:
        """Measure just before and just after a mask update."""
        if not self._spec.measure.updates:
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
            "distance": asdict(distance(self._start, self._weights())),
        }

    def _signal(self) -> dict[str, Any]:
        parts = self._parts
        images = parts.probe[0]
        stream = generator(self._spec.seeds.data, "noise")
        noise = torch.randn(NOISE, *images.shape[1:], generator=stream).to(images.device)
        layers = parts.layers
        dead = sum(int((~layers[n].neurons(m).any(1)).sum()) for n, m in parts.masks.items())
        return {
            "images": asdict(signal(parts.model, images, layers)),
            "noise": asdict(signal(parts.model, noise, layers)),
            "neurons_without_input": dead,
            "active": parts.masks.counts,
        }

    def _weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self._parts.model.named_parameters()}

    def _write(self, record: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _brief(flow: Flow) -> dict[str, float]:
    return {k: v for k, v in asdict(flow).items() if k != "per_layer"}
