"""The pure drop-and-grow, and the methods: literal masks and any sequence of updates."""

import dataclasses
import math
from contextlib import contextmanager

import pytest
import torch
from helpers.small import batch, loss, network, take
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import MaskError, TopologyError
from sparseflow.core.random import generator
from sparseflow.core.schedules import cubic
from sparseflow.core.select import mask_at, positions_of
from sparseflow.topology import Connections, drop_and_grow, prune_to, pruned, regrown
from sparseflow.topology import view as views

INF, NAN = float("inf"), float("nan")


def bits(text: str) -> torch.Tensor:
    return torch.tensor([c == "1" for c in text])


def text(mask: torch.Tensor) -> str:
    return "".join("1" if m else "0" for m in mask.flatten().tolist())


def connections(mask, weight=None, gradient=None, step=1, ratio=1.0, seed=0, name="w"):
    values = torch.where(mask, torch.ones(mask.shape), 0.0) if weight is None else weight * mask
    indices = positions_of(mask)
    return Connections(
        name,
        mask.shape,
        indices,
        sf.Moment(step, ratio),
        generator(seed, "update", step, name),
        lambda: (values.flatten()[indices], (values, mask)),
        rows_gradient=None if gradient is None else gradient.__getitem__,
    )


def updated(method, mask, *arguments, **options):
    return mask_at(method.update_layer(connections(mask, *arguments, **options)), mask.shape)


# ---- drop_and_grow on literal masks


@pytest.mark.parametrize(
    ("mask", "drop", "grow", "k", "expected"),
    [
        ("110000", [5, 6, 0, 0, 0, 0], [0, 0, 1, 2, 3, 4], 0, "110000"),
        ("110000", [5, 6, 0, 0, 0, 0], [0, 0, 1, 2, 3, 4], 1, "010001"),
        ("110000", [5, 6, 0, 0, 0, 0], [0, 0, 1, 2, 3, 4], 2, "000011"),
        ("111000", [2, 1, 3, 9, 9, 9], [0, 0, 0, 1, 1, 1], 1, "101100"),  # ties by index
        ("111000", [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 2, 3], 1, "110001"),  # the last is dropped
        ("110000", [1, 2, 0, 0, 0, 0], [9, 0, 1, 1, 1, 1], 1, "110000"),  # back at once
        ("110000", [1, 2, 0, 0, 0, 0], [9, 9, 1, 1, 1, 1], 1, "110000"),  # 1 was kept
        ("110000", [-3, -4, 5, 5, 5, 5], [-9, -9, -1, -2, -3, -4], 1, "101000"),
        ("111111", [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], 3, "111111"),
        ("111110", [1, 2, 3, 4, 5, 0], [0, 0, 0, 0, 0, 1], 5, "111101"),
        ("000000", [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], 0, "000000"),
        ("110000", [1, 2, NAN, INF, -INF, 9], [NAN, INF, 1, 2, 3, 0], 0, "110000"),
        ("110000", [1, 2, NAN, INF, -INF, 9], [0, NAN, 1, 2, 3, 0], 1, "010010"),  # NaN unused
        ("110000", [1, 2, 0, 0, 0, 0], [0, 0, INF, 2, 3, 0], 1, "011000"),
    ],
)
def test_drop_and_grow(mask, drop, grow, k, expected):
    before = bits(mask)
    after = drop_and_grow(
        before.reshape(2, 3),
        torch.tensor(drop, dtype=torch.float32).reshape(2, 3),
        torch.tensor(grow, dtype=torch.float32).reshape(2, 3),
        k,
    )
    assert text(after) == expected
    assert text(before) == mask


@pytest.mark.parametrize(
    ("mask", "drop", "grow", "k", "message"),
    [
        ("110", [1, 2, 0], [0, 0, 1], -1, "k=-1 of 2 active"),
        ("110", [1, 2, 0], [0, 0, 1], 3, "k=3 of 2 active"),
        ("110", [NAN, 2, 0], [0, 0, 1], 1, "NaN"),
        ("110", [1, 2, 0], [0, 0, NAN], 1, "NaN"),
        ("110", [1, -INF, 0], [0, -INF, -INF], 1, "infinite"),
        ("011", [0, -INF, -INF], [0, 0, 0], 1, "infinite"),
    ],
)
def test_drop_and_grow_refuses(mask, drop, grow, k, message):
    with pytest.raises(TopologyError, match=message):
        drop_and_grow(bits(mask), torch.tensor(drop).float(), torch.tensor(grow).float(), k)


