"""The training loop on a GPU."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from helpers.small import network
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import sparseflow as sf
from sparseflow.core.errors import DivergedError
from sparseflow.data import Batches, Examples
from sparseflow.data.augment import CropFlip
from sparseflow.data.normalise import Normalise
from sparseflow.train.loop import fit

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")


def stream(device: torch.device) -> Batches:
    draws = torch.Generator().manual_seed(5)
    x = torch.randn(60, 6, generator=draws)
    return Batches(Examples(x.to(device), (x[:, 0] > 0).long().to(device)), 12, seed=0)


def test_bfloat16_autocast(gpu: torch.device) -> None:
    def autocast(model: nn.Module, data: Any) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return sf.cross_entropy(model, data)

    net = network().to(gpu)
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
    topology = sf.attach(net, optimizer, masks, sf.RigL(sf.every(5)))
    before = float(sf.cross_entropy(net, stream(gpu)[0]))
    fit(net, autocast, stream(gpu), optimizer, steps=40)
    assert float(sf.cross_entropy(net, stream(gpu)[0])) < before
    assert topology.updates == 8
    for name, mask in topology.masks.items():
        assert net.get_parameter(name).dtype == torch.float32
        assert not net.get_parameter(name)[~mask].any()


def test_a_loss_that_is_not_finite_leaves_the_weights_as_they_were(device: torch.device) -> None:
    net = network().to(device)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def explode(model: nn.Module, data: Any) -> Tensor:
        return sf.cross_entropy(model, data) / 0

    with pytest.raises(DivergedError, match="the loss is inf at step 0"):
        fit(net, explode, stream(device), optimizer, steps=2)
    assert all(map(torch.equal, net.parameters(), before))


def trained(device: torch.device, steps: int) -> None:
    net = network().to(device)
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sf.attach(net, optimizer, masks, sf.RigL(sf.every(1000)))
    fit(net, sf.cross_entropy, stream(device), optimizer, steps=steps)


def test_no_step_drains_the_queue_of_the_gpu(gpu: torch.device) -> None:
    """``fit`` waits for an event, that of the loss; another step is no further wait."""
    trained(gpu, 2)

    def waits(steps: int) -> int:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            trained(gpu, steps)
        return sum(event.count for event in seen.key_averages() if event.key in WAITS)

    assert waits(12) == waits(2)


def test_batches_are_made_without_waiting(
    device: torch.device, no_waiting: Callable[[], AbstractContextManager[None]]
) -> None:
    if device.type != "cuda":
        pytest.skip("only CUDA copies from the host without waiting")
    draws = torch.Generator().manual_seed(5)
    x = torch.randint(256, (60, 3, 8, 8), generator=draws, dtype=torch.uint8)
    images = Examples(x, torch.arange(60), Normalise((0.5,) * 3, (0.2,) * 3), CropFlip(2))
    batches = Batches(images.to(device), 12, seed=0, augment=True)
    plain = Batches(images, 12, seed=0, augment=True)
    torch.testing.assert_close(batches[0][0].cpu(), plain[0][0])
    with no_waiting():
        for step in range(1, 8):
            batches[step]
    assert torch.equal(batches[7][1].cpu(), plain[7][1])
