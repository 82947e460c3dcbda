"""Masks as values: how many weights each layer keeps, and which ones."""

import hashlib
import math

import pytest
import torch
from helpers.scatter import ScatterLinear
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import MaskError, StoreError
from sparseflow.masks.patterns import uneven

UNIFORM_LIKE = ("uniform", "er", "erk")


def linears(*shapes: tuple[int, int]) -> dict[str, sf.Layer]:
    return sf.maskable(nn.Sequential(*(nn.Linear(i, o) for i, o in shapes)))


@pytest.fixture
def layers():
    """Shapes that ask for care: grouped, tiny, with kernels, of equal shape."""
    return sf.maskable(
        nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=2),
            nn.Conv1d(3, 5, 1),
            nn.Linear(20, 20),
            nn.Linear(20, 20),
            nn.Linear(7, 1),
        )
    )


# ---- allocation


@given(
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6),
    density=st.floats(0, 1),
    allocation=st.sampled_from([*UNIFORM_LIKE, "magnitude"]),
)
def test_the_total_is_exact(shapes, density, allocation):
    layers = linears(*shapes)
    counts = sf.allocate(layers, density, allocation)
    assert list(counts) == list(layers)
    assert sum(counts.values()) == round(density * sum(layer.size for layer in layers.values()))
    assert all(0 <= counts[n] <= layer.size for n, layer in layers.items())
    if allocation == "uniform":
        assert all(abs(counts[n] - density * layer.size) < 1 for n, layer in layers.items())


@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=5),
    density=st.floats(0.01, 0.99),
)
def test_erdos_renyi_in_closed_form(shapes, density):
    """min(1, c · (in + out) / (in · out)) for one c, found here by bisection."""
    layers = linears(*shapes)
    scores = {n: sum(layer.shape) / layer.size for n, layer in layers.items()}
    total = density * sum(layer.size for layer in layers.values())
    low, high = 0.0, 1e4
    for _ in range(200):
        c = (low + high) / 2
        kept = sum(min(1, c * scores[n]) * layer.size for n, layer in layers.items())
        low, high = (c, high) if kept < total else (low, c)
    for name, count in sf.allocate(layers, density, "er").items():
        assert abs(count - min(1, c * scores[name]) * layers[name].size) < 1 + 1e-6


def test_overflow_solved_by_hand():
    """Small layer: score (2+2)/4 = 1; large: 200/10000 = 0.02; 2,504 of 10,004 wanted.

    With c = 2504/204 the small one would have density 12: it becomes dense, and
    the large one takes the remaining 2,500.
    """
    layers = linears((2, 2), (100, 100))
    assert sf.allocate(layers, 2504 / 10004, "er") == {"0.weight": 4, "1.weight": 2500}


def test_overflow_in_two_rounds():
    """Sizes 4, 100, 10,000; scores 1, 0.2, 0.02; 1,110 wanted.

    First c = 1110/224 = 4.96: only the first layer passes 1 (the second has
    0.99). Then c = 1106/220 = 5.03: now the second does, and the third gets
    the remaining 1,006.
    """
    layers = linears((2, 2), (10, 10), (100, 100))
    assert sf.allocate(layers, 1110 / 10104, "er") == {
        "0.weight": 4,
        "1.weight": 100,
        "2.weight": 1006,
    }


def test_fractions_go_by_largest_remainder():
    """14 of 104: c = 14/24 gives 2.33 and 11.67."""
    assert sf.allocate(linears((2, 2), (10, 10)), 14 / 104, "er") == {
        "0.weight": 2,
        "1.weight": 12,
    }


def test_erk_counts_kernel_sizes():
    model = nn.Sequential(nn.Conv2d(10, 20, 5), nn.Conv2d(20, 40, 3))
    counts = sf.allocate(sf.maskable(model), 0.1, "erk")
    scores = {"0.weight": (20 + 10 + 5 + 5), "1.weight": (40 + 20 + 3 + 3)}
    total = 0.1 * (20 * 10 * 25 + 40 * 20 * 9)
    for name, count in counts.items():
        assert abs(count - total * scores[name] / sum(scores.values())) < 1
    without = sf.allocate(sf.maskable(model), 0.1, "er")
    assert abs(without["0.weight"] - total * 30 * 25 / (30 * 25 + 60 * 9)) < 1


