"""Measurements against explicit calculation; none of them changes training."""

import math
import statistics
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers.small import assert_same, batch, loss, network, snapshot
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import sparseflow as sf
from sparseflow.core.errors import MaskError, MeasureError
from sparseflow.measure.flow import mean_loss
from sparseflow.models import lenet5

DOUBLE = torch.float64


@pytest.fixture
def sparse():
    model = network(DOUBLE)
    return model, sf.sparsify(model, density=0.3, init=None)


# ---- gradient flow


@pytest.mark.parametrize("chunk", [1, 5, 12, 250])
def test_flow_against_explicit_calculation(sparse, chunk):
    """The network by hand: h = tanh(x W1ᵀ + b1), z = h W2ᵀ + b2, L = mean (z - y)²."""
    model, masks = sparse
    x, y = batch(0, DOUBLE)
    w1, b1, w2, b2 = (p.detach() for p in model.parameters())
    h = torch.tanh(x @ w1.T + b1)
    error = 2 * (h @ w2.T + b2 - y) / y.numel()
    back = (error @ w2) * (1 - h**2)
    grads = {
        "0.weight": back.T @ x,
        "0.bias": back.sum(0),
        "2.weight": error.T @ h,
        "2.bias": error.sum(0),
    }
    active = {n: g * masks[n] if n in masks else g for n, g in grads.items()}

    def norm(of, *names):
        return math.sqrt(sum(float(of[n].square().sum()) for n in names))

    flow = sf.gradient_flow(model, loss, (x, y), masks, chunk=chunk)
    expected = sf.Flow(
        loss=float((h @ w2.T + b2 - y).square().mean()),
        total=norm(active, *grads),
        kernels=norm(active, "0.weight", "2.weight"),
        biases=norm(active, "0.bias", "2.bias"),
        dense=norm(grads, *grads),
        effective=statistics.fmean(norm(active, n) for n in grads),
        per_layer={n: norm(active, n) for n in grads},
    )
    assert list(flow.per_layer) == list(grads)
    assert flow.per_layer == pytest.approx(expected.per_layer, rel=1e-12)
    for field in ("loss", "total", "kernels", "biases", "dense", "effective"):
        assert getattr(flow, field) == pytest.approx(getattr(expected, field), rel=1e-12)
    assert flow.total < flow.dense
    assert flow.total**2 == pytest.approx(flow.kernels**2 + flow.biases**2)


def test_flow_without_masks_is_dense(sparse):
    model, _ = sparse
    flow = sf.gradient_flow(model, loss, batch(0, DOUBLE))
    assert flow.total == flow.dense


def test_norms_of_weights_below_one_axis_count_as_biases():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.LayerNorm(4))
    x = torch.randn(5, 1, 4)
    flow = sf.gradient_flow(model, lambda m, b: m(b).pow(3).mean(), x)
    layers = flow.per_layer
    assert flow.kernels == pytest.approx(layers["0.weight"])
    assert flow.biases == pytest.approx(
        math.hypot(layers["0.bias"], layers["2.weight"], layers["2.bias"])
    )


def test_flow_fires_no_hook_and_leaves_grad_alone(sparse):
    model, masks = sparse
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    topology = sf.attach(model, optimizer, masks, sf.RigL(sf.every(1)))
    before = sf.gradient_flow(model, loss, batch(0, DOUBLE), masks)
    loss(model, batch(1, DOUBLE)).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    collected = {n: w.collected().clone() for n, w in topology._weights.items()}
    assert sf.gradient_flow(model, loss, batch(0, DOUBLE), topology.masks) == before
    sf.step_decrease(model, loss, batch(0, DOUBLE), topology.masks, lr=0.1)
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert all(torch.equal(g, topology._weights[n].collected()) for n, g in collected.items())
    assert topology.step == 0


def test_flow_takes_any_pytree_as_a_batch():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, *, first, second):
            return self.fc(first) * second

    x, y = batch(0)
    flow = sf.gradient_flow(
        Two(),
        lambda m, b: m(first=b["in"]["x"], second=b["in"]["y"]).square().mean() * b["scale"],
        {"in": {"x": x, "y": y}, "scale": 2.0},
        chunk=5,
    )
    assert flow.total > 0


def test_flow_of_masks_that_do_not_fit(sparse):
    model, _ = sparse
    with pytest.raises(MaskError, match="has shape"):
        sf.gradient_flow(model, loss, batch(0, DOUBLE), {"0.weight": torch.ones(1, 1) > 0})
    with pytest.raises(MaskError, match="a mask is a torch"):
        sf.gradient_flow(model, loss, batch(0, DOUBLE), {"0.weight": torch.ones(10, 6)})


