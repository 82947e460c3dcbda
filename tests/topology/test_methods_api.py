"""What a method may ask for: gradients of every step, memory, weights beyond its mask."""

import copy
from dataclasses import dataclass

import pytest
import torch
from helpers import ranks
from helpers.own import Aging, TopKAST, clean_slate, driven, example, push
from helpers.scatter import scattered
from helpers.small import assert_same, batch, loss, network, snapshot, take

import sparseflow as sf
from sparseflow.core.errors import MaskError, TopologyError
from sparseflow.train.checkpoint import load_resume, save_resume

EACH, HALF = sf.every(2), sf.constant(0.5)
METHODS = {
    "aging": lambda: Aging(EACH, HALF),
    "snfs": lambda: example().SNFS(EACH, HALF),
    "top-kast": lambda: TopKAST(0.4, 0.3),
}


@pytest.fixture(autouse=True)
def slate():
    with clean_slate():
        yield


def prepared(method, *, sparse=False, lr=0.1):
    model = network(torch.float64)
    masks = sf.sparsify(model, density=0.4, init=None)
    model = scattered(model, masks) if sparse else model
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return model, optimizer, sf.attach(model, optimizer, masks, method, seed=3)


# ---- memory


def test_state_moves_with_its_connections_and_new_ones_start_at_zero():
    """The young are spared: ages [2, 2, 1, 1] make 3 the oldest small weight."""
    model, optimizer, topology = driven(
        Aging(sf.every(1), sf.constant(0.5)),
        {"a": [4.0, 3, 2, 1, 0, 0, 0, 0]},
        {"a": [0, 1, 2, 3]},
    )
    push(model, optimizer, {"a": [0, 0, 0, 0, 9.0, 8, 0, 0]})
    memory = topology.state_dict()["memory"]
    assert topology.masks.indices("a.weight").tolist() == [0, 1, 4, 5]
    assert memory["state/a.weight/age"].tolist() == [1, 1, 0, 0]
    assert memory["whole/updates"].item() == 1
    with torch.no_grad():  # 4/2, 3/2, 1.9/1, 1.8/1
        model["a"].weight.view(-1)[4:6] = torch.tensor([1.9, 1.8])
    push(model, optimizer, {"a": [0, 0, 0, 9.0, 0, 0, 8, 0]})
    memory = topology.state_dict()["memory"]
    assert topology.masks.indices("a.weight").tolist() == [0, 3, 4, 6]
    assert memory["state/a.weight/age"].tolist() == [2, 0, 1, 0]


def test_state_is_the_same_on_truly_sparse_layers():
    found = []
    for sparse in (False, True):
        model, optimizer, topology = prepared(Aging(EACH, HALF), sparse=sparse)
        for step in range(8):
            take(model, optimizer, step)
        found.append((topology.masks.digest(), topology.state_dict()["memory"]))
    assert found[0][0] == found[1][0]
    assert set(found[0][1]) == set(found[1][1])
    assert all(torch.equal(found[0][1][n], found[1][1][n]) for n in found[0][1])


@pytest.mark.parametrize(
    ("name", "sparse"), [("aging", False), ("aging", True), ("snfs", False), ("top-kast", False)]
)
@pytest.mark.parametrize("at", [3, 4])
def test_saved_and_resumed_bit_for_bit(name, sparse, at):
    model, optimizer, topology = prepared(METHODS[name](), sparse=sparse)
    for step in range(at):
        take(model, optimizer, step)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), topology.state_dict()))
    digests = []
    for step in range(at, 9):
        take(model, optimizer, step)
        digests.append(topology.masks.digest())
    assert topology.updates == 4

    other, another, resumed = prepared(METHODS[name](), sparse=sparse)
    take(other, another, 77)  # it has been elsewhere
    other.load_state_dict(state[0])
    another.load_state_dict(state[1])
    resumed.load_state_dict(state[2])
    again = []
    for step in range(at, 9):
        take(other, another, step)
        again.append(resumed.masks.digest())
    assert again == digests
    assert_same(snapshot(other, another), snapshot(model, optimizer))
    ours, theirs = resumed.state_dict()["memory"], topology.state_dict()["memory"]
    assert set(ours) == set(theirs)
    assert ours
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_resume_file_holds_the_memory(name, tmp_path):
    model, optimizer, topology = prepared(METHODS[name]())
    for step in range(3):
        take(model, optimizer, step)
    save_resume(tmp_path / "r", model, optimizer, topology, "a" * 16, {})
    other, another, resumed = prepared(METHODS[name]())
    load_resume(tmp_path / "r", other, another, resumed, "a" * 16)
    ours, theirs = resumed.state_dict()["memory"], topology.state_dict()["memory"]
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert_same(snapshot(other, another), snapshot(model, optimizer))