def test_global_magnitude_takes_the_largest_of_all():
    layers = linears((4, 4), (4, 4))
    with torch.no_grad():
        layers["0.weight"].parameter.copy_(torch.arange(16.0).reshape(4, 4))
        layers["1.weight"].parameter.copy_(-torch.arange(16.0).reshape(4, 4) - 8)
    assert sf.allocate(layers, 0.25, "magnitude") == {"0.weight": 0, "1.weight": 8}
    masks = sf.make_masks(layers, 0.5, allocation="magnitude", pattern="magnitude")
    assert masks.counts == {"0.weight": 4, "1.weight": 12}
    assert masks["1.weight"].flatten().tolist() == [False] * 4 + [True] * 12


def test_explicit_densities_and_those_of_another_run(layers):
    wanted = {n: i / 4 for i, n in enumerate(layers)}
    counts = sf.allocate(layers, wanted)
    assert counts == {n: round(wanted[n] * layer.size) for n, layer in layers.items()}
    parent = sf.make_masks(layers, 0.37, seed=5)
    assert sf.make_masks(layers, parent.densities, seed=6).counts == parent.counts


@pytest.mark.parametrize("density", [-0.1, 1.0001, float("nan"), float("inf")])
def test_density_out_of_range(layers, density):
    with pytest.raises(MaskError, match="is not between 0 and 1"):
        sf.allocate(layers, density)
    with pytest.raises(MaskError, match=r"density of 0\.weight"):
        sf.allocate(layers, dict.fromkeys(layers, density))


def test_unknown_names(layers):
    with pytest.raises(MaskError, match="did you mean 'uniform'"):
        sf.allocate(layers, 0.1, "unifrom")
    with pytest.raises(MaskError, match="did you mean 'random'"):
        sf.make_masks(layers, 0.1, pattern="randon")
    with pytest.raises(MaskError, match="differ in: fc"):
        sf.allocate(layers, {**dict.fromkeys(layers, 0.1), "fc": 0.1})


# ---- creation


@pytest.mark.filterwarnings("ignore:.*left without a weight")
@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("pattern", ["random", "magnitude", "uneven", "constant_fan_in"])
def test_k_ones_means_k_ones(layers, pattern, density):
    masks = sf.make_masks(layers, density, allocation="uniform", pattern=pattern)
    assert masks.counts == sf.allocate(layers, density, "uniform")
    assert {n: m.shape for n, m in masks.items()} == {n: x.shape for n, x in layers.items()}
    if pattern == "constant_fan_in":
        for name, layer in layers.items():
            fans = layer.neurons(masks[name]).sum(1)
            assert fans.max() - fans.min() <= 1


def test_every_layer_has_its_own_stream(layers):
    for pattern in ("random", "uneven", "constant_fan_in"):
        masks = sf.make_masks(layers, 0.5, allocation="uniform", pattern=pattern)
        assert not torch.equal(masks["2.weight"], masks["3.weight"])
        assert not torch.equal(*(sf.shuffle_masks(masks)[n] for n in ("2.weight", "3.weight")))


def test_random_places_are_uniform():
    layers = linears((10, 8))
    hits = sum(sf.make_masks(layers, 0.3, seed=s)["0.weight"].float() for s in range(1000))
    assert isinstance(hits, torch.Tensor)
    assert float((hits - 300).abs().max()) < 5 * math.sqrt(1000 * 0.3 * 0.7)


def test_uneven_is_uneven():
    layers = linears((200, 200))

    def spread(pattern):
        masks = sf.make_masks(layers, 0.1, pattern=pattern)
        return float(masks["0.weight"].sum(1).float().std())

    assert spread("random") == pytest.approx(math.sqrt(200 * 0.1 * 0.9), rel=0.3)
    assert spread(uneven(0.0)) == pytest.approx(spread("random"), rel=0.3)
    assert spread("uneven") > 4 * spread("random")