# ---- training with and without measurement


def classifier() -> nn.Sequential:
    """Batch norm and dropout: statistics and random numbers that could be disturbed."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3)
    )


@pytest.mark.parametrize(
    "method",
    [sf.SET(sf.every(3)), sf.RigL(sf.every(3)), sf.GradualPruning(0.1, 3, 9, 3)],
    ids=["set", "rigl", "pruning"],
)
def test_training_is_the_same_bit_for_bit_with_and_without_measurement(method):
    def train(measured: bool):
        model = classifier()
        data = {step: (batch(step)[0], batch(step)[1].argmax(1)) for step in range(12)}
        probe = (batch(77, size=30)[0], batch(77, size=30)[1].argmax(1))
        layers = sf.maskable(model)
        density = 1.0 if isinstance(method, sf.GradualPruning) else 0.4
        masks = sf.sparsify(model, density=density, init=None)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        flows = []

        def measure(topology):
            flows.append(sf.gradient_flow(model, sf.cross_entropy, probe, topology.masks))
            sf.step_decrease(model, sf.cross_entropy, probe, topology.masks, lr=0.1, chunk=7)
            sf.signal(model, probe[0], layers)
            sf.distance(start, dict(model.named_parameters()))

        @contextmanager
        def around(topology):
            measure(topology)
            yield
            measure(topology)

        torch.manual_seed(8)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        topology = sf.attach(model, optimizer, masks, method, around=around if measured else None)
        observers = [lambda step: measure(topology)] if measured else []
        sf.fit(model, sf.cross_entropy, data, optimizer, steps=12, observers=observers)
        updates = sum(method.due(s) for s in range(1, 13))
        assert len(flows) == measured * (13 + 2 * updates)
        return snapshot(model, optimizer), dict(model.named_buffers()), topology.masks

    (ours, buffers, masks), (theirs, other_buffers, other_masks) = train(True), train(False)
    assert_same(ours, theirs)
    assert all(torch.equal(b, other_buffers[n]) for n, b in buffers.items())
    assert masks.digest() == other_masks.digest()
    assert float(buffers["1.num_batches_tracked"]) == 12


# ---- step decrease


class Quadratic(nn.Module):
    """L(w) = ½ wᵀ A w, whatever the batch."""

    def __init__(self):
        super().__init__()
        root = torch.randn(6, 6, dtype=DOUBLE)
        self.a = root @ root.T
        self.w = nn.Parameter(torch.randn(2, 3, dtype=DOUBLE))

    def forward(self, _):
        return self.w.flatten() @ self.a @ self.w.flatten() / 2


@pytest.mark.parametrize("lr", [1e-4, 0.01, 0.5])
def test_step_decrease_on_a_quadratic(lr):
    """lr |g|² predicted, lr |g|² - lr²/2 gᵀAg real, with g masked."""
    model = Quadratic()
    mask = torch.tensor([[True, False, True], [True, False, False]])
    before = model.w.detach().clone()
    found = sf.step_decrease(model, lambda m, b: m(b), torch.ones(9), {"w": mask}, lr, chunk=4)
    g = (model.a @ before.flatten()) * mask.flatten()
    predicted = lr * float(g @ g)
    actual = predicted - lr**2 / 2 * float(g @ model.a @ g)
    assert found.predicted == pytest.approx(predicted, rel=1e-12)
    assert found.actual == pytest.approx(actual, rel=1e-9, abs=1e-12)
    assert found.ratio == pytest.approx(actual / predicted, rel=1e-8)
    assert torch.equal(model.w.detach(), before)


def test_step_decrease_restores_the_weights_after_an_error(sparse):
    model, masks = sparse
    before = [p.detach().clone() for p in model.parameters()]
    calls = iter(range(9))

    def broken(m, b):
        if next(calls) == 1:
            raise RuntimeError("second call")
        return loss(m, b)

    with pytest.raises(RuntimeError, match="second call"):
        sf.step_decrease(model, broken, batch(0, DOUBLE), masks, lr=0.5)
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


def test_ratio_of_a_flat_loss_is_undefined():
    assert math.isnan(sf.Decrease(0.0, 0.0).ratio)


def test_mean_loss_weighs_chunks_by_their_examples(sparse):
    model, _ = sparse
    x, y = batch(0, DOUBLE)
    whole = float(loss(model, (x, y)).detach())
    chunks = [(x[:2], y[:2]), (x[2:], y[2:])]
    assert mean_loss(model, loss, chunks) == pytest.approx(whole, rel=1e-12)


# ---- signal


def test_signal_against_explicit_calculation():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))
    x = torch.randn(7, 2, 4, 4)
    found = sf.signal(model, x, sf.maskable(model))
    with torch.no_grad():
        first = functional.conv2d(x, model[0].weight, model[0].bias)
        last = functional.linear(first.relu().flatten(1), model[3].weight, model[3].bias)
    for value, tensor in [
        (found.per_layer["0.weight"], first),
        (found.per_layer["3.weight"], last),
        (found.output, last),
    ]:
        n = tensor.numel()
        mean = float(tensor.double().sum()) / n
        std = math.sqrt(float((tensor.double() - mean).square().sum()) / (n - 1))
        assert value == pytest.approx(std, rel=1e-6)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_loader_holds_more_than_inputs():
    model = nn.Linear(4, 2)
    loader = DataLoader(TensorDataset(torch.randn(8, 4), torch.zeros(8)), batch_size=4)
    with pytest.raises(MeasureError, match="the inputs are a DataLoader: pass those of one"):
        sf.signal(model, loader, sf.maskable(model))
    with pytest.raises(MeasureError, match="the inputs are a DataLoader: pass those of one"):
        sf.flops(model, loader)


def test_only_sparsity_aware_initialisations_hold_the_signal():
    """Figure 1: LeNet5 on noise, uneven masks; from 80 % to 95 % sparsity."""

    def output(init, density):
        found = []
        for seed in range(3):
            model = lenet5()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # dead neurons, which uneven masks have
                sf.sparsify(
                    model,
                    density=density,
                    allocation="uniform",
                    pattern="uneven",
                    init=init,
                    seed=seed,
                )
            noise = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
            found.append(sf.signal(model, noise, sf.maskable(model)).output)
        return statistics.median(found)

    held = {i: output(i, 0.05) / output(i, 0.2) for i in ("dense", "liu", "fan_in")}
    assert held["dense"] < 0.05
    assert held["liu"] > 0.1
    assert held["fan_in"] > 0.1
    assert output("fan_in", 0.05) > 100 * output("dense", 0.05)


# ---- distance


def test_distance_in_closed_form():
    a = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0])}
    b = {"b": torch.tensor([5.0]), "w": torch.tensor([[1.0, 2.0], [3.0, 0.0]])}
    found = sf.distance(a, b)
    assert found.l2 == 4
    assert found.cosine == pytest.approx(1 - 39 / math.sqrt(55 * 39))
    assert sf.distance(a, {n: -2 * t for n, t in a.items()}).cosine == pytest.approx(2)
    assert sf.distance(a, a).l2 == 0
    assert math.isnan(sf.distance(a, {n: 0 * t for n, t in a.items()}).cosine)


@pytest.mark.parametrize(
    ("other", "message"),
    [({"v": torch.ones(2)}, "differ in: v, w"), ({"w": torch.ones(2, 1)}, "different shapes")],
)
def test_distance_of_states_that_do_not_match(other, message):
    with pytest.raises(ValueError, match=message):
        sf.distance({"w": torch.ones(2)}, other)


# ---- models of all kinds


class Speaks(nn.Module):
    """Gives a mapping, as transformers do, and takes inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {"hidden": x, "logits": scale * self.layer(x)}


