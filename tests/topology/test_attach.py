"""Attach: the shared matrix of methods × optimisers, and every way a loop is written."""

from collections.abc import Callable
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from helpers.small import assert_same, batch, loss, network, snapshot, take
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.core.errors import MaskError, TopologyError
from sparseflow.core.random import generator

# ---- the shared matrix


OPTIMIZERS: dict[str, tuple[Callable[[nn.Module], torch.optim.Optimizer], int]] = {
    "sgd": (lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), 1),
    "nesterov": (
        lambda m: torch.optim.SGD(
            m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1
        ),
        1,
    ),
    "adam": (lambda m: torch.optim.Adam(m.parameters(), lr=0.01, foreach=False), 2),
    "amsgrad": (lambda m: torch.optim.Adam(m.parameters(), lr=0.01, amsgrad=True), 3),
    "adamw foreach": (lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, foreach=True), 2),
    "adamw fused": (lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True), 2),
    "adagrad": (lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05), 1),
    "rmsprop": (lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5), 2),
    "adafactor": (lambda m: torch.optim.Adafactor(m.parameters(), lr=0.05), 0),
    "muon": (lambda m: torch.optim.Muon([p for p in m.parameters() if p.ndim == 2], lr=0.05), 1),
    "rprop": (lambda m: torch.optim.Rprop(m.parameters(), lr=0.01), 2),
}

