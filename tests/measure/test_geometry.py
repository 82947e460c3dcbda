"""Distances, maps, paths and planes against closed forms; the model is never touched."""

import math
from itertools import combinations

import numpy as np
import pytest
import sklearn.manifold
import torch
from helpers.small import batch, loss, network
from torch import nn
from torch.nn import functional

from sparseflow.core.errors import MeasureError
from sparseflow.masks import Masks
from sparseflow.measure.distance import Distances, distance, distances
from sparseflow.measure.flow import mean_loss
from sparseflow.measure.landscape import loss_and_accuracy
from sparseflow.measure.mds import mds
from sparseflow.measure.path import interpolate
from sparseflow.measure.plane import plane

DOUBLE = torch.float64
EPSILON = torch.finfo(DOUBLE).eps


def states(count, dtype=DOUBLE):
    """States of the small network, with a counter beside the weights."""
    stream = torch.Generator().manual_seed(5)
    names = network(dtype).state_dict()
    return [
        {n: torch.randn(t.shape, generator=stream, dtype=dtype) for n, t in names.items()}
        | {"steps": torch.tensor(i)}
        for i in range(count)
    ]


def weight(*values):
    """The state of a bias-free linear layer with one output."""
    return {"weight": torch.tensor([values], dtype=DOUBLE)}


def line(inputs=1):
    return nn.Linear(inputs, 1, bias=False).double()


# ---- distances


def test_distances_against_explicit_sums():
    some = states(4)
    found = distances(dict(zip("abcd", some, strict=True)))
    flat = [torch.cat([t.flatten() for n, t in s.items() if n != "steps"]) for s in some]
    for i, j in combinations(range(4), 2):
        x, y = flat[i], flat[j]
        assert found.l2[i, j] == pytest.approx(math.dist(x, y), rel=1e-12)
        cosine = 1 - float(functional.cosine_similarity(x, y, dim=0))
        assert found.cosine[i, j] == pytest.approx(cosine, rel=1e-12)
        one = distance(some[i], some[j])
        assert (one.l2, one.cosine) == pytest.approx(
            (found.l2[i, j], found.cosine[i, j]), rel=1e-15
        )
    assert found.labels == ("a", "b", "c", "d")
    assert found.hamming is None
    assert found.jaccard is None
    for matrix in (found.l2, found.cosine):
        assert matrix.dtype == np.float64
        assert np.array_equal(matrix, matrix.T)
        assert not matrix.diagonal().any()


def test_near_states_do_not_cancel():
    """Neither ‖a‖² + ‖b‖² - 2 a·b nor 1 - cos in one go could see these."""
    a, b = torch.tensor([1.0, 0.0], dtype=DOUBLE), torch.tensor([1.0, 2.0**-40], dtype=DOUBLE)
    found = distances([{"w": a}, {"w": b}, {"w": 3 * a}])
    assert found.l2[0, 1] == 2.0**-40
    assert found.cosine[0, 1] == pytest.approx(2.0**-81, rel=1e-9)
    assert found.cosine[0, 2] == 0
    assert found.labels == ("0", "1", "2")


def test_distances_of_chosen_names_and_of_a_zero_state():
    a, b = (
        {"w": torch.ones(2), "mean": torch.zeros(1)},
        {"w": torch.zeros(2), "mean": torch.ones(1)},
    )
    assert distance(a, b).l2 == pytest.approx(math.sqrt(3))
    found = distances([a, b], only=["w"])
    assert found.l2[0, 1] == pytest.approx(math.sqrt(2))
    assert math.isnan(found.cosine[0, 1])
    assert not found.cosine.diagonal().any()