@pytest.mark.parametrize(
    ("mask", "score", "k", "expected"),
    [
        ("1111", [3, 1, 4, 2], 2, "1010"),
        ("1011", [3, 9, 4, 2], 2, "1010"),  # an inactive one is never revived
        ("1011", [3, 9, 4, 2], 9, "1011"),
        ("1111", [1, 1, 1, 1], 2, "1100"),
        ("1111", [3, 1, 4, 2], 0, "0000"),
        ("1010", [-1, 5, -2, 5], 1, "1000"),
    ],
)
def test_prune_to(mask, score, k, expected):
    assert text(prune_to(bits(mask), torch.tensor(score, dtype=torch.float32), k)) == expected


def test_prune_to_revives_nothing_even_where_all_scores_are_lost():
    after = prune_to(bits("0110"), torch.full((4,), -INF), 1)
    assert not (after & ~bits("0110")).any()


def test_prune_to_refuses():
    with pytest.raises(TopologyError, match="keep k=-1"):
        prune_to(bits("11"), torch.ones(2), -1)
    with pytest.raises(TopologyError, match="NaN"):
        prune_to(bits("11"), torch.tensor([1.0, NAN]), 1)


# ---- in blocks

few = st.lists(st.integers(-2, 2), min_size=24, max_size=24).map(torch.tensor)


@given(
    mask=st.lists(st.booleans(), min_size=24, max_size=24).map(torch.tensor),
    drop=few,
    grow=few,
    share=st.floats(0, 1),
    size=st.integers(1, 25),
)
def test_regrown_in_blocks_is_a_sort_of_everything(mask, drop, grow, share, size):
    """Few distinct scores, so that ties are everywhere; kept ones may have the best."""
    active = positions_of(mask)
    k = round(share * len(active))
    by_drop = sorted(active.tolist(), key=lambda i: (-int(drop[i]), i))
    kept = set(by_drop[: len(active) - k])
    free = [i for i in range(24) if i not in kept]
    grown = sorted(free, key=lambda i: (-int(grow[i]), i))[:k]
    before = grow.clone()
    after = regrown(active, drop[active].float(), grow.float().split(size), k)
    assert after.tolist() == sorted([*kept, *grown])
    assert torch.equal(grow, before)
    whole = drop_and_grow(mask, drop.float(), grow.float(), k)
    assert torch.equal(positions_of(whole), after)
    expected = sorted(by_drop[:k])
    assert pruned(active, drop[active].float(), k).tolist() == expected
    assert positions_of(prune_to(mask, drop.float(), k)).tolist() == expected


@pytest.mark.parametrize("size", [1, 2, 8])
def test_scores_that_are_given_stay_as_they_are(size):
    grow = torch.arange(8.0)
    regrown(torch.tensor([6, 7]), torch.tensor([1.0, 2.0]), grow.split(size), 1)
    assert torch.equal(grow, torch.arange(8.0))


@pytest.mark.parametrize("block", [1, 7, 12, 24, 1 << 22])
@pytest.mark.parametrize("method", [sf.SET, sf.RigL, sf.RigLInverted])
def test_a_sparse_layer_in_blocks_is_updated_as_a_dense_one(method, block, monkeypatch):
    """Random scores too: the stream goes on from block to block."""
    monkeypatch.setattr(views, "BLOCK", block)
    mask, weight, gradient = torch.rand(9, 2, 3) < 0.3, torch.randn(9, 2, 3), torch.randn(9, 2, 3)
    rule = method(drop=sf.constant(0.6))
    dense, sparse = connections(mask, weight, gradient), connections(mask, weight, gradient)
    values = sparse.values
    sparse = dataclasses.replace(sparse, read=lambda: (values, None), is_dense=False)
    assert len(list(dense.blocks())) == 1
    rows = max(1, block // 6)
    assert [len(v.mask) for v in sparse.blocks()] == [len(part) for part in mask.split(rows)]
    for field in ("mask", "weight", "gradient"):
        (whole,) = (getattr(v, field) for v in dense.blocks())
        parts = torch.cat([getattr(v, field) for v in sparse.blocks()])
        assert torch.equal(parts, whole)
        assert torch.equal(getattr(sparse.active, field), getattr(dense.active, field))
        assert torch.equal(getattr(dense.active, field), whole[mask])
    assert torch.equal(rule.update_layer(sparse), rule.update_layer(dense))


# ---- the methods

MASK = bits("111110000000")
WEIGHT = torch.tensor([5.0, -4, 3, -2, 1, 0, 0, 0, 0, 0, 0, 0])
GRADIENT = torch.tensor([0.0, 0, 0, 0, 0, 1, -2, 3, -4, 5, -6, 7])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (sf.Static(), "111110000000"),
        (sf.RigL(drop=sf.constant(0.4)), "111000000011"),
        (sf.RigL(drop=sf.constant(0.59)), "111000000011"),  # floor of 2.95
        (sf.RigL(drop=sf.constant(0.0)), "111110000000"),
        (sf.RigL(drop=sf.constant(1.0)), "000000011111"),
        (sf.RigLInverted(drop=sf.constant(0.2)), "111110000000"),  # the dropped one is least
        (sf.GradualPruning(0.25, 0, 1, 1), "111000000000"),
    ],
)
def test_update_of_each_method(method, expected):
    assert text(updated(method, MASK, WEIGHT, GRADIENT)) == expected


