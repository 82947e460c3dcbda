"""Detaching without a trace, and saving and loading the state."""

import copy

import pytest
import torch
from helpers.small import assert_same, batch, loss, network, snapshot, take

import sparseflow as sf
from sparseflow.core.errors import MaskError, TopologyError


def sgd(model: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def adam(model: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def start(make=sgd):
    model = network()
    masks = sf.sparsify(model, density=0.3, init=None)
    optimizer = make(model)
    method = sf.RigL(sf.every(2), sf.constant(0.5))
    return model, optimizer, sf.attach(model, optimizer, masks, method)


@pytest.mark.parametrize("make", [sgd, adam])
def test_detach_leaves_no_trace(make):
    """Hooks are gone, and training goes on exactly as if there had never been any."""
    model, optimizer, topology = start(make)
    for step in range(3):
        take(model, optimizer, step)
    topology.detach()
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    for parameter in model.parameters():
        assert not parameter._post_accumulate_grad_hooks
        assert not parameter._backward_hooks
    plain = network()
    plain.load_state_dict(model.state_dict())
    plain_optimizer = make(plain)
    plain_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        take(model, optimizer, step)
        take(plain, plain_optimizer, step)
    assert_same(snapshot(model, optimizer), snapshot(plain, plain_optimizer))
    assert model[0].weight.all()
    assert topology.step == 3
    topology.detach()


def test_static_on_full_masks_is_plain_training():
    model, plain = network(), network()
    optimizer, plain_optimizer = sgd(model), sgd(plain)
    full = sf.full_masks(sf.maskable(model))
    sf.attach(model, optimizer, full, sf.Static())
    for step in range(5):
        take(model, optimizer, step)
        take(plain, plain_optimizer, step)
    assert_same(snapshot(model, optimizer), snapshot(plain, plain_optimizer))


METHODS = {
    "set": lambda m: sf.SET(sf.every(2), sf.lr_proportional(0.5)),
    "rigl": lambda m: sf.RigL(sf.every(2), sf.constant(0.5)),
    "probe": lambda m: sf.RigL(sf.every(2), grow_from=sf.probe_gradient(m, loss, batch(9))),
    "pruning": lambda m: sf.GradualPruning(0.1, 1, 9, 2),
}


@pytest.mark.parametrize("stop", [1, 4, 5])
@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("way", METHODS)
def test_state_is_saved_and_loaded(way, make, stop):
    """Interrupted at any step and continued in fresh objects: the same, bit for bit."""

    def fresh():
        model = network()
        optimizer = make(model)
        density = 1.0 if way == "pruning" else 0.3
        masks = sf.sparsify(model, density=density, init=None)
        return model, optimizer, sf.attach(model, optimizer, masks, METHODS[way](model), seed=5)

    def advance(model, optimizer, steps):
        for step in steps:
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            take(model, optimizer, step)

    model, optimizer, topology = fresh()
    advance(model, optimizer, range(stop))
    saved = copy.deepcopy([x.state_dict() for x in (model, optimizer, topology)])
    advance(model, optimizer, range(stop, 9))
    other, other_optimizer, other_topology = fresh()
    with torch.no_grad():
        for p in other.parameters():
            p.fill_(3.0)
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    other_topology.load_state_dict(saved[2])
    advance(other, other_optimizer, range(stop, 9))
    assert topology.masks.digest() == other_topology.masks.digest()
    assert topology.state_dict().keys() == other_topology.state_dict().keys()
    assert (topology.step, topology.updates) == (other_topology.step, other_topology.updates)
    assert_same(snapshot(model, optimizer), snapshot(other, other_optimizer))


def test_states_that_do_not_fit():
    topology = start()[2]
    state = topology.state_dict()
    with pytest.raises(TopologyError, match="lacks deferred, step"):
        topology.load_state_dict({k: v for k, v in state.items() if k not in ("step", "deferred")})
    with pytest.raises(TopologyError, match=r"differ in: 2\.weight"):
        topology.load_state_dict({**state, "masks": {"0.weight": state["masks"]["0.weight"]}})
    wrong = {**state["masks"], "0.weight": torch.ones(2, 2) > 0}
    with pytest.raises(MaskError, match=r"shape \(2, 2\)"):
        topology.load_state_dict({**state, "masks": wrong})
    assert topology.state_dict()["masks"] == state["masks"]


def test_an_update_that_is_owed_is_saved_too():
    model = network()
    masks = sf.sparsify(model, density=0.3, init=None)
    good = sf.probe_gradient(model, loss, batch(9))
    factors = iter([torch.inf, 1.0, 1.0])

    def source():
        factor = next(factors)
        return {n: g * factor for n, g in good().items()}

    method = sf.RigL(sf.every(3), sf.constant(0.5), source)

    def attached():
        optimizer = sgd(model)
        return optimizer, sf.attach(model, optimizer, masks, method)

    optimizer, topology = attached()
    for step in range(3):
        take(model, optimizer, step)
    assert topology.updates == 0
    state = copy.deepcopy(topology.state_dict())
    topology.detach()
    optimizer, topology = attached()
    topology.load_state_dict(state)
    take(model, optimizer, 3)
    assert (topology.step, topology.updates) == (4, 1)


# ---- what a method remembers


def remembering(method):
    model = network()
    masks = sf.sparsify(model, density=0.4, init=None)
    optimizer = adam(model)
    return model, optimizer, sf.attach(model, optimizer, masks, method)


def test_an_update_that_is_deferred_leaves_what_the_method_remembers():
    """The first layer is updated, and moves its state; the gradient of the second is infinite."""

    class Counting(sf.RigL):
        def update_layer(self, connections):
            count = connections.state.get("count", torch.zeros_like(connections.values))
            after = super().update_layer(connections)
            connections.state["count"] = count + 1
            return after

    model, optimizer, topology = remembering(Counting(sf.every(1), sf.constant(0.0)))
    for broken in (True, False):
        optimizer.zero_grad()
        off = ~topology.masks["2.weight"]
        hook = model[2].weight.register_hook(lambda g, off=off: g.masked_fill(off, torch.inf))
        if not broken:
            hook.remove()
        loss(model, batch(0)).backward()
        hook.remove()
        optimizer.step()
        assert topology.updates == int(not broken)
    memory = topology.state_dict()["memory"]
    assert {name: tensor.unique().tolist() for name, tensor in memory.items()} == {
        "state/0.weight/count": [1.0],
        "state/2.weight/count": [1.0],
    }


def test_remembered_tensors_of_another_shape_are_refused():
    class Counting(sf.SET):
        def observe(self, layers):
            for layer in layers.values():
                layer.state["count"] = torch.ones_like(layer.values)

    model, optimizer, topology = remembering(Counting(sf.every(2)))
    take(model, optimizer, 0)
    take(model, optimizer, 1)
    state = topology.state_dict()
    before = topology.masks
    wrong = {**state, "memory": {**state["memory"], "state/0.weight/count": torch.ones(3)}}
    with pytest.raises(TopologyError, match=r"state\['count'\] of 0\.weight has shape \(3,\)"):
        topology.load_state_dict(wrong)
    assert topology.masks == before
    topology.load_state_dict(state)
