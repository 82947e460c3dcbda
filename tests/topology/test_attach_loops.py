"""Attach under every way a training loop is written."""

import pytest
import torch
from helpers.small import assert_same, batch, loss, network, snapshot, take
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import TopologyError

DOUBLE = torch.float64


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def rigl(n: int = 2, fraction: float = 0.5) -> sf.RigL:
    return sf.RigL(sf.every(n), sf.constant(fraction))


def start(make=sgd, method=None, dtype=DOUBLE, density=0.3):
    """Two calls give the same network, masks and optimiser."""
    model = network(dtype)
    masks = sf.sparsify(model, density=density, init=None)
    optimizer = make(model)
    return model, optimizer, sf.attach(model, optimizer, masks, method or rigl())


def assert_close(ours, theirs):
    assert list(ours) == list(theirs)
    for name, tensors in ours.items():
        for a, b in zip(tensors, theirs[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


# ---- accumulation, clipping, groups, closures


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_micro_batches_equal_one_batch(parts, set_to_none):
    model, optimizer, topology = start()
    other, other_optimizer, other_topology = start()
    initial = topology.masks.digest()
    for step in range(9):
        take(model, optimizer, step)
        other_optimizer.zero_grad(set_to_none=set_to_none)
        x, y = batch(step, DOUBLE)
        for data in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (loss(other, data) / parts).backward()
        other_optimizer.step()
        assert topology.masks.digest() == other_topology.masks.digest()
    assert topology.masks.digest() != initial
    assert_close(snapshot(model, optimizer), snapshot(other, other_optimizer))


@pytest.mark.parametrize("to_none", [True, False])
def test_a_backward_pass_that_is_thrown_away_does_not_count(to_none):
    """As in sharpness-aware training: two backward passes, zero_grad between them."""
    model, optimizer, topology = start()
    other, other_optimizer, other_topology = start()
    for step in range(8):
        take(model, optimizer, step)
        other_optimizer.zero_grad(set_to_none=to_none)
        (1000 * loss(other, batch(70 + step, DOUBLE))).backward()
        other_optimizer.zero_grad(set_to_none=to_none)
        loss(other, batch(step, DOUBLE)).backward()
        other_optimizer.step()
    assert topology.masks.digest() == other_topology.masks.digest()
    assert_same(snapshot(model, optimizer), snapshot(other, other_optimizer))


def test_clipping_sees_the_norm_of_the_sparse_gradient():
    model, optimizer, topology = start(density=0.2)
    for step in range(6):
        optimizer.zero_grad()
        value = loss(model, batch(step, DOUBLE))
        dense = dict(
            zip(
                [n for n, _ in model.named_parameters()],
                torch.autograd.grad(value, list(model.parameters()), retain_graph=True),
                strict=True,
            )
        )
        value.backward()
        active = [g * topology.masks.get(n, torch.ones(())) for n, g in dense.items()]
        expected = torch.cat([g.flatten() for g in active]).norm()
        total = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=0.0)
        assert expected < torch.cat([g.flatten() for g in dense.values()]).norm()
        after = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        assert float(after) == pytest.approx(0.05, rel=1e-4)
        optimizer.step()
    assert topology.updates == 3


def test_parameter_groups():
    """Groups with their own rates: the drop fraction of a weight follows that of its own."""
    model = network()
    masks = sf.sparsify(model, density=0.5, init=None)
    groups = [
        {"params": [model[2].bias], "lr": 0.0},
        {"params": [model[0].weight, model[0].bias], "lr": 0.01, "weight_decay": 0.1},
        {"params": [model[2].weight], "lr": 0.4},
    ]
    optimizer = torch.optim.SGD(groups, lr=9.0, momentum=0.9)
    fractions = {}

    class Seen(sf.RigL):
        def update_layer(self, connections):
            active = len(connections.indices)
            fractions[connections.name] = self.dropped(connections.moment, active) / active
            return super().update_layer(connections)

    topology = sf.attach(model, optimizer, masks, Seen(sf.every(1), sf.lr_proportional(0.4)))
    bias = model[2].bias.detach().clone()
    optimizer.param_groups[1]["lr"] = 0.05  # above its start: not more than is asked for
    optimizer.param_groups[2]["lr"] = 0.1
    take(model, optimizer, 0)
    assert topology.moment == (1, pytest.approx(5.0))
    counts = masks.counts
    assert fractions == {
        name: int(fraction * counts[name]) / counts[name]
        for name, fraction in (("0.weight", 0.4), ("2.weight", 0.1))
    }
    assert torch.equal(model[2].bias, bias)
    for name, mask in topology.masks.items():
        assert not dict(model.named_parameters())[name][~mask].any()


def test_only_some_layers_are_masked():
    model = network()
    layers = sf.maskable(model, dense_last=True)
    masks = sf.sparsify(model, density=0.5, init=None, layers=layers)
    optimizer = sgd(model)
    topology = sf.attach(model, optimizer, masks, rigl(1))
    take(model, optimizer, 0)
    assert list(topology.masks) == ["0.weight"]
    assert model[2].weight.all()


@pytest.mark.parametrize("make", [sgd, adam])
def test_closures(make):
    model, optimizer, topology = start(make)
    other, other_optimizer, other_topology = start(make)
    for step in range(6):
        take(model, optimizer, step)

        def closure(step=step):
            other_optimizer.zero_grad()
            value = loss(other, batch(step, DOUBLE))
            value.backward()
            return value

        other_optimizer.step(closure)
    assert other_topology.updates == topology.updates == 3
    assert topology.masks.digest() == other_topology.masks.digest()
    assert_same(snapshot(model, optimizer), snapshot(other, other_optimizer))


@pytest.mark.parametrize("method", [sf.SET(sf.every(1)), rigl(1)])
def test_a_frozen_layer_keeps_its_connections(method):
    model, optimizer, topology = start(method=method)
    before = topology.masks
    model[2].weight.requires_grad_(False)
    take(model, optimizer, 0)
    assert topology.updates == 1
    assert torch.equal(topology.masks["2.weight"], before["2.weight"])
    assert not torch.equal(topology.masks["0.weight"], before["0.weight"])
    model[2].weight.requires_grad_(True)
    take(model, optimizer, 1)
    assert not torch.equal(topology.masks["2.weight"], before["2.weight"])


# ---- non-finite gradients


@pytest.mark.parametrize("where", ["weight", "bias"])
@pytest.mark.parametrize("make", [sgd, adam])
def test_a_step_that_grad_scaler_skips_leaves_no_trace(make, where):
    """The skipped batch must not be in the growth gradient of the next step."""
    model, optimizer, topology = start(make)
    other, other_optimizer, other_topology = start(make)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    for step in range(6):
        take(model, optimizer, step)
    for step, broken in [(0, False), (90, True), (91, True), *((i, False) for i in range(1, 6))]:
        other_optimizer.zero_grad()
        parameter = getattr(other[0], where)
        hooks = [parameter.register_hook(lambda g: g * torch.inf)] if broken else []
        scaler.scale(loss(other, batch(step, DOUBLE))).backward()
        scaler.step(other_optimizer)
        scaler.update()
        for hook in hooks:
            hook.remove()
    assert scaler.get_scale() == 2.0**8
    assert topology.step == other_topology.step == 6
    assert topology.updates == other_topology.updates == 3
    assert topology.masks.digest() == other_topology.masks.digest()
    assert_close(snapshot(model, optimizer), snapshot(other, other_optimizer))


def test_a_step_that_a_fused_optimiser_skips_is_none():
    """Fused AdamW takes the scaler's verdict and its scale itself: its hooks fire all the same."""
    found = {}

    class Seen(sf.RigL):
        def grow_score(self, view):
            found[view.name] = view.gradient
            return super().grow_score(view)

    model = network()
    masks = sf.sparsify(model, density=0.3, init=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    topology = sf.attach(model, optimizer, masks, Seen(sf.every(2), sf.constant(0.5)))
    scaler = torch.amp.GradScaler(device="cpu", init_scale=4.0)
    for step in range(3):
        optimizer.zero_grad()
        value = loss(model, batch(step))
        dense = torch.autograd.grad(value, [model[0].weight], retain_graph=True)
        scaled = scaler.scale(value)
        (scaled * torch.inf if step == 1 else scaled).backward()
        assert topology.masks.digest() == masks.digest()
        scaler.step(optimizer)
        scaler.update()
        assert topology.step == int(optimizer.state[model[0].weight]["step"])
        assert all(p.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(found["0.weight"], dense[0])
    assert topology.masks.digest() != masks.digest()
    assert (topology.step, topology.updates) == (2, 1)


def test_a_probe_gradient_that_is_not_finite_defers_the_update():
    model = network()
    good = sf.probe_gradient(model, loss, batch(9))
    bad = iter([True, True, False, False, False])

    def source():
        found = good()
        return {n: g * torch.nan for n, g in found.items()} if next(bad) else found

    masks = sf.sparsify(model, density=0.3, init=None)
    optimizer = sgd(model)
    method = sf.RigL(sf.every(3), sf.constant(0.5), source)
    topology = sf.attach(model, optimizer, masks, method)
    updates = []
    for step in range(9):
        take(model, optimizer, step)
        updates.append(topology.updates)
    assert updates == [0, 0, 0, 0, 1, 2, 2, 2, 3]


def test_sparse_gradients_are_refused():
    model = nn.Embedding(5, 4, sparse=True)
    layers = sf.maskable(model, types=[nn.Embedding])
    masks = sf.make_masks(layers, 0.5)
    sf.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), masks, sf.Static())
    with pytest.raises(TopologyError, match=r"weight has a torch.sparse_coo gradient"):
        model(torch.tensor([1])).sum().backward()


def test_an_infinite_gradient_of_an_inactive_weight_reaches_nothing() -> None:
    model = nn.Linear(2, 1, bias=False)
    masks = sf.Masks({"weight": torch.tensor([[True, False]])})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sf.attach(model, optimizer, masks, sf.Static())
    model(torch.tensor([[1.0, torch.inf]]).nan_to_num(posinf=3e38)).mul(1e30).sum().backward()
    optimizer.step()
    assert model.weight[0, 1] == 0
    assert torch.isfinite(model.weight).all()
