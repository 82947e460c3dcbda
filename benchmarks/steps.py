"""Cost of masks and of their updates in a training step."""

from __future__ import annotations

from copy import deepcopy

import sparseflow as sf
from benchmarks.cases import LENET5, MLP, RESNET18, Case
from benchmarks.timing import Record, interleave

UPDATE_INTERVAL = 100


def masked_step(share: float) -> list[Record]:
    """The masked step against the plain dense step of the same model, from the same state."""

    def record(case: Case, target: float | None) -> Record:
        model, masks = case.sparse_model()
        sides = {
            "dense": case.step(deepcopy(model)),
            "masked": case.step(model, masks, sf.Static()),
        }
        return interleave("step", case.title, sides, case.turns(share)).record(
            "masked step over dense step",
            "masked",
            "dense",
            lambda masked, dense: 100 * (masked / dense - 1),
            "%",
            target,
        )

    return [record(LENET5, 8.0), record(MLP, None), record(RESNET18, 3.0)]


def rigl_update(share: float) -> list[Record]:
    """A step that ends in a RigL update against a masked step that does not."""
    rigl = sf.RigL(sf.every(1), drop=sf.constant(0.3), grow_from="batch")

    def record(case: Case, target: float) -> Record:
        model, masks = case.sparse_model()
        sides = {
            "masked": case.step(deepcopy(model), masks, sf.Static()),
            "update": case.step(model, masks, rigl),
        }
        return interleave("update", case.title, sides, case.turns(share)).record(
            f"RigL update, amortised over {UPDATE_INTERVAL} steps",
            "update",
            "masked",
            lambda update, masked: 100 * (update / masked - 1) / UPDATE_INTERVAL,
            "%",
            target,
        )

    return [record(LENET5, 2.0), record(RESNET18, 2.0)]
