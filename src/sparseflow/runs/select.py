"""Find runs in a store, and measure their checkpoints again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sparseflow.core.parameters import maskable
from sparseflow.measure import distance, gradient_flow, signal
from sparseflow.runs.build import load_data, make_model, probe_batch
from sparseflow.runs.override import with_seeds
from sparseflow.runs.spec import RunSpec, identity
from sparseflow.runs.store import Run, Store
from sparseflow.train import cross_entropy, evaluate


def matching(specs: Iterable[RunSpec], store: Store) -> list[Run]:
    """Finished runs that equal one of the specifications but for their seeds.

    They come in the order of the specifications, then of the seeds.
    """
    order = {identity(with_seeds(spec, 0)): i for i, spec in enumerate(specs)}
    found: list[tuple[int, RunSpec, Run]] = []
    for run in store.runs():
        place = order.get(identity(with_seeds(run.spec, 0)))
        if place is not None and run.finished:
            found.append((place, run.spec, run))

    def key(item: tuple[int, RunSpec, Run]) -> tuple[int, int, int, int]:
        seeds = item[1].seeds
        return item[0], seeds.init, seeds.mask, seeds.data

    return [run for _, _, run in sorted(found, key=key)]


def remeasure(run: Run, step: int, *, device: str = "cpu") -> dict[str, Any]:
    """Measure a kept checkpoint again: gradient flow, signal, accuracy, distance to step 0.

    Raises:
        StoreError: if the step was not kept or a file is damaged.
    """
    weights, masks = run.checkpoint(step)
    start, _ = run.checkpoint(0)
    model, data = make_model(run.spec).to(device), load_data(run.spec).to(device)
    model.load_state_dict(weights)
    masks = masks.to(device)
    probe = probe_batch(data, run.spec.data.probe, 0)
    accuracy, loss = evaluate(model, data.test_x, data.test_y)
    names = dict(model.named_parameters())
    moved = distance({n: start[n] for n in names}, {n: weights[n] for n in names})
    return {
        "run": run.id,
        "recipe": run.spec.recipe,
        "step": step,
        "test_accuracy": accuracy,
        "test_loss": loss,
        "flow": asdict(gradient_flow(model, cross_entropy, probe, masks)),
        "signal": asdict(signal(model, probe[0], maskable(model))),
        "distance_to_start": asdict(moved),
        "active": masks.counts,
        "masks": masks.digest(),
    }
