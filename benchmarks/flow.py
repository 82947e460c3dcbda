"""Cost of measuring gradient flow during training."""

from __future__ import annotations

import sparseflow as sf
from benchmarks.cases import LENET5
from benchmarks.timing import Record, interleave

AUTHORS_PER_STEP = 1 / 200 + 2 / 100
LIGHT_PER_STEP = 1 / 200


def gradient_flow(share: float) -> list[Record]:
    """One measurement in units of masked steps, and its share of the training time."""
    model, masks = LENET5.sparse_model()
    paper, light = LENET5.examples(1000), LENET5.examples(250)
    timings = interleave(
        "flow",
        LENET5.title,
        {
            "step": LENET5.step(model, masks, sf.Static()),
            "paper": lambda: sf.gradient_flow(model, sf.cross_entropy, paper, masks),
            "light": lambda: sf.gradient_flow(model, sf.cross_entropy, light, masks),
        },
        LENET5.turns(share),
    )
    return [
        timings.record(
            "one measurement on 1,000 examples", "paper", "step", lambda f, s: f / s, "steps"
        ),
        timings.record(
            "the authors' cadence: 1,000 examples every 200 steps, "
            "and before and after each update every 100",
            "paper",
            "step",
            lambda flow, step: 100 * AUTHORS_PER_STEP * flow / step,
            "%",
        ),
        timings.record(
            "a light cadence: 250 examples every 200 steps",
            "light",
            "step",
            lambda flow, step: 100 * LIGHT_PER_STEP * flow / step,
            "%",
            target=3.0,
        ),
    ]