def test_mask_distances_by_hand():
    """Over 4 + 2 positions: a has 3 active, b shares 2 of them and has 1 more; c is empty."""
    yes = {
        "a": ([1, 1, 0, 0], [1, 0]),
        "b": ([1, 0, 1, 0], [1, 0]),
        "c": ([0, 0, 0, 0], [0, 0]),
        "d": ([0, 0, 0, 0], [0, 0]),
    }
    masks = {
        label: Masks({"v": torch.tensor([v]).bool(), "w": torch.tensor(w).bool()})
        for label, (v, w) in yes.items()
    }
    weights = {label: {"w": torch.ones(1)} for label in yes}
    hamming = np.array([[0, 2, 3, 3], [2, 0, 3, 3], [3, 3, 0, 0], [3, 3, 0, 0]]) / 6
    jaccard = np.array([[0, 0.5, 1, 1], [0.5, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
    for given in (masks, dict(reversed(masks.items())), list(masks.values())):
        found = distances(weights, given)
        assert np.allclose(found.hamming, hamming, rtol=0, atol=1e-15)
        assert np.allclose(found.jaccard, jaccard, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"a": {"w": torch.ones(2)}}, {}, "two states or more, not 1"),
        (
            {"lenet": {"w": torch.ones(2)}, "mlp": {"w": torch.ones(3, 1)}},
            {},
            r"lenet and mlp .*different shapes.*'w' is \(2,\) and \(3, 1\)",
        ),
        ({"a": {"w": torch.ones(2)}, "b": {"v": torch.ones(2)}}, {}, "a and b differ in: v, w"),
        ([{"w": torch.ones(2)}] * 2, {"only": ["v"]}, "state '0' has no tensor 'v'"),
        ([{"w": torch.ones(2).long()}] * 2, {}, "no floating-point or complex tensor"),
        (
            {"a": {"w": torch.ones(2)}, "b": {"w": torch.tensor([1.0, math.nan])}},
            {},
            "'w' of b holds weights that are not finite: 1 of 2, the first nan",
        ),
        (
            [{"v": torch.ones(()), "w": torch.ones(2)}, {"v": torch.tensor(math.inf)}],
            {"only": ["v"]},
            "'v' of 1 holds .* 1 of 1, the first inf",
        ),
        ([{"w": torch.ones(2)}] * 2, {"masks": [{}]}, "2 states and 1 sets of masks"),
        (
            {"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}},
            {"masks": {"a": {}, "c": {}}},
            "labelled a, c and the states a, b",
        ),
        (
            [{"w": torch.ones(2)}] * 2,
            {"masks": [{"w": torch.ones(2).bool()}, {"w": torch.ones(3).bool()}]},
            "the masks of 0 and the masks of 1 hold .*different shapes",
        ),
    ],
)
def test_distances_refuse(given, options, message):
    with pytest.raises(MeasureError, match=message):
        distances(given, **options)


def test_one_distance_of_a_training_that_diverged_is_no_number():
    found = distance({"w": torch.ones(2)}, {"w": torch.tensor([1.0, math.nan])})
    assert math.isnan(found.l2)
    assert math.isnan(found.cosine)


def test_what_is_not_compared_may_be_anything():
    bad = {"w": torch.ones(2), "mean": torch.tensor([math.nan])}
    found = distances([{"w": torch.zeros(2)}, bad], only=["w"]).l2[0, 1]
    assert found == pytest.approx(math.sqrt(2), rel=4 * EPSILON)  # two squares, a sum, a root


# ---- maps


def between(points):
    return np.linalg.norm(points[:, None] - points, axis=-1)


def cloud(n=8, dimensions=2, seed=0):
    return 40 * np.random.default_rng(seed).normal(size=(n, dimensions))


def test_points_of_the_plane_are_recovered():
    points = cloud()
    found = mds(between(points))
    assert found.stress < 1e-7
    assert np.allclose(between(found.points), between(points), rtol=0, atol=1e-5)
    assert np.allclose(found.points.mean(0), 0, atol=1e-9)
    spread = found.points.T @ found.points
    assert abs(spread[0, 1]) < 1e-9 * spread[0, 0]
    assert spread[0, 0] > spread[1, 1]


@pytest.mark.parametrize(
    ("n", "dimensions", "stress"),
    [
        # Three in a row, t apart: Σd = 4t, Σd² = 6t², least 1 - (Σd)² / (3 Σd²) = 1/9.
        (3, 1, 1 / 3),
        (3, 2, 0),
        # A square: Σd = (4 + 2√2)s, Σd² = 8s².
        (4, 2, math.sqrt(1 - (4 + 2 * math.sqrt(2)) ** 2 / 48)),
        (4, 3, 0),
    ],
)
def test_stress_of_a_simplex_in_closed_form(n, dimensions, stress):
    found = mds(7.0 * (1 - np.eye(n)), dimensions=dimensions)
    assert found.stress == pytest.approx(stress, abs=1e-6)
    assert found.points.shape == (n, dimensions)
    given, seen = 7.0 * (1 - np.eye(n)), between(found.points)
    explicit = math.sqrt(((given - seen) ** 2).sum() / (given**2).sum())
    assert found.stress == pytest.approx(explicit, abs=1e-9)


@pytest.mark.slow
def test_the_map_is_at_least_as_good_as_scikit_learns():
    smacof = sklearn.manifold.smacof
    given = between(cloud(n=9, dimensions=7))
    ours = mds(given)
    seen = between(ours.points)
    _, best = smacof(given, n_init=30, n_components=2, random_state=0, normalized_stress=False)
    assert ((given - seen) ** 2).sum() / 2 <= best * (1 + 1e-4)
    _, theirs = smacof(given, init=ours.points, n_init=1, normalized_stress=True)
    assert ours.stress / math.sqrt(1 - ours.stress**2) == pytest.approx(theirs, rel=1e-4)


def test_the_map_does_not_turn():
    """However the points are turned and moved, their distances give one map."""
    points, angle = cloud(), 1.1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    first, second = mds(between(points)), mds(between(points @ turn + 100))
    assert np.allclose(first.points, second.points, atol=1e-4)
    again = mds(between(points))
    assert np.array_equal(first.points, again.points)
    farthest = np.abs(first.points).argmax(0)
    assert (first.points[farthest, [0, 1]] > 0).all()


def test_maps_of_distances_and_of_equal_points():
    zero = np.zeros((3, 3))
    found = mds(Distances(("a", "b", "c"), zero, zero))
    assert found.labels == ("a", "b", "c")
    assert found.stress == 0
    assert np.array_equal(found.points, np.zeros((3, 2)))
    assert mds(1 - np.eye(3), dimensions=4).points.shape == (3, 4)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 2)), "at least 3 points, not 2"),
        (np.zeros((3, 2)), r"square matrix.*\(3, 2\)"),
        (
            [[0, 1, 2], [1, 0, 3], [2, 3.5, 0]],
            "from 1 to 2 is 3: it differs from",
        ),
        ([[0, 1, 2], [1, 0, -3], [2, -3, 0]], "from 1 to 2 is -3: it must not be negative"),
        ([[0, 1, math.nan], [1, 0, 3], [math.nan, 3, 0]], "from 0 to 2 is nan: it must be finite"),
        ([[0, 1, 2], [1, 4, 3], [2, 3, 0]], "from 1 to 1 is 4: it must be 0"),
    ],
)
def test_maps_refuse(matrix, message):
    with pytest.raises(MeasureError, match=message):
        mds(np.array(matrix, dtype=np.float64))
    with pytest.raises(MeasureError, match="dimensions=0"):
        mds(1 - np.eye(3), dimensions=0)


