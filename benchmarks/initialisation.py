"""Time to create the masks and the weights of a ResNet-50."""

from __future__ import annotations

from torch import nn

import sparseflow as sf
from benchmarks.timing import Record, interleave
from sparseflow.models import build

ROUNDS = 30
DENSITY = 0.2


def initialisation(share: float) -> list[Record]:
    """Per-neuron initialisation and creation of masks, over torch's ``kaiming_normal_``."""
    layers = sf.maskable(build("resnet50"))
    masks = sf.make_masks(layers, DENSITY, allocation="erk")

    def kaiming() -> None:
        for layer in layers.values():
            nn.init.kaiming_normal_(layer.parameter)

    timings = interleave(
        "init",
        f"ResNet-50, {masks.size / 1e6:.1f}M weights, {1 - DENSITY:.0%} ERK",
        {
            "kaiming": kaiming,
            "initialise": lambda: sf.initialise(layers, masks, "fan_in"),
            "masks": lambda: sf.make_masks(layers, DENSITY, allocation="erk"),
        },
        max(4, round(share * ROUNDS)),
    )

    def records(side: str, figure: str, target: float | None) -> list[Record]:
        over = f"{figure}, over kaiming_normal_"
        return [
            timings.record(figure, side, "kaiming", lambda side, _: 1e3 * side, "ms", target),
            timings.record(over, side, "kaiming", lambda side, kaiming: side / kaiming, "×"),
        ]

    return [
        *records("initialise", "initialise, fan-in normal", 500.0),
        *records("masks", "make_masks, random", None),
    ]
