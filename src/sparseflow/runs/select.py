"""Find runs in a store, and measure their checkpoints again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from sparseflow.core.parameters import maskable
from sparseflow.data import in_batches
from sparseflow.measure import distance, flops, gradient_flow, signal, step_decrease
from sparseflow.runs.build import load_data, make_loss, make_model, make_rate, probe_batch
from sparseflow.runs.hashing import identity
from sparseflow.runs.run import Run
from sparseflow.runs.spec import RunSpec
from sparseflow.runs.store import Store
from sparseflow.train import evaluate


def matching(makers: Iterable[Callable[[int], RunSpec]], store: Store) -> list[Run]:
    """Finished runs that a recipe makes at one of the store's seeds.

    They come in the order of the recipes, then of the seeds, under the name
    that was asked for: one run may have been made under another. Runs of
    other numerics are left out.

    Args:
        makers: each returns the specification of a recipe at a seed.
        store: where to look.
    """
    runs = {run.id: run for run in store.runs() if run.finished}
    seeds = sorted({run.spec.seeds.data for run in runs.values()})
    wanted = (make(seed) for make in makers for seed in seeds)
    asked = {(spec.recipe, identity(spec)): spec for spec in wanted}
    return [Run(runs[i].path, spec, runs[i].code) for (_, i), spec in asked.items() if i in runs]


def remeasure(run: Run, step: int, *, device: str = "cpu") -> dict[str, Any]:
    """Measure a kept checkpoint again: flow, a step's gain, signal, accuracy, distance, operations.

    Raises:
        StoreError: if the step was not kept or a file is damaged.
    """
    weights, masks = run.checkpoint(step)
    start, _ = run.checkpoint(0)
    run.check_code()
    model, data = make_model(run.spec).to(device), load_data(run.spec).to(device)
    model.load_state_dict(weights)
    masks = masks.to(device)
    probe, loss_of = probe_batch(data, run.spec.data.probe, 0), make_loss(run.spec)
    accuracy, loss = evaluate(model, in_batches(data.test))
    names = dict(model.named_parameters())
    lr = make_rate(run.spec)(min(step, max(run.spec.train.steps - 1, 0)))
    moved = distance({n: start[n] for n in names}, {n: weights[n] for n in names})
    return {
        "run": run.id,
        "recipe": run.spec.recipe,
        "step": step,
        "test_accuracy": accuracy,
        "test_loss": loss,
        "flow": asdict(gradient_flow(model, loss_of, probe, masks)),
        "signal": asdict(signal(model, probe[0], maskable(model))),
        "decrease": asdict(step_decrease(model, loss_of, probe, masks, lr)),
        "distance_to_start": asdict(moved),
        "flops": asdict(flops(model, probe[0][:1], masks)),
        "active": masks.counts,
        "masks": masks.digest(),
    }
