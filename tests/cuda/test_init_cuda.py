"""Masks and weights that are made on a GPU are those that are made on the CPU."""

import pytest
import torch
from torch import nn

import sparseflow as sf
from sparseflow.init import GLOROT, NAMED, Initialisation
from sparseflow.masks import shuffle_masks
from sparseflow.masks.patterns import PATTERNS


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(32, 5))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("allocation", ["uniform", "erk", "magnitude"])
def test_masks(pattern: str, allocation: str, device: torch.device) -> None:
    ours, theirs = (
        sf.make_masks(sf.maskable(net), 0.3, allocation=allocation, pattern=pattern, seed=3)
        for net in (network().to(device), network())
    )
    assert ours.digest() == theirs.digest()
    assert {mask.device.type for mask in ours.values()} == {device.type}
    assert shuffle_masks(ours, 4).digest() == shuffle_masks(theirs, 4).digest()


@pytest.mark.parametrize("init", [*NAMED, None, GLOROT], ids=str)
def test_weights(init: str | Initialisation | None, device: torch.device) -> None:
    ours, theirs = network().to(device), network()
    for net in (ours, theirs):
        sf.sparsify(net, 0.5, pattern="constant_fan_in", init=init)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.cpu(), q)