# ---- paths


def test_default_grid_is_the_papers():
    found = interpolate(
        line(), weight(0.0), weight(1.0), lambda m, x: m(x).mean(), torch.ones(1, 1, dtype=DOUBLE)
    )
    assert len(found.alphas) == 29
    assert (found.alphas[0], found.alphas[4], found.alphas[24]) == (-0.2, 0, 1)
    assert found.alphas[-1] == pytest.approx(1.2)
    assert np.allclose(np.diff(found.alphas), 0.05)
    assert np.allclose(found.losses, found.alphas)


@pytest.mark.parametrize(
    ("well", "ends", "barrier"),
    [
        (lambda w: (w**2 - 1) ** 2, (-1.0, 1.0), 1.0),
        (lambda w: -(w**2), (0.0, 1.0), 0.25),  # -α² over the chord -α, at α = 1/2
        (lambda w: (w - 0.3) ** 2, (-2.0, 5.0), 0.0),
        (lambda w: 3 * w + 2, (-1.0, 4.0), 0.0),
    ],
)
def test_barrier_in_closed_form(well, ends, barrier):
    def depth(model, x):
        return well(model(x)).mean()

    one = torch.ones(3, 1, dtype=DOUBLE)
    found = interpolate(line(), weight(ends[0]), weight(ends[1]), depth, one)
    assert found.barrier == pytest.approx(barrier, abs=1e-12)
    assert found.barrier >= 0
    back = interpolate(line(), weight(ends[1]), weight(ends[0]), depth, one)
    assert back.barrier == pytest.approx(barrier, abs=1e-12)


