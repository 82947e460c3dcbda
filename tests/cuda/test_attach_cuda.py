"""Topologies on a GPU: the masks of the CPU, exact zeros, whatever steps the optimiser takes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from helpers.own import Aging, TopKAST, example
from helpers.small import batch, loss, network
from torch import nn

import sparseflow as sf
from sparseflow.topology import Topology
from sparseflow.topology.steps import Steps

STEPS, EACH, HALF = 7, sf.every(2), sf.constant(0.5)
METHODS: dict[str, Callable[[], sf.Method]] = {
    "static": sf.Static,
    "set": lambda: sf.SET(EACH, HALF),
    "rigl": lambda: sf.RigL(EACH, HALF),
    "rigl-inverted": lambda: sf.RigLInverted(EACH, HALF),
    "prune": lambda: sf.GradualPruning(0.1, 2, 6, 2),
    "aging": lambda: Aging(EACH, HALF),
    "top-kast": lambda: TopKAST(0.4, 0.3, 2),
    "snfs": lambda: example().SNFS(EACH, HALF),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, **how: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, **how),
    "adam": lambda p, **how: torch.optim.Adam(p, lr=0.01, amsgrad=True, **how),
    "adamw": lambda p, **how: torch.optim.AdamW(p, lr=0.01, **how),
    "nadam": lambda p, **how: torch.optim.NAdam(p, lr=0.01, **how),
    "radam": lambda p, **how: torch.optim.RAdam(p, lr=0.01, **how),
    "adamax": lambda p, **how: torch.optim.Adamax(p, lr=0.01, **how),
    "adagrad": lambda p, **how: torch.optim.Adagrad(p, lr=0.05, **how),
    "rmsprop": lambda p, **how: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, **how),
}
FUSED = ("sgd", "adam", "adamw", "adagrad")
CAPTURABLE = ("adam", "adamw", "nadam", "radam", "adamax", "rmsprop")


def to(device: torch.device | str, step: int) -> Any:
    return tuple(t.to(device) for t in batch(step, torch.float64))


def trained(
    device: torch.device | str, method: str, optimizer: str = "adam", **how: bool
) -> tuple[nn.Module, Topology]:
    """Seven steps in float64, with masks that change at the second, fourth and sixth."""
    net = network(torch.float64).to(device)
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    stepping = OPTIMIZERS[optimizer](net.parameters(), **how)
    topology = sf.attach(net, stepping, masks, METHODS[method]())
    for step in range(STEPS):
        stepping.zero_grad()
        loss(net, to(device, step)).backward()
        stepping.step()
    return net, topology


def assert_same_training(
    ours: tuple[nn.Module, Topology], theirs: tuple[nn.Module, Topology], device: torch.device
) -> None:
    (net, topology), (other, expected) = ours, theirs
    assert topology.masks.digest() == expected.masks.digest()
    assert topology.updates == expected.updates
    for name, mask in topology.masks.items():
        assert mask.device.type == device.type
        assert not net.get_parameter(name)[~mask].any()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_the_masks_that_it_makes_on_the_cpu(
    method: str, device: torch.device
) -> None:
    assert_same_training(trained(device, method), trained("cpu", method), device)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}], ids=["loop", "foreach"])
def test_every_optimiser_keeps_the_masks(
    optimizer: str, how: dict[str, bool], device: torch.device
) -> None:
    ours = trained(device, "rigl", optimizer, **how)
    assert_same_training(ours, trained("cpu", "rigl", optimizer), device)


@pytest.mark.parametrize("optimizer", FUSED)
def test_fused_optimisers_keep_the_masks(optimizer: str, gpu: torch.device) -> None:
    ours = trained(gpu, "rigl", optimizer, fused=True)
    assert_same_training(ours, trained("cpu", "rigl", optimizer), gpu)


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.parametrize("optimizer", CAPTURABLE)
def test_capturable_optimisers_keep_the_masks(optimizer: str, gpu: torch.device) -> None:
    ours = trained(gpu, "rigl", optimizer, capturable=True)
    assert_same_training(ours, trained("cpu", "rigl", optimizer), gpu)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", ["static", "set", "rigl", "prune"])
def test_the_host_waits_for_updates_alone(
    method: str,
    optimizer: str,
    device: torch.device,
    no_waiting: Callable[[], AbstractContextManager[None]],
) -> None:
    net = network().to(device)
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    stepping = OPTIMIZERS[optimizer](net.parameters())
    rules = {"prune": sf.GradualPruning(0.1, 4, 8, 4), "static": sf.Static()}
    cls = sf.RigL if method == "rigl" else sf.SET
    topology = sf.attach(net, stepping, masks, rules.get(method) or cls(sf.every(4)))
    batches = [tuple(t.to(device) for t in batch(step)) for step in range(9)]
    quiet = 0
    for step, examples in enumerate(batches):
        stepping.zero_grad()
        if step and not topology.method.due(step + 1):  # the first step makes the momentum
            with no_waiting():
                loss(net, examples).backward()
                stepping.step()
            quiet += 1
        else:
            loss(net, examples).backward()
            stepping.step()
    assert (quiet, topology.updates) == ((8, 0) if method == "static" else (6, 2))


def test_the_loss_scale_is_read_for_updates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr(Steps, "unit", property(lambda steps: reads.append(steps) or 1.0))
    _, topology = trained("cpu", "rigl", "adamw")
    assert len(reads) == topology.updates == 3


def test_a_state_loads_on_either_device(device: torch.device) -> None:
    _, there = trained(device, "snfs")
    _, here = trained("cpu", "snfs")
    state = here.state_dict()
    here.load_state_dict(there.state_dict())
    there.load_state_dict(state)
    assert here.masks.digest() == there.masks.digest()
    assert all(mask.device.type == "cpu" for mask in here.masks.values())
    assert all(mask.device.type == device.type for mask in there.masks.values())


def test_gradients_scaled_for_half_precision(gpu: torch.device) -> None:
    net = network().to(gpu)
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    topology = sf.attach(net, optimizer, masks, sf.RigL(EACH, HALF))
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            value = loss(net, tuple(t.to(gpu) for t in batch(step)))
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
    assert topology.updates == STEPS // 2
    for name, mask in topology.masks.items():
        assert not net.get_parameter(name)[~mask].any()