@pytest.mark.parametrize("name", ["aging", "snfs", "top-kast"])
def test_memory_is_equal_on_two_ranks_and_as_on_one(name, crew):
    first, second = crew(2)(ranks.remembered, "ddp", name)
    assert first == second
    memory, trail = first
    alone, alone_trail = ranks.remembered("plain", name)
    assert trail == alone_trail
    assert set(memory) == set(alone)
    for key, values in alone.items():
        torch.testing.assert_close(torch.tensor(memory[key]), torch.tensor(values))


@pytest.mark.parametrize(
    ("key", "keep", "message"),
    [
        ("state", lambda c: torch.zeros(3), r"state\['x'\] of 0.weight has shape \(3,\)"),
        ("dense", lambda c: torch.zeros(3), r"dense\['x'\] of 0.weight has shape \(3,\)"),
        ("state", lambda c: 0.5, r"state\['x'\] of 0.weight is a float: keep a tensor"),
    ],
)
def test_memory_that_could_not_be_moved_or_saved_is_refused_at_once(key, keep, message):
    @dataclass(frozen=True)
    class Odd(sf.RigL):
        def observe(self, layers):
            for layer in layers.values():
                getattr(layer, key)["x"] = keep(layer)

    model, optimizer, _ = prepared(Odd(EACH))
    take(model, optimizer, 0)
    with pytest.raises(TopologyError, match=message):
        take(model, optimizer, 1)


def test_a_number_a_place_is_refused_on_truly_sparse_layers():
    @dataclass(frozen=True)
    class Odd(sf.RigL):
        def observe(self, layers):
            for layer in layers.values():
                layer.dense["x"] = torch.zeros(layer.shape)

    model, optimizer, _ = prepared(Odd(sf.every(1)), sparse=True)
    with pytest.raises(TopologyError, match=r"dense\['x'\] of 0.weight: a truly sparse"):
        take(model, optimizer, 0)


def test_a_key_that_is_not_kept_is_named():
    @dataclass(frozen=True)
    class Odd(sf.SET):
        def drop_score(self, view):
            return view.state("age")

    model, optimizer, _ = prepared(Odd(sf.every(1)))
    with pytest.raises(TopologyError, match=r"the method keeps no 'age' of 0.weight"):
        take(model, optimizer, 0)


# ---- the gradient of every step


def test_the_gradient_of_every_step_is_seen_whole_or_not_at_all():
    """At step 2 the second layer's gradient is not finite: neither momentum moves."""
    model, optimizer, topology = prepared(example().SNFS(sf.every(4), HALF))
    seen = []
    for step in range(3):
        handle = None
        if step == 1:
            off = ~topology.masks["2.weight"]
            handle = model[2].weight.register_hook(lambda g, off=off: g.masked_fill(off, torch.inf))
        take(model, optimizer, step)
        if handle is not None:
            handle.remove()
        memory = topology.state_dict()["memory"]
        seen.append({n: t.clone() for n, t in memory.items()})
    assert all(torch.equal(seen[0][n], seen[1][n]) for n in seen[0])
    assert not any(torch.equal(seen[1][n], seen[2][n]) for n in seen[1])


def test_the_gradient_of_every_step_is_that_of_the_whole_batch():
    """Two micro-batches add up, and the gradient is that of the weights before the step."""
    model, optimizer, topology = prepared(example().SNFS(sf.every(100), HALF, smoothing=0.0))
    for step in range(3):
        twin = copy.deepcopy(model)
        x, y = batch(step, torch.float64)
        loss(twin, (x, y)).backward()
        optimizer.zero_grad()
        for part in zip(x.chunk(2), y.chunk(2), strict=True):
            (loss(model, part) / 2).backward()
        optimizer.step()
        memory = topology.state_dict()["memory"]
        for name in topology.masks:
            torch.testing.assert_close(
                memory[f"dense/{name}/momentum"], twin.get_parameter(name).grad
            )


def test_a_method_that_looks_at_every_step_cannot_be_proposed():
    model = network()
    masks = sf.sparsify(model, density=0.4, init=None)
    with pytest.raises(TopologyError, match="SNFS looks at the gradient of every step"):
        sf.propose(example().SNFS(), model, masks, sf.Moment(1))


# ---- weights beyond the mask of the forward pass