def test_inverted_growth_takes_the_smallest_gradient():
    gradient = GRADIENT.clone()
    gradient[:5] = 9
    after = updated(sf.RigLInverted(drop=sf.constant(0.4)), MASK, WEIGHT, gradient)
    assert text(after) == "111001100000"


def test_set_grows_uniformly_from_its_stream():
    method = sf.SET(drop=sf.constant(0.4))
    grown = torch.zeros(12)
    for seed in range(900):
        after = updated(method, MASK, WEIGHT, seed=seed)
        assert text(after).startswith("111")
        grown += after
    assert grown[:3].tolist() == [900] * 3
    assert float((grown[3:] - 200).abs().max()) < 5 * math.sqrt(900 * 2 / 9 * 7 / 9)
    assert torch.equal(updated(method, MASK, WEIGHT), updated(method, MASK, WEIGHT))


def test_drop_fraction_follows_the_schedule():
    mask = torch.arange(200) < 100
    rates = sf.SET(drop=sf.lr_proportional(0.3))
    assert sf.churn({"w": mask}, {"w": updated(rates, mask, ratio=0.0)}) == 0

    def dropped(method, **moment):
        after = updated(sf.RigL(drop=method), mask, gradient=(~mask).float(), **moment)
        return int((mask & ~after).sum())

    assert dropped(sf.lr_proportional(0.3), ratio=0.5) == 15
    assert dropped(sf.cosine(0.4, 100), step=50) == 20
    assert dropped(sf.cosine(0.4, 100), step=100) == 0


@pytest.mark.parametrize("fraction", [1.5, -0.1, NAN])
def test_an_impossible_fraction_is_refused_when_it_comes(fraction):
    with pytest.raises(TopologyError, match="at step 7 is not in"):
        updated(sf.SET(drop=lambda moment: fraction), MASK, WEIGHT, step=7)


def test_rigl_without_a_gradient():
    with pytest.raises(TopologyError, match="no gradient for w"):
        updated(sf.RigL(), MASK, WEIGHT)


def test_gradual_pruning_schedule():
    method = sf.GradualPruning(0.05, 3000, 7000)
    assert [s for s in range(12_000) if method.due(s)] == list(range(3000, 7001, 100))
    weight = torch.randn(150)
    full = torch.ones(150, dtype=torch.bool)
    kept = [int(updated(method, full, weight, step=s).sum()) for s in (3000, 5000, 7000)]
    assert kept == [150, round(150 * (0.05 + 0.95 / 8)), 8]
    assert [round(0.05 * n) for n in (150, 2400, 30720, 10080, 840)] == [8, 120, 1536, 504, 42]


def test_gradual_pruning_by_layer():
    method = sf.GradualPruning({"a": 0.5, "b": 0.25}, 0, 10, 10)
    full = torch.ones(8, dtype=torch.bool)
    found = [updated(method, full, torch.randn(8), step=10, name=n).sum() for n in "ab"]
    assert found == [4, 2]
    with pytest.raises(TopologyError, match="no final density for 'c'"):
        updated(method, full, name="c")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.5, 0, 10, 10), MaskError, "final density=1.5"),
        (({"fc": NAN}, 0, 10, 10), MaskError, "final density fc=nan"),
        ((0.5, 10, 10, 1), TopologyError, "stop must be later"),
        ((0.5, 0, 10, 3), TopologyError, "interval=3 does not divide the 10 steps"),
        ((0.5, 0, 10, 0), TopologyError, "n must be at least 1"),
    ],
)
def test_impossible_pruning(arguments, error, message):
    with pytest.raises(error, match=message):
        sf.GradualPruning(*arguments)


# ---- any sequence of updates

scores = st.integers(0, 10**6).map(
    lambda seed: torch.randint(-3, 4, (5, 7), generator=generator(seed)).float()
)