def test_the_ends_are_the_solutions_bit_for_bit():
    a, b = ({n: t for n, t in s.items() if n != "steps"} for s in states(2, torch.float32))
    model, data = network(), batch(0)
    found = interpolate(model, a, b, loss, data)
    for state, at in ((a, 0), (b, 1)):
        model.load_state_dict(state)
        assert found.losses[list(found.alphas).index(at)] == mean_loss(model, loss, [data])


def test_linear_regression_along_the_path():
    """The residual is r_a + α (r_b - r_a), so the loss is a known parabola."""
    torch.manual_seed(3)
    model = nn.Linear(4, 2).double()
    a, b = ({n: torch.randn_like(t) for n, t in model.state_dict().items()} for _ in range(2))
    x, y = torch.randn(30, 4, dtype=DOUBLE), torch.randn(30, 2, dtype=DOUBLE)
    start, end = (functional.linear(x, s["weight"], s["bias"]) - y for s in (a, b))
    found = interpolate(model, a, b, loss, (x, y), points=8, span=(-1.0, 2.5))
    expected = [float((start + t * (end - start)).square().mean()) for t in found.alphas]
    assert np.allclose(found.losses, expected, rtol=1e-12)


def test_a_grid_that_misses_the_ends_gains_them():
    ones = torch.ones(1, 1, dtype=DOUBLE)
    found = interpolate(line(), weight(0.0), weight(1.0), lambda m, x: m(x).mean(), ones, 4)
    assert np.allclose(found.alphas, [-0.2, 0, 0.8 / 3, 2.2 / 3, 1, 1.2])


def test_data_in_any_form_and_chunk_give_one_path():
    a, b = ({n: t for n, t in s.items() if n != "steps"} for s in states(2))
    x, y = batch(0, DOUBLE, size=31)
    whole = interpolate(network(DOUBLE), a, b, loss, (x, y), points=5)
    parts = [(x[:7], y[:7]), (x[7:], y[7:])]
    for data in (parts, (part for part in parts)):
        found = interpolate(network(DOUBLE), a, b, loss, data, points=5, chunk=6)
        assert np.allclose(found.losses, whole.losses, rtol=1e-12)


def test_accuracy_along_the_path():
    """One weight, inputs ±1: the sign of the weight decides the class of each."""

    class Sign(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1, dtype=DOUBLE))

        def forward(self, x):
            return torch.cat([-x * self.w, x * self.w], 1)

    x = torch.tensor([[1.0], [1.0], [-1.0]], dtype=DOUBLE)
    classes = torch.tensor([1, 1, 1])
    a, b = ({"w": torch.tensor([w], dtype=DOUBLE)} for w in (-1.0, 3.0))
    found = interpolate(Sign(), a, b, loss_and_accuracy, (x, classes), points=9, span=(-0.5, 1.5))
    signs = -1 + 4 * found.alphas
    keep = signs != 0
    assert np.allclose(found.accuracies[keep], np.where(signs > 0, 200 / 3, 100 / 3)[keep])
    losses = [np.log1p(np.exp(-2 * s * x.numpy())).mean() for s in signs]
    assert np.allclose(found.losses, losses)
    # α = 1/4 ties at w = 0; argmax then says class 0: accuracy 0, chord 5/12.
    assert found.accuracy_barrier == pytest.approx(500 / 12)
    plain = interpolate(Sign(), a, b, lambda m, d: loss_and_accuracy(m, d)["loss"], (x, classes))
    assert plain.scores == {}
    with pytest.raises(MeasureError, match="no 'accuracy'"):
        _ = plain.accuracies