def reference(steps, density=0.4, beyond=0.3):
    """Top-KAST by hand: dense weights, a forward and a backward mask, SGD with momentum."""
    model = network(torch.float64)
    masks = sf.sparsify(model, density=0.4, init=None)
    names = list(masks)
    whole = {n: p.detach().clone() for n, p in model.named_parameters()}
    speed = {n: torch.zeros_like(w) for n, w in whole.items()}

    def top(weight, share):
        order = weight.abs().flatten().sort(descending=True, stable=True).indices
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[order[: round(share * weight.numel())]] = True
        return mask.view(weight.shape)

    forward = {n: masks[n] for n in names}
    stored = {n: top(whole[n], density + beyond) | forward[n] for n in names}
    for step in range(steps):
        shown = {n: w * forward[n] if n in names else w for n, w in whole.items()}
        model.load_state_dict(shown)
        model.zero_grad()
        loss(model, batch(step, torch.float64)).backward()
        for n, p in model.named_parameters():
            grad = p.grad * stored[n] if n in names else p.grad
            speed[n] = 0.9 * speed[n] + grad
            whole[n] = whole[n] - 0.1 * speed[n]
        if (step + 1) % 2 == 0:
            forward = {n: top(whole[n], density) for n in names}
            stored = {n: top(whole[n], density + beyond) | forward[n] for n in names}
            for n in names:
                whole[n], speed[n] = whole[n] * stored[n], speed[n] * stored[n]
    return whole, forward, stored


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_weights_beyond_the_mask_train_as_by_hand(steps):
    model, optimizer, topology = prepared(TopKAST(0.4, 0.3))
    for step in range(steps):
        take(model, optimizer, step)
    whole, forward, stored = reference(steps)
    memory = topology.state_dict()["memory"]
    for name in topology.masks:
        assert torch.equal(topology.masks[name], forward[name])
        weight = model.get_parameter(name).detach()
        aside = memory[f"aside/{name}"]
        torch.testing.assert_close(weight + aside, whole[name])
        assert not weight[~forward[name]].any()
        assert not aside[forward[name] | ~stored[name]].any()
        assert aside.any()


def test_gradients_reach_what_is_stored_and_nothing_else():
    model, optimizer, topology = prepared(TopKAST(0.4, 0.3))
    for step in range(2):
        take(model, optimizer, step)
    twin = copy.deepcopy(model)
    loss(twin, batch(2, torch.float64)).backward()
    take(model, optimizer, 2)
    for name, forward in topology.masks.items():
        stored = torch.zeros(forward.numel(), dtype=torch.bool)
        stored[topology.state_dict()["memory"][f"stored/{name}"]] = True
        stored = stored.view(forward.shape)
        assert stored.sum() == round(0.7 * forward.numel())
        assert not (forward & ~stored).any()
        dense = twin.get_parameter(name).grad
        assert torch.equal(model.get_parameter(name).grad, dense * stored)
        assert dense[stored & ~forward].any()


def test_between_steps_the_model_is_its_forward_pass_and_after_detach_for_good():
    model, optimizer, topology = prepared(TopKAST(0.4, 0.3))
    for step in range(5):
        take(model, optimizer, step)
        for name, mask in topology.masks.items():
            assert not model.get_parameter(name)[~mask].any()
    before = model(batch(9, torch.float64)[0])
    topology.detach()
    assert torch.equal(model(batch(9, torch.float64)[0]), before)
    for name, mask in topology.masks.items():
        assert not model.get_parameter(name)[~mask].any()


def test_weights_beyond_the_mask_refuse_a_closure():
    model, optimizer, _ = prepared(TopKAST(0.4, 0.3))

    def closure():
        optimizer.zero_grad()
        value = loss(model, batch(0, torch.float64))
        value.backward()
        return value

    closure()
    with pytest.raises(TopologyError, match=r"call step\(\) without one"):
        optimizer.step(closure)
    with pytest.raises(TopologyError, match=r"call step\(\) without one"):
        optimizer.step(closure=closure)
    take(model, optimizer, 0)


def test_weights_beyond_the_mask_refuse_truly_sparse_layers():
    with pytest.raises(TopologyError, match="keeps weights beyond the mask of the forward pass"):
        prepared(TopKAST(0.4, 0.3), sparse=True)


# ---- loops


def test_a_method_without_a_name_works_in_a_loop():
    model, optimizer, topology = prepared(sf.SET(lambda step: step == 2, lambda moment: 0.5))
    for step in range(3):
        take(model, optimizer, step)
    assert topology.updates == 1


def test_a_layer_left_out_and_positions_out_of_order_are_named():
    @dataclass(frozen=True)
    class Partial(sf.SET):
        def update(self, layers):
            return {}

    @dataclass(frozen=True)
    class Backwards(sf.SET):
        def update_layer(self, connections):
            return connections.indices.flip(0)

    for method, error, message in (
        (Partial(sf.every(1)), TopologyError, "Partial.update must return all layers: 0.weight, 2"),
        (Backwards(sf.every(1)), MaskError, "0.weight"),
    ):
        model, optimizer, _ = prepared(method)
        with pytest.raises(error, match=message):
            take(model, optimizer, 0)
