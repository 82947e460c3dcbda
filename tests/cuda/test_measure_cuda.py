"""Measurements on a GPU: the values of the CPU, in float64."""

import copy
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sparseflow as sf

X = torch.randn(40, 16, generator=torch.Generator().manual_seed(9)).double()
Y = torch.arange(40) % 3


def solution(seed: int, convolution: bool = False) -> tuple[nn.Module, sf.Masks]:
    torch.manual_seed(seed)
    layers = [nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 3)]
    if convolution:
        layers = [nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()]
        layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 3)]
    net = nn.Sequential(*layers).double().eval()
    return net, sf.sparsify(net, 0.4, pattern="constant_fan_in", seed=seed)


class There:
    """Three solutions and the data, on one device."""

    def __init__(self, device: torch.device | str) -> None:
        self.batch = (X.to(device), Y.to(device))
        solutions = [solution(seed) for seed in range(3)]
        self.nets = [net.to(device) for net, _ in solutions]
        self.net, self.masks = self.nets[0], solutions[0][1].to(device)
        self.states = [copy.deepcopy(net.state_dict()) for net in self.nets]
        self.logits = {str(i): sf.predict(net, self.batch[0]) for i, net in enumerate(self.nets)}

    @cached_property
    def hessian(self) -> sf.Curvature:
        return sf.hessian(self.net, sf.cross_entropy, self.batch, self.masks)


CURVATURE: dict[str, Callable[[There], Any]] = {
    "hessian": lambda t: t.hessian.dense(),
    "gauss_newton": lambda t: sf.gauss_newton(t.net, sf.cross_entropy, t.batch, t.masks).dense(),
    "eigenvalues": lambda t: sf.eigenvalues(t.hessian, 2).values,
    "spectrum": lambda t: sf.spectrum(t.hessian).values,
    "trace": lambda t: sf.trace(t.hessian, probes=4),
    "spectral_density": lambda t: sf.spectral_density(t.hessian, 20, 2).density(),
}
MEASUREMENTS: dict[str, Callable[[There], Any]] = {
    "gradient_flow": lambda t: sf.gradient_flow(t.net, sf.cross_entropy, t.batch, t.masks, chunk=9),
    "step_decrease": lambda t: sf.step_decrease(t.net, sf.cross_entropy, t.batch, t.masks, 1e-3),
    "signal": lambda t: sf.signal(t.net, t.batch[0], sf.maskable(t.net)),
    "flops": lambda t: sf.flops(t.net, t.batch[0][:1], t.masks),
    "distance": lambda t: sf.distance(*t.states[:2]),
    "distances": lambda t: sf.distances(t.states, masks=[t.masks] * 3),
    "mds": lambda t: sf.mds(sf.distances(t.states)).points,
    "interpolate": lambda t: sf.interpolate(
        t.net, *t.states[:2], sf.loss_and_accuracy, t.batch, 5, batch_norm_data=t.batch
    ),
    "plane": lambda t: sf.plane(t.net, *t.states, sf.cross_entropy, t.batch, points=(3, 2)),
    "align": lambda t: sf.align(t.net, *t.states[:2], starts=2),
    "pairwise": lambda t: sf.pairwise(t.logits),
    "ensemble": lambda t: sf.ensemble(t.logits),
    "score": lambda t: sf.score(sf.ensemble(t.logits), t.batch[1]),
    "disagreement": lambda t: sf.disagreement(t.logits["0"], t.logits["1"]),
    "divergence": lambda t: sf.divergence(t.logits["0"].softmax(1), t.logits["1"].softmax(1)),
}


def assert_close(ours: Any, theirs: Any) -> None:
    if is_dataclass(ours):
        ours, theirs = asdict(ours), asdict(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_close(ours[key], theirs[key])
    elif isinstance(ours, tuple | list):
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b)
    elif isinstance(ours, Tensor):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-9)
    elif isinstance(ours, np.ndarray | float | int):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    else:
        assert ours == theirs


@pytest.fixture(scope="module")
def here() -> There:
    return There("cpu")


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_are_those_of_the_cpu(name: str, here: There, device: torch.device) -> None:
    measure = MEASUREMENTS[name]
    assert_close(measure(There(device)), measure(here))


@pytest.mark.parametrize("name", CURVATURE)
def test_curvature_is_that_of_the_cpu(name: str, here: There, device: torch.device) -> None:
    if device.type == "pretended":
        pytest.skip("a device in Python does not know forward-mode differentiation")
    measure = CURVATURE[name]
    assert_close(measure(There(device)), measure(here))


def test_states_of_two_devices_are_compared(here: There, device: torch.device) -> None:
    there = There(device)
    ours = sf.distance(there.states[0], here.states[1])
    assert ours.l2 == pytest.approx(sf.distance(*here.states[:2]).l2, rel=1e-9)
    ends = (here.states[0], there.states[1])
    path = sf.interpolate(there.net, *ends, sf.cross_entropy, there.batch, 3)
    plain = sf.interpolate(here.net, *here.states[:2], sf.cross_entropy, here.batch, 3)
    assert_close(path, plain)


@pytest.mark.parametrize("operator", [sf.hessian, sf.gauss_newton])
def test_curvature_of_convolutions(operator: Callable[..., Any], gpu: torch.device) -> None:
    dense = []
    for device in (gpu, "cpu"):
        net, masks = solution(0, convolution=True)
        batch = (X.to(device), Y.to(device))
        dense.append(operator(net.to(device), sf.cross_entropy, batch, masks.to(device)).dense())
    assert_close(*dense)