METHODS: dict[str, Callable[[nn.Module], sf.Method]] = {
    "static": lambda m: sf.Static(),
    "set": lambda m: sf.SET(sf.every(2), sf.constant(0.4)),
    "rigl": lambda m: sf.RigL(sf.every(2), sf.constant(0.4)),
    "rigl inverted": lambda m: sf.RigLInverted(sf.every(2), sf.constant(0.4)),
    "rigl probe": lambda m: sf.RigL(
        sf.every(2), sf.constant(0.4), sf.probe_gradient(m, loss, batch(99))
    ),
    "pruning": lambda m: sf.GradualPruning(0.1, 1, 9, 2),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("way", METHODS)
def test_matrix(way, kind):
    """Exact zeros off the mask after every step, in weights and in optimiser state;
    grown at zero and clean; nothing else is touched by an update.
    """
    model = network()
    make, slots = OPTIMIZERS[kind]
    optimizer = make(model)
    method = METHODS[way](model)
    masks = sf.sparsify(model, density=1.0 if way == "pruning" else 0.4, init=None)
    seen: dict[str, list[Tensor]] = {}

    @dataclass
    class Around:
        """What was there just before an update."""

        topology: sf.Topology

        def __enter__(self):
            seen.update(snapshot(model, optimizer))

        def __exit__(self, *_):
            return None

    topology = sf.attach(model, optimizer, masks, method, around=Around)
    for step in range(10):
        before = topology.masks
        seen.clear()
        take(model, optimizer, step)
        assert bool(seen) == method.due(step + 1)
        for name, mask in topology.masks.items():
            weight = dict(model.named_parameters())[name]
            tensors = snapshot(model, optimizer)[name]
            assert len(tensors) == 1 + slots
            for i, tensor in enumerate(tensors):
                assert not tensor[~mask].any()
                assert not tensor[mask & ~before[name]].any()
                if seen:
                    stayed = mask & before[name]
                    assert torch.equal(tensor[stayed], seen[name][i][stayed])
            assert not weight.grad[~mask].any()
            assert weight[mask].abs().sum() > 0
    assert topology.step == 10
    assert topology.updates == sum(method.due(s) for s in range(1, 11))
    if way == "pruning":
        assert topology.masks.counts == {"0.weight": 6, "2.weight": 3}
    else:
        assert topology.masks.counts == masks.counts
    changes = way in ("set", "rigl", "rigl probe", "pruning")
    assert changes <= (topology.masks.digest() != masks.digest())


def test_dropped_and_grown_at_once_keeps_value_and_state():
    """Growth that prefers the connections just dropped: all must come back as they were."""

    class Back(sf.SET):
        def grow_score(self, view):
            return view.weight.abs()

    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    masks = sf.sparsify(model, density=0.4, init=None)
    topology = sf.attach(model, optimizer, masks, Back(sf.every(1), sf.constant(0.9)))
    twin = network()
    twin_optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
    sf.attach(twin, twin_optimizer, masks, sf.Static())
    for step in range(4):
        take(model, optimizer, step)
        take(twin, twin_optimizer, step)
    assert topology.updates == 4
    assert topology.masks.digest() == masks.digest()
    assert_same(snapshot(model, optimizer), snapshot(twin, twin_optimizer))


def test_every_update_of_every_layer_has_its_own_stream():
    drawn = {}

    class Draw(sf.SET):
        def update_layer(self, connections):
            key = (connections.moment.step, connections.name)
            stream = connections.generator
            drawn[key] = torch.randint(10**9, (4,), generator=stream).tolist()
            return connections.indices

    model = network()
    masks = sf.sparsify(model, density=0.5, init=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sf.attach(model, optimizer, masks, Draw(sf.every(2)), seed=7)
    for step in range(4):
        take(model, optimizer, step)
    assert drawn == {
        (step, name): torch.randint(
            10**9, (4,), generator=generator(7, "update", step, name)
        ).tolist()
        for step in (2, 4)
        for name in ("0.weight", "2.weight")
    }
    assert len({tuple(d) for d in drawn.values()}) == 4


# ---- against a plain implementation


def naive_rigl(model, masks, *, steps, n, fraction, lr, momentum, decay):
    """RigL with SGD, written from the paper in loops: gradient step first, then the masks."""
    weights = {k: p.detach().clone() for k, p in model.named_parameters()}
    masks = {k: m.clone() for k, m in masks.items()}
    velocity = {k: torch.zeros_like(w) for k, w in weights.items()}
    for step in range(1, steps + 1):
        leaves = {k: w.clone().requires_grad_() for k, w in weights.items()}
        x, y = batch(step - 1, torch.float64)
        hidden = torch.tanh(x @ leaves["0.weight"].T + leaves["0.bias"])
        out = hidden @ leaves["2.weight"].T + leaves["2.bias"]
        grads = torch.autograd.grad((out - y).square().mean(), list(leaves.values()))
        dense = dict(zip(leaves, grads, strict=True))
        for k, w in weights.items():
            m = masks.get(k, torch.ones_like(w)).to(w)
            velocity[k] = (momentum * velocity[k] + dense[k] * m + decay * w) * m
            weights[k] = (w - lr * velocity[k]) * m
        if step % n:
            continue
        for k, mask in masks.items():
            flat, w = mask.flatten().tolist(), weights[k].flatten().tolist()
            g = dense[k].flatten().tolist()
            active = [i for i, on in enumerate(flat) if on]
            count = int(fraction * len(active))
            kept = set(active) - set(sorted(active, key=lambda i: abs(w[i]))[:count])
            free = [i for i in range(len(flat)) if i not in kept]
            grown = sorted(free, key=lambda i: -abs(g[i]))[:count]
            new = torch.tensor([i in kept or i in grown for i in range(len(flat))])
            masks[k] = new.reshape(mask.shape)
            weights[k] *= masks[k]
            velocity[k] *= masks[k]
    return weights, masks


def test_rigl_equals_a_naive_implementation():
    model = network(torch.float64)
    masks = sf.sparsify(model, density=0.3, init=None)
    settings = {"lr": 0.2, "momentum": 0.9}
    weights, expected = naive_rigl(
        model, masks, steps=30, n=3, fraction=0.5, decay=0.01, **settings
    )
    optimizer = torch.optim.SGD(model.parameters(), weight_decay=0.01, **settings)
    method = sf.RigL(sf.every(3), sf.constant(0.5))
    topology = sf.attach(model, optimizer, masks, method)
    for step in range(30):
        take(model, optimizer, step)
    assert topology.masks.digest() == sf.Masks(expected).digest() != masks.digest()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name], rtol=1e-9, atol=1e-12)


