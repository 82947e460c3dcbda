"""Find runs in a store, and measure their checkpoints again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from msgspec.structs import astuple, replace

from sparseflow.core.parameters import maskable
from sparseflow.measure import distance, gradient_flow, signal, step_decrease
from sparseflow.runs.build import load_data, make_model, make_rate, probe_batch
from sparseflow.runs.override import with_seeds
from sparseflow.runs.spec import RunSpec, Seeds, identity
from sparseflow.runs.store import Run, Store
from sparseflow.train import cross_entropy, evaluate


def matching(specs: Iterable[RunSpec], store: Store) -> list[Run]:
    """Finished runs that equal one of the specifications but for their seeds.

    They come in the order of the specifications, then of the seeds, under the
    recipe that was asked for: one run may have been made under another name.
    Runs of other numerics are left out.
    """
    wanted = {identity(with_seeds(spec, 0)): (i, spec.recipe) for i, spec in enumerate(specs)}
    found: list[tuple[int, Seeds, Run]] = []
    for run in store.runs():
        place, recipe = wanted.get(identity(with_seeds(run.spec, 0)), (None, ""))
        if place is not None and run.finished and run.id == identity(run.spec):
            spec = replace(run.spec, recipe=recipe)
            found.append((place, spec.seeds, Run(run.path, spec)))
    found.sort(key=lambda item: (item[0], *astuple(item[1])))
    return [run for _, _, run in found]


def remeasure(run: Run, step: int, *, device: str = "cpu") -> dict[str, Any]:
    """Measure a kept checkpoint again: gradient flow, a step's gain, signal, accuracy, distance.

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
    lr = make_rate(run.spec)(min(step, max(run.spec.train.steps - 1, 0)))
    moved = distance({n: start[n] for n in names}, {n: weights[n] for n in names})
    return {
        "run": run.id,
        "recipe": run.spec.recipe,
        "step": step,
        "test_accuracy": accuracy,
        "test_loss": loss,
        "flow": asdict(gradient_flow(model, cross_entropy, probe, masks)),
        "signal": asdict(signal(model, probe[0], maskable(model))),
        "decrease": asdict(step_decrease(model, cross_entropy, probe, masks, lr)),
        "distance_to_start": asdict(moved),
        "active": masks.counts,
        "masks": masks.digest(),
    }
