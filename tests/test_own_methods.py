"""The methods in ``examples/own_methods.py``, by literal cases and against what they promise."""

import pytest
import torch
from helpers.own import EXAMPLE, clean_slate, driven, example, push
from helpers.scatter import scattered
from helpers.small import loss, network, take
from hypothesis import given
from hypothesis import strategies as st

import sparseflow as sf
from sparseflow.core.errors import TopologyError


@pytest.fixture(autouse=True)
def own():
    with clean_slate():
        yield example()


def positions(topology):
    return {n: topology.masks.indices(n).tolist() for n in topology.masks}


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 80


def test_snfs_grows_by_momentum_and_moves_budgets_between_layers(own):
    """M = g1/4 + g2/2. Mean active momentum is 1 in a and 3 in b: four dropped weights go 1 to 3.

    In a, place 4 has the largest momentum (2) but no gradient at the update itself.
    """
    method = own.SNFS(sf.every(2), drop=sf.constant(0.5), smoothing=0.5)
    model, optimizer, topology = driven(
        method,
        {"a": [1.0, 2, 3, 4, 0, 0, 0, 0], "b": [4.0, 3, 2, 1, 0, 0, 0, 0]},
        {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3]},
    )
    push(model, optimizer, {"a": [0, 0, 0, 0, 8.0, 0, 0, 0], "b": [0.0] * 8})
    assert topology.updates == 0
    push(model, optimizer, {"a": [2.0, 2, 2, 2, 0, 3, 2, 0], "b": [6.0, 6, 6, 6, 1, 2, 3, 4]})
    assert topology.updates == 1
    memory = topology.state_dict()["memory"]
    assert memory["dense/a.weight/momentum"].flatten().tolist() == [1, 1, 1, 1, 2, 1.5, 1, 0]
    assert memory["dense/b.weight/momentum"].flatten().tolist() == [3, 3, 3, 3, 0.5, 1, 1.5, 2]
    assert positions(topology) == {"a.weight": [2, 3, 4], "b.weight": [0, 1, 2, 3, 7]}


@given(st.data())
def test_shares_are_whole_bounded_and_proportional(data):
    with clean_slate():
        shared = example().shared
    n = data.draw(st.integers(1, 6))
    room = data.draw(st.lists(st.integers(0, 50), min_size=n, max_size=n))
    weights = data.draw(st.lists(st.floats(0, 1e3), min_size=n, max_size=n))
    total = data.draw(st.integers(0, sum(room)))
    counts = shared(total, weights, room)
    assert sum(counts) == total
    assert all(0 <= c <= most for c, most in zip(counts, room, strict=True))
    whole = sum(weights)
    wanted = [total * w / whole for w in weights] if whole > 0 else []
    if wanted and all(w <= most - n for w, most in zip(wanted, room, strict=True)):
        assert all(abs(c - w) <= n for c, w in zip(counts, wanted, strict=True))


def test_what_a_full_layer_cannot_take_goes_to_the_others(own):
    assert own.shared(10, [1.0, 1.0], [2, 20]) == [2, 8]
    assert own.shared(7, [3.0, 1.0], [9, 9]) == [6, 1]
    assert sorted(own.shared(5, [0.0, 0.0], [3, 3])) == [2, 3]


def test_snfs_keeps_the_total(own):
    model = network()
    masks = sf.sparsify(model, density=0.4, init=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology = sf.attach(model, optimizer, masks, own.SNFS(sf.every(2), drop=sf.constant(0.5)))
    shares = set()
    for step in range(12):
        take(model, optimizer, step)
        assert topology.masks.nnz == masks.nnz
        shares.add(tuple(topology.masks.counts.values()))
    assert len(shares) > 2


def test_granet_prunes_globally_then_regenerates_by_layer(own):
    """Density falls from 9/16 to 1/4 + 5/16/8 = 4.625/16: five weights stay, all of them a's.

    Of these two are dropped, the smallest, and two grown by gradient.
    """
    method = own.GraNet(
        sf.every(1), sf.constant(0.4), "batch", density=sf.cubic(0.25, 0, 2, initial=9 / 16)
    )
    model, optimizer, topology = driven(
        method,
        {"a": [5.0, 4, 3, 2, 1, 0, 0, 0], "b": [0.9, 0.8, 0.7, 0.6, 0, 0, 0, 0]},
        {"a": [0, 1, 2, 3, 4], "b": [0, 1, 2, 3]},
    )
    with pytest.warns(UserWarning, match=r"b\.weight left without a weight by GraNet at step 1"):
        push(model, optimizer, {"a": [0, 0, 0, 0.1, 0.2, 0.9, 0.8, 0.1], "b": [9.0] * 8})
    assert positions(topology) == {"a.weight": [0, 1, 2, 5, 6], "b.weight": []}
    push(model, optimizer, {"a": [0.0] * 7 + [1], "b": [9.0] * 8})
    assert positions(topology) == {"a.weight": [0, 1, 2, 7], "b.weight": []}


def test_granet_keeps_small_weights_of_a_layer_by_no_quota_of_its_own(own):
    """The same, by layers of one scale: pruning takes the smallest of both."""
    method = own.GraNet(
        sf.every(1), sf.constant(0.0), "batch", density=sf.cubic(0.25, 0, 1, initial=0.5)
    )
    model, optimizer, topology = driven(
        method,
        {"a": [8.0, 1, 7, 2, 0, 0, 0, 0], "b": [6.0, 3, 4, 5, 0, 0, 0, 0]},
        {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3]},
    )
    push(model, optimizer, {"a": [1.0] * 8, "b": [1.0] * 8})
    assert positions(topology) == {"a.weight": [0, 2], "b.weight": [0, 3]}


def test_granet_in_a_run_ends_at_its_density(own):
    method = own.GraNet(sf.every(10))
    task = sf.topology.Task(network(), loss, None, 0.05, {}, 1000, 1000)
    bound = method.bound(task).density
    assert (bound.initial, bound(1), bound(500), bound(1000)) == (
        0.5, pytest.approx(0.5, abs=0.01), 0.05, 0.05,
    )  # fmt: skip
    assert method.bound(task).scaled(0.1).density.stop == 50


def test_granet_is_the_same_on_truly_sparse_layers(own):
    digests = []
    for sparse in (False, True):
        model = network(torch.float64)
        masks = sf.sparsify(model, density=0.5, init=None)
        model = scattered(model, masks) if sparse else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        method = own.GraNet(
            sf.every(2), sf.constant(0.3), "batch", density=sf.cubic(0.2, 0, 10, initial=0.5)
        )
        topology = sf.attach(model, optimizer, masks, method)
        trail = []
        for step in range(12):
            take(model, optimizer, step)
            trail.append(topology.masks.digest())
        assert topology.masks.nnz == round(0.2 * 90)
        digests.append(trail)
    assert digests[0] == digests[1]
    assert len(set(digests[0])) > 4


def test_snfs_is_refused_on_truly_sparse_layers(own):
    model = network(torch.float64)
    masks = sf.sparsify(model, density=0.5, init=None)
    model = scattered(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TopologyError, match="SNFS asks for the dense gradient of every step"):
        sf.attach(model, optimizer, masks, own.SNFS())