@given(
    start=st.integers(0, 35).map(lambda k: torch.arange(35).reshape(5, 7) < k),
    moves=st.lists(st.tuples(scores, scores, st.floats(0, 1)), min_size=1, max_size=8),
    kind=st.sampled_from([sf.SET, sf.RigL, sf.RigLInverted]),
)
def test_any_sequence_of_updates_keeps_the_number_of_active_weights(start, moves, kind):
    """Weights of few values, so that ties and zeros are everywhere."""
    mask = start
    for step, (weight, gradient, fraction) in enumerate(moves, 1):
        after = updated(kind(drop=sf.constant(fraction)), mask, weight, gradient, step)
        assert after.sum() == start.sum()
        k = math.floor(fraction * int(mask.sum()))
        gone, come = mask & ~after, after & ~mask
        assert gone.sum() == come.sum() <= k
        if gone.any():
            smallest = weight[mask].abs().sort().values[:k]
            assert weight[gone].abs().max() <= smallest.max()
            lost = gradient[~after].abs()  # what could have been grown and was not
            if kind is sf.RigL:
                assert gradient[come].abs().min() >= lost.max()
            if kind is sf.RigLInverted:
                assert gradient[come].abs().max() <= lost.min()
        mask = after


@given(
    final=st.floats(0, 1),
    moves=st.lists(scores, min_size=4, max_size=4),
)
def test_any_pruning_is_monotone_and_revives_nothing(final, moves):
    method = sf.GradualPruning(final, 1, 4, 1)
    mask = torch.ones(5, 7, dtype=torch.bool)
    for step, weight in enumerate(moves, 1):
        after = updated(method, mask, weight, step=step)
        assert not (after & ~mask).any()
        assert after.sum() == min(int(mask.sum()), round(cubic(final, 1, 4)(step) * 35))
        mask = after
    assert int(mask.sum()) == round(final * 35)


@options(max_examples=30)
@given(
    decisions=st.lists(st.floats(0, 1) | st.none(), min_size=1, max_size=8),
    kind=st.sampled_from([sf.SET, sf.RigL, sf.RigLInverted]),
    adam=st.booleans(),
    density=st.floats(0.05, 0.95),
    seed=st.integers(0, 100),
)
def test_any_sequence_of_steps_keeps_every_invariant(decisions, kind, adam, density, seed):
    """Attached: a step with or without an update, of any drop fraction, in any order."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    masks = sf.sparsify(model, density=density, init=None, seed=seed)
    optimizer = (
        torch.optim.Adam(model.parameters(), lr=0.1)
        if adam
        else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    )
    method = kind(
        when=lambda step: step <= len(decisions) and decisions[step - 1] is not None,
        drop=lambda moment: decisions[moment.step - 1],
    )
    topology = sf.attach(model, optimizer, masks, method, seed=seed)
    for fraction in decisions:
        before = topology.masks
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        assert topology.masks.counts == masks.counts
        assert fraction is not None or topology.masks is before
        for name, mask in topology.masks.items():
            weight = dict(model.named_parameters())[name]
            slots = [s for s in optimizer.state[weight].values() if s.shape == weight.shape]
            assert slots
            for tensor in (weight.detach(), weight.grad, *slots):
                assert not tensor[~mask].any()
                assert not tensor[mask & ~before[name]].any()
    assert topology.updates == sum(d is not None for d in decisions)


@pytest.mark.parametrize("method", [sf.SET, sf.RigL])
def test_propose_is_the_update_that_attach_makes_and_leaves_the_network_alone(
    method: type[sf.SET],
) -> None:
    net = network()
    masks = sf.sparsify(net, density=0.4, seed=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    kind = {"grow_from": sf.probe_gradient(net, loss, batch(7))} if method is sf.RigL else {}
    rule = method(sf.every(2), sf.constant(0.5), **kind)
    proposed = []

    @contextmanager
    def around(topology: sf.Topology):
        before = {n: t.clone() for n, t in net.state_dict().items()}
        proposed.append(sf.propose(rule, net, topology.masks, topology.moment, seed=5))
        assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
        yield

    topology = sf.attach(net, optimizer, masks, rule, seed=5, around=around)
    for step in range(2):
        take(net, optimizer, step)
    assert proposed == [topology.masks]
    assert proposed[0] != masks
    topology.detach()


def test_propose_needs_a_gradient_of_its_own() -> None:
    net = network()
    masks = sf.make_masks(sf.maskable(net), 0.4)
    with pytest.raises(TopologyError, match=r"RigL grows from the training batch.*probe_gradient"):
        sf.propose(sf.RigL(), net, masks, sf.Moment(1, 1.0))
    nothing = {n: torch.full(m.shape, NAN) for n, m in masks.items()}
    bad = sf.RigL(grow_from=lambda: nothing)
    with pytest.raises(TopologyError, match=r"0\.weight.*not finite"):
        sf.propose(bad, net, masks, sf.Moment(1, 1.0))