def test_a_pattern_of_ones_own(layers):
    def first(layer, k, generator):
        return (torch.arange(layer.size) < k).reshape(layer.shape)

    mask = sf.make_masks(layers, 0.5, allocation="uniform", pattern=first)["2.weight"]
    assert mask[:10].all()
    assert not mask[10:].any()


@pytest.mark.filterwarnings("ignore:.*left without a weight")
@given(density=st.floats(0, 1), seed=st.integers(0, 1000))
def test_shuffling_keeps_counts_and_not_places(density, seed):
    layers = linears((15, 15), (15, 15))
    masks = sf.make_masks(layers, density, seed=seed)
    shuffled = sf.shuffle_masks(masks, seed)
    assert shuffled.counts == masks.counts
    assume(0.2 < density < 0.8)
    assert shuffled.digest() != masks.digest()
    assert sf.churn(masks, shuffled) == pytest.approx(1 - density, abs=0.25)


def test_the_same_seed_gives_the_same_masks_in_another_process(layers, elsewhere):
    def digests(seed):
        masks = sf.make_masks(layers, 0.3, seed=seed)
        return f"{masks.digest()} {sf.shuffle_masks(masks, seed).digest()}"

    code = (
        "import sparseflow as sf; from torch import nn\n"
        "layers = sf.maskable(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv1d(3, 5, 1),"
        "nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(7, 1)))\n"
        "masks = sf.make_masks(layers, 0.3, seed=4)\n"
        "print(masks.digest(), sf.shuffle_masks(masks, 4).digest())"
    )
    assert elsewhere(code) == digests(4) != digests(5)


# ---- the value


def test_numbers_of_masks():
    masks = sf.Masks({"a": torch.eye(4) > 0, "b": torch.ones(2, 2) > 0})
    assert (masks.counts, masks.nnz, masks.size, masks.density) == ({"a": 4, "b": 4}, 8, 20, 0.4)
    assert "8 of 20 active, density 0.4000" in repr(masks)
    assert "a: 4 of 16" in repr(masks)
    assert sf.Masks({}).density == 1
    assert sf.full_masks(linears((3, 2))).density == 1


def test_digest_sees_names_shapes_and_bits():
    mask = torch.tensor([[True, False], [False, True]])
    same = sf.Masks({"a": mask, "b": mask}).digest()
    assert same == sf.Masks({"b": mask.clone(), "a": mask}).digest()
    assert same == sf.Masks({"a": mask.mT.contiguous().mT, "b": mask}).digest()
    others = [{"a": mask}, {"a": mask, "c": mask}, {"a": mask, "b": ~mask}]
    others += [{"a": mask.flatten(), "b": mask}]
    assert same not in {sf.Masks(o).digest() for o in others}


def test_masks_do_not_follow_the_dictionary_they_came_from():
    source = {"a": torch.ones(2) > 0}
    masks = sf.Masks(source)
    source["b"] = torch.ones(2) > 0
    assert list(masks) == ["a"]


def test_masks_are_saved_and_loaded(layers, tmp_path):
    masks = sf.make_masks(layers, 0.3)
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    loaded = sf.Masks.load(path)
    assert list(loaded) == list(masks)
    assert loaded.digest() == masks.digest()
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(StoreError, match="not written by sparseflow"):
        sf.Masks.load(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="cannot be read"):
        sf.Masks.load(path)
    with pytest.raises(StoreError, match="is missing"):
        sf.Masks.load(tmp_path / "nothing")