def test_models_that_give_a_mapping():
    torch.manual_seed(0)
    model, x, y = Speaks(), torch.randn(8, 6), torch.arange(8) % 3
    logits = model.layer(x)
    expected = float(nn.functional.cross_entropy(logits, y).detach())
    assert sf.gradient_flow(model, sf.cross_entropy, (x, y)).loss == pytest.approx(expected)
    state = model.state_dict()
    path = sf.interpolate(model, state, state, sf.loss_and_accuracy, (x, y), 3)
    assert path.losses[0] == pytest.approx(expected)
    layers = sf.maskable(model)
    spread = float(logits.std().detach())
    for inputs, scale in ((x, 1), ((x, 2.0), 2), ({"x": x, "scale": 3.0}, 3)):
        found = sf.signal(model, inputs, layers)
        assert found.output == pytest.approx(scale * spread, rel=1e-5)
        assert found.per_layer["layer.weight"] == pytest.approx(spread, rel=1e-5)
    with pytest.raises(MeasureError, match="the loss returns dict; it should be a scalar"):
        sf.gradient_flow(model, lambda m, b: m(b), x)
    model.layer = nn.Identity()
    with pytest.raises(MeasureError, match="the model gives tuple; wrap it"):
        sf.signal(nn.GRU(6, 3), x, {})