def test_growth_from_a_probe():
    """The gradient is that of the probe, without decay, at the weights after the step."""
    model, twin = network(torch.float64), network(torch.float64)
    masks = sf.sparsify(model, density=0.3, init=None)
    probe = batch(50, torch.float64)
    found = {}

    class Seen(sf.RigL):
        def grow_score(self, view):
            found[view.name] = view.gradient
            return super().grow_score(view)

    method = Seen(sf.every(1), sf.constant(0.3), sf.probe_gradient(model, loss, probe, chunk=5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    sf.attach(model, optimizer, masks, method)
    take(model, optimizer, 0)

    masks.apply(twin)
    loss(twin, batch(0, torch.float64)).backward()
    with torch.no_grad():
        for p in twin.parameters():
            p.sub_(0.1 * (p.grad + 0.1 * p))
    masks.apply(twin)
    twin.zero_grad()
    loss(twin, probe).backward()
    for name in masks:
        expected = dict(twin.named_parameters())[name].grad
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


@dataclass(frozen=True)
class Explorer(sf.SET):
    """A method of one's own: drop by saliency |w · g|, grow by |g| with some noise."""

    noise: float = 0.5

    @property
    def growth_gradient(self):
        return "batch"

    def drop_score(self, view):
        return (view.weight * view.gradient).abs()

    def grow_score(self, view):
        noise = torch.rand(view.mask.shape, generator=view.generator)
        return view.gradient.abs() * (1 + self.noise * noise)


def test_a_method_of_ones_own():
    model = network()
    masks = sf.sparsify(model, density=0.4, init=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = sf.attach(model, optimizer, masks, Explorer(sf.every(2)))
    for step in range(4):
        take(model, optimizer, step)
    assert topology.updates == 2
    assert topology.masks.counts == masks.counts
    assert topology.masks.digest() != masks.digest()


# ---- bad input


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m, k: (torch.optim.LBFGS(m.parameters()), k, sf.Static()), TopologyError, "LBFGS"),
        (lambda m, k: (sgd(m[0]), k, sf.Static()), TopologyError, "not hold the masked 2"),
        (
            lambda m, k: (sgd(m), {"0.weight": torch.ones(2, 2) > 0}, sf.Static()),
            MaskError,
            "has shape",
        ),
        (
            lambda m, k: (sgd(m), {"0.weight": torch.ones(10, 6)}, sf.Static()),
            MaskError,
            "float32",
        ),
        (lambda m, k: (sgd(m), {"x": torch.ones(1) > 0}, sf.Static()), MaskError, "'x'"),
    ],
)
def test_refused(make, error, message):
    model = network()
    optimizer, masks, method = make(model, sf.make_masks(sf.maskable(model), 0.5))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error, match=message):
        sf.attach(model, optimizer, masks, method)
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("method", "message"), [(sf.RigL, "make an instance"), (3, "3 is not a method: subclass")]
)
def test_what_is_not_a_method_is_refused(method, message, monkeypatch):
    """Outside of tests annotations do not check."""
    monkeypatch.setitem(jaxtyping.config.__dict__, "jaxtyping_disable", True)
    model = network()
    with pytest.raises(TopologyError, match=message):
        sf.attach(model, sgd(model), sf.make_masks(sf.maskable(model), 0.5), method)


def test_attaching_twice_is_refused_until_the_first_is_detached() -> None:
    model = nn.Linear(4, 4)
    masks = sf.Masks({"weight": torch.eye(4, dtype=torch.bool)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = sf.attach(model, optimizer, masks, sf.Static())
    with pytest.raises(TopologyError, match="attached already"):
        sf.attach(model, optimizer, masks, sf.Static())
    first.detach()
    sf.attach(model, optimizer, masks, sf.Static()).detach()


def test_a_frozen_parameter_is_refused() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.weight.requires_grad_(False)
    masks = sf.Masks({"weight": torch.eye(4, dtype=torch.bool)})
    with pytest.raises(TopologyError, match="frozen"):
        sf.attach(model, optimizer, masks, sf.Static())