def test_apply_zeroes_and_touches_nothing_else():
    model = nn.Linear(3, 2)
    bias, weight = model.bias.detach().clone(), model.weight.detach().clone()
    mask = torch.tensor([[True, False, True], [False, False, True]])
    sf.Masks({"weight": mask}).apply(model)
    assert torch.equal(model.weight, weight * mask)
    assert torch.equal(model.bias, bias)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"weight": torch.ones(2, 3)}, "is torch.float32; a mask is a torch.bool"),
        ({"weight": torch.ones(2, 3, dtype=torch.uint8)}, "is torch.uint8"),
        ({"weight": torch.ones(3, 2) > 0}, r"shape \(3, 2\); the parameter has \(2, 3\)"),
        ({"fc": torch.ones(3, 2) > 0}, "'fc' names no parameter of Linear"),
    ],
)
def test_masks_that_do_not_fit(masks, message):
    with pytest.raises(MaskError, match=message):
        sf.Masks(masks).apply(nn.Linear(3, 2))


def test_churn():
    a, b = (sf.Masks({"w": torch.tensor(x) > 0}) for x in ([1, 1, 1, 0], [1, 0, 0, 1]))
    assert (sf.churn(a, b), sf.churn(b, a), sf.churn(a, a)) == (2 / 3, 0.5, 0)
    with pytest.raises(MaskError, match="different parameters"):
        sf.churn(a, sf.Masks({"v": torch.ones(1) > 0}))


# ---- held by positions


def by_positions(masks: sf.Masks) -> sf.Masks:
    return sf.Masks.from_indices({n: (masks.indices(n), m.shape) for n, m in masks.items()})


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=3)


@given(shape=shapes, densities=st.tuples(*[st.floats(0, 1)] * 3), block=st.integers(1, 30))
def test_masks_are_the_same_however_they_are_held(shape, densities, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparseflow.masks.entries.BLOCK", block)
        a, b, c = (torch.rand(shape) < density for density in densities)
        bits, others = sf.Masks({"x": a, "y": b}), sf.Masks({"y": b, "x": c})
        places = by_positions(bits)
        assert list(places) == ["x", "y"]
        assert torch.equal(places["x"], a)
        assert torch.equal(places.indices("y"), b.flatten().nonzero().squeeze(1))
        for field in ("counts", "nnz", "size", "density", "densities"):
            assert getattr(places, field) == getattr(bits, field)
        assert repr(places) == repr(bits)
        assert places.digest() == bits.digest()
        assert places.to("cpu") == places == bits == places
        assert places == dict(bits)
        for ours in (others, by_positions(others)):
            assert (places == ours) == torch.equal(a, c) == (bits == ours)
            assert sf.churn(places, ours) == sf.churn(bits, others) == sf.churn(bits, ours)
        assert places != sf.Masks({"x": a})


def test_digest_is_that_of_the_stored_results():
    """SHA-256 over name, shape and one byte a weight."""
    masks = sf.Masks.from_indices(
        {"fc": (torch.tensor([1, 5]), (2, 3)), "a": (torch.empty(0).long(), (4,))}
    )
    expected = hashlib.sha256(b"a(4,)" + bytes(4) + b"fc(2, 3)" + bytes([0, 1, 0, 0, 0, 1]))
    assert masks.digest() == expected.hexdigest()


def test_masks_held_both_ways(tmp_path):
    some = sf.Masks.from_indices({"a": (torch.tensor([3, 7]), (2, 4))})
    both = sf.Masks({"a": some.entry("a"), "b": torch.eye(2) > 0})
    assert both.counts == {"a": 2, "b": 2}
    assert sf.Masks(both) == both
    both.save(tmp_path / "masks")
    assert sf.Masks.load(tmp_path / "masks") == both


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([1, 1]), "not strictly ascending"),
        (torch.tensor([2, 1]), "not strictly ascending"),
        (torch.tensor([-1, 1]), r"position -1 is not in a weight of shape \(2, 3\)"),
        (torch.tensor([1, 6]), r"position 6 is not in a weight of shape \(2, 3\)"),
        (torch.tensor([1.0]), r"positions are torch.float32 of shape \(1,\), not an int64"),
        (torch.tensor([[1]]), "not an int64 vector"),
    ],
)
def test_positions_that_are_none(indices, message):
    with pytest.raises(MaskError, match=message) as caught:
        sf.Masks.from_indices({"fc": (indices, (2, 3))})
    assert str(caught.value).startswith("mask 'fc': ")