def test_sparse_gradients_count_as_the_dense_ones_do():
    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (600, 3)), torch.arange(600) % 3
    flows = []
    for as_sparse in (False, True):
        torch.manual_seed(1)
        table = nn.Embedding(20, 8, sparse=as_sparse)
        net = nn.Sequential(table, nn.Flatten(), nn.Linear(24, 3))
        masks = sf.sparsify(net, 0.5, layers=sf.maskable(net, types=[nn.Embedding, nn.Linear]))
        flows.append(sf.gradient_flow(net, sf.cross_entropy, tokens, masks))
    assert flows[0] == flows[1]


def test_half_precision_does_not_overflow_in_the_norm():
    torch.manual_seed(0)
    net = nn.Linear(2000, 200)
    x = torch.randn(4, 2000).half()

    def loss(model, batch):
        return model(batch).float().sum() * 300

    half = sf.gradient_flow(net.half(), loss, x)
    exact = sf.gradient_flow(net.double(), lambda m, b: m(b).sum() * 300, x.double())
    assert half.total > 65_504  # the largest number of float16
    assert half.total == pytest.approx(exact.total, rel=1e-3)


def test_what_has_no_gradient_is_refused():
    x, y = torch.randn(8, 6), torch.zeros(8, dtype=torch.long)
    frozen = nn.Linear(6, 3).requires_grad_(False)
    with pytest.raises(MeasureError, match="Linear has no trainable parameter: all are frozen"):
        sf.gradient_flow(frozen, sf.cross_entropy, (x, y))
    with pytest.raises(MeasureError, match="does not depend on any trainable parameter"):
        sf.gradient_flow(nn.Linear(6, 3), lambda m, b: b[0].sum(), (x, y))
    with pytest.raises(MeasureError, match=r"returns shape \(8,\); it should be a scalar"):
        sf.gradient_flow(nn.Linear(6, 3), lambda m, b: m(b[0]).sum(1), (x, y))


def test_complex_weights_are_measured_by_both_parts():
    torch.manual_seed(0)
    net = nn.Linear(6, 3, dtype=torch.complex128)
    x = torch.randn(10, 6, dtype=torch.complex128)

    def power(model, batch):
        return model(batch).abs().square().mean()

    flow = sf.gradient_flow(net, power, x)
    loss = power(net, x)
    grads = torch.autograd.grad(loss, list(net.parameters()))
    real = torch.cat([torch.view_as_real(g).flatten() for g in grads])
    assert flow.total == pytest.approx(float(real.norm()), rel=1e-12)
    gain = sf.step_decrease(net, power, x, {}, 1e-6)
    assert gain.ratio == pytest.approx(1, rel=1e-4)
    a = {n: t.clone() for n, t in net.state_dict().items()}
    b = {n: torch.randn_like(t) for n, t in a.items()}
    parts = [torch.cat([torch.view_as_real(t).flatten() for t in s.values()]) for s in (a, b)]
    assert sf.distance(a, b).l2 == pytest.approx(float((parts[0] - parts[1]).norm()), rel=1e-12)
    middle = {n: (a[n] + b[n]) / 2 for n in a}
    path = sf.interpolate(net, a, b, power, x, 3, span=(0.0, 1.0))
    ours = torch.func.functional_call(net, middle, (x,)).abs().square().mean()
    assert path.losses[1] == pytest.approx(float(ours), rel=1e-12)
    c = {n: torch.randn_like(t) for n, t in a.items()}
    found = sf.plane(net, a, b, c, power, x, points=(2, 2))
    assert np.linalg.norm(found.positions[1]) == pytest.approx(sf.distance(a, b).l2, rel=1e-12)
    spread = torch.view_as_real(net(x)).flatten(0, 1).var(0).sum().sqrt()
    signal = sf.signal(net, x, sf.maskable(net))
    assert signal.output == pytest.approx(float(spread.detach()), rel=1e-12)
    with pytest.raises(MeasureError, match=r"weight is torch\.complex128: curvature"):
        sf.hessian(net, power, x)


def test_complex_units_are_aligned_back():
    torch.manual_seed(0)
    kind = {"dtype": torch.complex128}
    net = nn.Sequential(nn.Linear(3, 5, **kind), nn.Tanh(), nn.Linear(5, 2, **kind))
    a = net.state_dict()
    turn = torch.tensor([2, 0, 1, 4, 3])
    b = dict(a) | {
        "0.weight": a["0.weight"][turn], "0.bias": a["0.bias"][turn],
        "2.weight": a["2.weight"][:, turn],
    }  # fmt: skip
    assert sf.align(net, a, b, starts=1).distance_after == 0
