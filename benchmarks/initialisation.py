"""How long it takes to create the masks and the weights of a ResNet-50."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

import sparseflow as sf
from benchmarks.timing import Record, interleave

ROUNDS = 30
DENSITY = 0.2


def initialisation(share: float) -> list[Record]:
    """Per-neuron initialisation and mask creation against torch's own ``kaiming_normal_``."""
    layers = sf.maskable(resnet50_weights())
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


def resnet50_weights() -> nn.ModuleList:
    """The convolutions and the classifier of ResNet-50: 54 weights, 25.5 million numbers."""
    with torch.device("meta"):
        layers = nn.ModuleList(_layers())
    return layers.to_empty(device="cpu")


def _layers() -> Iterator[nn.Module]:
    yield nn.Conv2d(3, 64, 7, bias=False)
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        after = 4 * width
        yield nn.Conv2d(before, after, 1, bias=False)
        for _ in range(blocks):
            yield nn.Conv2d(before, width, 1, bias=False)
            yield nn.Conv2d(width, width, 3, bias=False)
            yield nn.Conv2d(width, after, 1, bias=False)
            before = after
    yield nn.Linear(before, 1000, bias=False)