def sparse_layer() -> ScatterLinear:
    return ScatterLinear(
        (2, 3), torch.tensor([0, 2, 5]), torch.tensor([1.0, 2.0, 3.0]), torch.ones(2)
    )


def test_apply_drops_connections_of_a_sparse_layer():
    model = nn.Sequential(sparse_layer(), nn.Linear(2, 2))
    parameter = model[0].values
    masks = {"0.weight": (torch.tensor([2, 5]), (2, 3)), "1.weight": (torch.tensor([1]), (2, 2))}
    sf.Masks.from_indices(masks).apply(model)
    assert model[0].values is parameter
    assert (model[0].indices().tolist(), parameter.tolist()) == ([2, 5], [2, 3])
    assert model[1].weight.count_nonzero() == 1
    sf.Masks({"0.weight": torch.tensor([[0, 0, 0], [0, 0, 1]]) > 0}).apply(model)
    assert parameter.tolist() == [3]


@pytest.mark.parametrize(
    ("name", "indices", "shape", "message"),
    [
        (
            "weight",
            [0, 1],
            (2, 3),
            "'weight' has 1 connections that the sparse layer lacks: it holds 3",
        ),
        ("weight", [0], (3, 2), r"shape \(3, 2\); the parameter has \(2, 3\)"),
        ("values", [0], (3,), "'values' names no parameter"),
    ],
)
def test_masks_that_do_not_fit_a_sparse_layer(name, indices, shape, message):
    layer = sparse_layer()
    with pytest.raises(MaskError, match=message):
        sf.Masks.from_indices({name: (torch.tensor(indices), shape)}).apply(layer)
    assert layer.indices().tolist() == [0, 2, 5]


def test_a_layer_left_without_weights_is_named():
    net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    with torch.no_grad():
        net[2].weight.mul_(1e-3)
    layers = sf.maskable(net)
    with pytest.warns(UserWarning, match=r"^2\.weight left without a weight at density 0\.05 with"):
        masks = sf.make_masks(layers, 0.05, allocation="magnitude", pattern="magnitude")
    assert masks.counts == {"0.weight": 370, "2.weight": 0}
    assert sf.make_masks(layers, {"0.weight": 0.1, "2.weight": 0.0}).counts["2.weight"] == 0
    assert sf.make_masks(layers, 0.0).nnz == 0
    with pytest.warns(UserWarning, match=r"^2\.weight left without a weight at the densities"):
        sf.make_masks(layers, {"0.weight": 0.1, "2.weight": 1e-4})


def test_shuffling_leaves_padding_rows_empty():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(10, 6, padding_idx=3), nn.Flatten(), nn.Linear(18, 2))
    layers = sf.maskable(net, types=[nn.Embedding, nn.Linear])
    masks = sf.make_masks(layers, 0.7)
    shuffled = [sf.shuffle_masks(masks, seed, layers=layers) for seed in range(20)]
    for each in shuffled:
        assert each.counts == masks.counts
        assert not each["0.weight"][3].any()
    active = torch.stack([each["0.weight"] for each in shuffled]).sum(0)
    assert active[torch.arange(10) != 3].min() > 0  # every other place is taken now and then
    plain = sf.shuffle_masks(masks, 0)
    assert torch.equal(plain["2.weight"], shuffled[0]["2.weight"])
    for use in (plain.check, plain.apply, lambda net: sf.initialise(layers, plain)):
        with pytest.raises(MaskError, match=r"connections in row 3, .*shuffle_masks takes layers="):
            use(net)


def test_the_padding_row_of_a_tied_weight_is_trained_and_so_an_ordinary_one():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(9, 6, padding_idx=0), nn.Linear(6, 9, bias=False)
            self.head.weight = self.words.weight

    net = Tied()
    layers = sf.maskable(net, types=[nn.Embedding, nn.Linear])
    assert [(name, layer.padding) for name, layer in layers.items()] == [("words.weight", None)]
    sf.full_masks(layers).check(net)