# ---- batch norm and other buffers


class Normed(nn.Module):
    """A layer, batch norm, dropout, a layer; and buffers of three kinds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(5, 3)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("shift", torch.tensor(3))
        self.register_buffer("unsaved", torch.tensor(0.5), persistent=False)

    def forward(self, x):
        hidden = self.drop(self.norm(self.first(x)).relu())
        return self.scale * self.last(hidden) + self.shift + self.unsaved


def normed_states():
    stream = torch.Generator().manual_seed(8)
    names = Normed().double().state_dict()
    found = [
        {
            n: torch.rand(t.shape, generator=stream, dtype=DOUBLE) - 0.3
            if t.is_floating_point()
            else t
            for n, t in names.items()
        }
        for _ in range(2)
    ]
    found[1]["shift"] = torch.tensor(7)
    return found


def by_hand(a, b, alpha, x, parts):
    """The network's output with the statistics of all parts as one batch."""
    s = {n: (1 - alpha) * a[n] + alpha * b[n] for n in a if n != "shift"}
    shift = a["shift"] if alpha < 0.5 else b["shift"]
    rows = functional.linear(torch.cat(parts), s["first.weight"], s["first.bias"])
    mean, var = rows.mean(0), rows.var(0)
    hidden = functional.linear(x, s["first.weight"], s["first.bias"])
    hidden = (hidden - mean) / (var + 1e-5).sqrt() * s["norm.weight"] + s["norm.bias"]
    out = functional.linear(hidden.clamp(min=0), s["last.weight"], s["last.bias"])
    return s["scale"] * out + shift + 0.5


def test_batch_norm_statistics_are_gathered_anew_at_every_point():
    """Momentum, dropout and the states' own statistics must play no part."""
    a, b = normed_states()
    model = Normed().double()
    x, y = batch(0, DOUBLE, size=20)
    train = [batch(1, DOUBLE, size=n)[0] for n in (10, 4, 1)]
    path = interpolate(
        model,
        a,
        b,
        loss,
        (x, y),
        points=8,
        batch_norm_data=[(t, torch.zeros(1, dtype=DOUBLE)) for t in train],
    )
    for alpha, value in zip(path.alphas, path.losses, strict=True):
        expected = (by_hand(a, b, alpha, x, train[:2]) - y).square().mean()
        assert value == pytest.approx(float(expected), rel=1e-10)
    # Without other data the statistics are those of the data, in the same chunks.
    path = interpolate(model, a, b, loss, (x, y), points=8, chunk=10)
    for alpha, value in zip(path.alphas, path.losses, strict=True):
        expected = (by_hand(a, b, alpha, x, [x[:10], x[10:]]) - y).square().mean()
        assert value == pytest.approx(float(expected), rel=1e-10)


def images_and_norms(layers):
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(1 if i == 0 else 4, 4, 3), nn.BatchNorm2d(4)) for i in range(layers)]
    # Images that grow brighter, so that chunks differ.
    images = torch.rand(12, 1, 7, 7).double() + torch.arange(12).double()[:, None, None, None]
    return nn.Sequential(*sum(blocks, ()), nn.ReLU(), nn.Flatten()).double(), images


def power(net, x):
    return net(x).square().mean()


