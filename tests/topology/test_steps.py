"""Steps, loads and parameters: what is attached is what is trained, and nothing else steps it."""

import copy
import gc
import weakref

import pytest
import torch
from helpers.scatter import scattered
from helpers.small import batch, loss, network, snapshot, take
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import TopologyError
from sparseflow.topology.steps import ATTACHED, stack


def start(way="dense", make=None, method=None):
    model = network()
    masks = sf.sparsify(model, density=0.4, init=None)
    if way == "sparse":
        model = scattered(model, masks)
    make = make or (lambda m: torch.optim.AdamW(m.parameters(), lr=0.01))
    optimizer = make(model)
    method = method or sf.RigL(sf.every(2), sf.constant(0.5))
    return model, optimizer, sf.attach(model, optimizer, masks, method)


def off(model, optimizer, masks):
    """Entries off the masks that are not zero, in weights and state."""
    found = snapshot(model, optimizer)
    return sum(int(t[~m].count_nonzero()) for n, m in masks.items() for t in found[n])


# ---- one optimiser


def test_another_optimiser_is_refused_while_the_first_is_attached():
    model, _, topology = start()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TopologyError, match=r"0\.weight, 2\.weight are attached already"):
        sf.attach(model, other, topology.masks, sf.Static())
    topology.detach()
    sf.attach(model, other, topology.masks, sf.Static())
    take(model, other, 0)


@pytest.mark.parametrize("way", ["dense", "sparse"])
def test_a_step_of_another_optimiser_is_refused(way):
    model, optimizer, topology = start(way)
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(model, batch(0)).backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TopologyError, match=r"SGD steps a weight .* attached to .* AdamW"):
        other.step()
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))
    optimizer.step()
    assert topology.step == 1
    biases = torch.optim.SGD([model[0].bias], lr=0.1)
    biases.step()
    topology.detach()
    other.step()


def test_a_model_that_is_gone_leaves_nothing_behind():
    model, optimizer, topology = start()
    take(model, optimizer, 0)
    gone = [weakref.ref(each) for each in (topology, model, *model.parameters())]
    held = set(ATTACHED._steps)
    del model, optimizer, topology
    gc.collect()
    assert not any(each() is not None for each in gone)
    assert len(set(ATTACHED._steps) & held) <= len(held) - 2


class Wrapper(torch.optim.Optimizer):
    """An optimiser around others, as Lookahead and the like are."""

    def __init__(self, inner):
        self.inner = [inner]
        super().__init__(inner.param_groups, {})
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        return self.inner[0].step(closure)


@pytest.mark.parametrize("to", ["outer", "inner"])
def test_an_optimiser_around_another_takes_one_step(to):
    model = network()
    masks = sf.sparsify(model, density=0.4, init=None)
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    outer = Wrapper(inner)
    assert stack(outer) == [outer, inner]
    method = sf.RigL(sf.every(2), sf.constant(0.5))
    topology = sf.attach(model, outer if to == "outer" else inner, masks, method)
    for step in range(4):
        take(model, outer, step)
        assert not off(model, inner, topology.masks)
    assert (topology.step, topology.updates) == (4, 2)


def test_a_step_that_fails_does_not_count():
    model, optimizer, topology = start()
    take(model, optimizer, 0)

    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(fails)
    assert topology.step == 1
    take(model, optimizer, 1)
    assert (topology.step, topology.updates) == (2, 1)


# ---- parameters


@pytest.mark.parametrize("way", ["dense", "sparse"])
@pytest.mark.parametrize("what", ["parameter", "module"])
def test_a_replaced_parameter_is_noticed_at_the_step(what, way):
    model, optimizer, _ = start(way)
    take(model, optimizer, 0)
    name = "weight" if way == "dense" else "values"
    if what == "parameter":
        setattr(model[2], name, nn.Parameter(getattr(model[2], name).detach().clone()))
    else:
        model[2] = copy.deepcopy(model[2])
    loss(model, batch(1)).backward()
    with pytest.raises(TopologyError, match=r"2\.weight is another parameter than") as error:
        optimizer.step()
    assert "\n" not in str(error.value)