def gathered(model, images, chunk):
    state = {n: t.clone() for n, t in model.state_dict().items()}
    path = interpolate(model, state, state, power, images, points=3, chunk=chunk)
    assert path.barrier == 0
    assert np.allclose(path.losses, path.losses[0], rtol=1e-12)
    return path.losses[0]


def in_one_batch(model, images):
    torch.optim.swa_utils.update_bn([images], model)
    return power(model.eval(), images).item()


@pytest.mark.parametrize("chunk", [2, 4, 5, 12])
def test_batch_norm_statistics_of_chunks_are_those_of_one_batch(chunk):
    model, images = images_and_norms(1)
    found = gathered(model, images, chunk)
    assert found == pytest.approx(in_one_batch(model, images), rel=1e-12)


def test_batch_norm_statistics_of_several_layers_against_torch():
    model, images = images_and_norms(2)
    found = gathered(model, images, 12)
    assert found == pytest.approx(in_one_batch(model, images), rel=1e-12)


def test_batch_norm_used_twice_sees_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1).double()

        def forward(self, x):
            return torch.cat([self.norm(x), self.norm(3 * x)])

    x = torch.tensor([[1.0], [2.0], [4.0], [7.0]], dtype=DOUBLE)
    both = torch.cat([x, 3 * x])
    expected = ((both - both.mean()) ** 2 / (both.var() + 1e-5)).mean()
    assert gathered(Twice(), x, 2) == pytest.approx(float(expected), rel=1e-12)


def test_nothing_of_the_model_changes():
    a, b = normed_states()
    model = Normed().double()
    model.first.weight.grad = torch.full_like(model.first.weight, 7.0)
    model.norm.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    given = [{n: t.clone() for n, t in s.items()} for s in (a, b)]
    pointers = [t.data_ptr() for t in (*model.parameters(), *model.buffers())]
    flags = [m.training for m in model.modules()]
    stream = torch.random.get_rng_state()
    data = batch(0, DOUBLE)
    interpolate(model, a, b, loss, data, points=3)
    c = {n: 2 * t if t.is_floating_point() else t for n, t in b.items()}
    plane(model, a, b, c, loss, data, points=(2, 2))
    with pytest.raises(ZeroDivisionError):
        interpolate(model, a, b, lambda m, d: m(d[0]).sum() / (1 // 0), data)
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert [m.training for m in model.modules()] == flags
    assert [t.data_ptr() for t in (*model.parameters(), *model.buffers())] == pointers
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.norm.momentum == 0.3
    assert bool((model.first.weight.grad == 7).all())
    assert all(torch.equal(s[n], g[n]) for s, g in zip((a, b), given, strict=True) for n in s)


def test_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(2, 2, bias=False)
            self.two = nn.Linear(2, 2, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    a, b = ({"one.weight": s, "two.weight": s} for s in (torch.eye(2), 3 * torch.eye(2)))
    found = interpolate(
        Tied(), a, b, lambda m, x: m(x).mean(), torch.ones(1, 2), 3, span=(0.0, 1.0)
    )
    assert found.losses.tolist() == [1, 4, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"span": (0.1, 1.2)}, "must cover 0 and 1"),
        ({"points": 2}, "points=2 must be at least 3"),
        ({"chunk": 0}, "chunk is 0"),
        ({"data": []}, "no batch"),
        ({"data": torch.ones(0, 1)}, "no example"),
        ({"b": {}}, "b has no 'weight', a parameter of Linear"),
        ({"a": weight(1.0) | {"bias": torch.ones(1)}}, "a has 'bias', which Linear does not"),
        ({"b": weight(1.0, 2.0)}, r"'weight' has shape \(1, 2\) in b and \(1, 1\) in Linear"),
        ({"loss": lambda m, x: m(x).log().mean()}, r"loss is nan at α = -0.2 of the path"),
        ({"loss": lambda m, x: m(x)}, r"the loss returns shape \(4, 1\); it should be a scalar"),
        ({"loss": lambda m, x: {"error": m(x).mean()}}, "the loss gave error; 'loss' is missing"),
    ],
)
def test_paths_refuse(change, message):
    given = {
        "a": weight(0.0),
        "b": weight(1.0),
        "loss": lambda m, x: m(x).mean(),
        "data": torch.ones(4, 1, dtype=DOUBLE),
    } | change
    with pytest.raises(MeasureError, match=message):
        interpolate(line(), given.pop("a"), given.pop("b"), **given)


# ---- planes


def test_plane_of_a_quadratic():
    """With the loss ‖w - a‖² every point of the plane has x² + y²."""
    torch.manual_seed(1)
    a, b, c = ({"weight": torch.randn(1, 9, dtype=DOUBLE)} for _ in range(3))

    def square(model, _):
        return (model.weight - a["weight"]).square().sum()

    found = plane(line(9), a, b, c, square, torch.ones(1, 9), points=(7, 5), margin=0.5)
    assert found.losses.shape == (5, 7)
    assert np.allclose(found.losses, found.x**2 + found.y[:, None] ** 2, rtol=1e-10)
    given = np.stack([s["weight"][0].numpy() for s in (a, b, c)])
    assert np.allclose(between(found.positions), between(given), rtol=1e-12)
    assert found.positions[0].tolist() == [0, 0]
    assert found.positions[1, 1] == 0
    low, high = found.positions.min(0), found.positions.max(0)
    for axis, grid in enumerate((found.x, found.y)):
        extent = high[axis] - low[axis]
        assert grid[[0, -1]] == pytest.approx([low[axis] - extent / 2, high[axis] + extent / 2])


def test_plane_through_its_three_solutions():
    """A right angle, no margin: the corners are the solutions; scores come along."""
    a, b, c = weight(1.0, 1.0), weight(3.0, 1.0), weight(1.0, 4.0)

    def both(model, x):
        return {"loss": model(x).square().mean(), "sum": model.weight.sum()}

    x = torch.tensor([[1.0, 2.0]], dtype=DOUBLE)
    found = plane(line(2), a, b, c, both, x, points=(3, 2), margin=0.0)
    assert found.x.tolist() == [0, 1, 2]
    assert found.y.tolist() == [0, 3]
    assert np.allclose(found.losses, [[9, 16, 25], [81, 100, 121]])
    assert np.allclose(found.scores["sum"], [[2, 3, 4], [5, 6, 7]])


@pytest.mark.parametrize(
    ("b", "c", "options", "message"),
    [
        (weight(0.0, 0.0), weight(1.0, 2.0), {}, "a and b are one and the same point"),
        (weight(1.0, 2.0), weight(1.0, 2.0), {}, "b and c are one and the same point"),
        (weight(1.0, 2.0), weight(-3.0, -6.0), {}, "a, b and c lie on one line"),
        (weight(1.0, 0.0), weight(0.0, 1.0), {"points": (1, 5)}, "points="),
        (weight(1.0, 0.0), weight(0.0, 1.0), {"margin": -0.1}, "margin=-0.1"),
        (
            weight(1.0, 0.0),
            weight(0.0, math.inf),
            {},
            "'weight' of c holds weights that are not finite: 1 of 2",
        ),
        (weight(1.0), weight(0.0, 1.0), {}, r"'weight' has shape \(1, 1\) in b"),
    ],
)
def test_planes_refuse(b, c, options, message):
    with pytest.raises(MeasureError, match=message):
        plane(line(2), weight(0.0, 0.0), b, c, loss_and_accuracy, torch.ones(1, 2), **options)


def test_a_plane_with_a_loss_that_is_not_finite():
    with pytest.raises(MeasureError, match=r"loss is nan at x = .*, y = -0\.2 of the plane"):
        plane(
            *(line(2), weight(0.0, 0.0), weight(1.0, 0.0), weight(0.0, 1.0)),
            *(lambda m, x: m.weight[0, 1].sqrt(), torch.ones(1, 2)),
            **{"points": (8, 8)},
        )