def test_assigned_states_are_noticed():
    model, optimizer, _ = start()
    model.load_state_dict(network().state_dict(), assign=True)
    loss(model, batch(1)).backward()
    with pytest.raises(TopologyError, match=r"0\.weight is another parameter than"):
        optimizer.step()


# ---- loads


def test_what_is_loaded_is_masked_at_once():
    model, optimizer, topology = start()
    for step in range(3):
        take(model, optimizer, step)
    dense = network()
    other = torch.optim.AdamW(dense.parameters(), lr=0.01)
    take(dense, other, 0)
    model.load_state_dict(dense.state_dict())
    assert not off(model, optimizer, topology.masks)
    optimizer.load_state_dict(other.state_dict())
    assert not off(model, optimizer, topology.masks)
    for name, mask in topology.masks.items():
        assert torch.equal(model.get_parameter(name)[mask], dense.get_parameter(name)[mask])
    model[2].load_state_dict(dense[2].state_dict())
    assert not off(model, optimizer, topology.masks)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_an_earlier_state_is_loaded_in_mid_training(order):
    """Where the masks come last, what they name comes back, bit for bit."""
    parts = start()
    for step in range(3):
        take(*parts[:2], step)
    saved = copy.deepcopy([part.state_dict() for part in parts])
    expected = snapshot(*parts[:2])
    for step in range(3, 8):
        take(*parts[:2], step)
    for index in order:
        parts[index].load_state_dict(saved[index])
        assert not off(*parts[:2], parts[2].masks)
    assert parts[2].step == 3
    for name, tensors in snapshot(*parts[:2]).items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, expected[name], strict=True))


def test_values_off_the_masks_are_not_kept_beyond_the_next_step():
    model, optimizer, topology = start(method=sf.Static())
    model.load_state_dict(network().state_dict())
    take(model, optimizer, 0)
    state = topology.state_dict()
    full = {name: torch.ones_like(mask) for name, mask in state["masks"].items()}
    topology.load_state_dict({**state, "masks": full})
    assert int(model[0].weight.count_nonzero()) == int(state["masks"]["0.weight"].sum())


def test_other_connections_in_a_truly_sparse_layer_are_noticed():
    model, optimizer, topology = start("sparse")
    states = copy.deepcopy([model.state_dict(), topology.state_dict()])
    for step in range(2):
        take(model, optimizer, step)
    model.load_state_dict(states[0])
    loss(model, batch(2)).backward()
    with pytest.raises(TopologyError, match=r"connections loaded into 0\.weight are not those"):
        optimizer.step()
    topology.load_state_dict(states[1])
    optimizer.step()
    assert topology.step == 1


def test_copies_do_not_take_the_hooks_of_loads_along():
    model, _, topology = start()
    twin = copy.deepcopy(model)
    twin.load_state_dict(network().state_dict())
    assert twin[0].weight.all()
    topology.detach()
    assert not model[0]._load_state_dict_post_hooks
    model.load_state_dict(network().state_dict())
    assert model[0].weight.all()


# ---- rates


def test_each_weight_follows_the_rate_of_its_own_group():
    model = network()
    masks = sf.sparsify(model, density=0.5, init=None)
    groups = [{"params": [p], "lr": 0.1} for p in model.parameters()]
    optimizer = torch.optim.SGD(groups)
    seen = {}

    class Seen(sf.SET):
        def update_layer(self, connections):
            seen[connections.name] = connections.moment.lr_ratio
            return super().update_layer(connections)

    topology = sf.attach(model, optimizer, masks, Seen(sf.every(1)))
    for group, rate in zip(optimizer.param_groups, (0.05, 7.0, 0.3, 9.0), strict=True):
        group["lr"] = rate
    take(model, optimizer, 0)
    assert seen == pytest.approx({"0.weight": 0.5, "2.weight": 3.0})
    assert topology.state_dict()["initial_lr"] == {"0.weight": 0.1, "2.weight": 0.1}
    topology.load_state_dict({**topology.state_dict(), "initial_lr": 0.2})  # as of version 0.1
    assert topology.moment.lr_ratio == pytest.approx(0.25)
