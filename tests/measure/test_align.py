"""Weight matching: what is found, against permutations made by hand and all of them."""

from itertools import pairwise, permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.errors import MeasureError
from sparseflow.masks import Masks
from sparseflow.measure.align import align
from sparseflow.measure.channels import Axis, channels
from sparseflow.models import lenet5, mlp

DOUBLE = torch.float64
LAYERS = (nn.Conv2d, nn.Linear)


def normed():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten()),
        *(nn.Linear(8 * 9, 12), nn.BatchNorm1d(12), nn.PReLU(12), nn.Dropout(), nn.Linear(12, 4)),
    )


class Residual(nn.Module):
    """Two blocks on one stream, written as people write them."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.up, self.down = nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(7, 5, 3, padding=1)
        self.square = nn.Conv2d(5, 5, 1)
        self.head = nn.Linear(5 * 4, 3)

    def forward(self, x):
        x = functional.relu(self.norm(self.stem(x)))
        x = x + self.down(torch.tanh(self.up(x)))
        x += 0.5 * self.square(x).relu()
        x = functional.adaptive_avg_pool2d(x, 2)
        return self.head(x.view(x.size(0), -1))


class Functional(nn.Module):
    """A small LeNet without modules for what has no weights."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 6, 5)
        self.f1, self.f2, self.f3 = nn.Linear(96, 20), nn.Linear(20, 14), nn.Linear(14, 3)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.c1(x)), 2)
        x = functional.avg_pool2d(torch.sigmoid(self.c2(x)) * 2, 2)
        x = functional.dropout(torch.flatten(x, 1), training=self.training)
        x = functional.gelu(self.f1(x)).flatten(1)
        return functional.log_softmax(self.f3(-self.f2(x.reshape(x.shape[0], -1)).abs()), 1)


CASES = {
    "lenet5": (lenet5, (1, 28, 28)),
    "mlp": (mlp, (1, 28, 28)),
    "batch norm": (normed, (1, 12, 12)),
    "residual": (Residual, (1, 6, 6)),
    "functional": (Functional, (1, 28, 28)),
}


def random_state(model, seed):
    """Weights, and batch-norm statistics, all of them at random."""
    stream = torch.Generator().manual_seed(seed)
    return {
        n: torch.rand(t.shape, generator=stream, dtype=DOUBLE) - 0.4 * (not n.endswith("_var"))
        if t.is_floating_point()
        else torch.tensor(seed)
        for n, t in model.state_dict().items()
    }


def outputs(model, state, x):
    model.double().load_state_dict(state)
    with torch.no_grad():
        return model.eval()(x)


def assert_equal_but_for_order(build, a, b, x):
    """Outputs differ by no more than sums of the same terms in another order can.

    A sum of n terms t is off by at most n · ε · Σ|t|, relative to the largest output here,
    and the errors of the layers add up.
    """
    ours, theirs = outputs(build(), a, x), outputs(build(), b, x)
    terms = sum(m.weight[0].numel() for m in build().modules() if isinstance(m, LAYERS))
    bound = 2 * terms * torch.finfo(DOUBLE).eps * float(theirs.abs().max())
    assert torch.allclose(ours, theirs, rtol=0, atol=bound)


def shuffled_chain(model, state, seed):
    """Reorder the hidden units of a Sequential, layer by layer; return the orders too."""
    stream = torch.Generator().manual_seed(seed)
    state, orders, order = dict(state), {}, None
    layers = [n for n, m in model.named_children() if isinstance(m, LAYERS)]
    for name, module in model.named_children():
        own = [n for n, _ in (*module.named_parameters(), *module.named_buffers())]
        if isinstance(module, LAYERS):
            w = state[f"{name}.weight"]
            if order is not None:
                parts = w.reshape(len(w), len(order), -1, *w.shape[2:])
                w = parts[:, order].reshape(w.shape)
            state[f"{name}.weight"] = w
            if name == layers[-1]:
                break
            order = orders[name] = torch.randperm(len(w), generator=stream)
        for local in own if order is not None else ():
            if state[f"{name}.{local}"].ndim:
                state[f"{name}.{local}"] = state[f"{name}.{local}"][order]
    return state, orders


def test_a_permuted_sparse_network_is_aligned_back():
    """At 1 % many units are equal: no input, or no output, or neither."""
    model = lenet5()
    masks = sf.make_masks(sf.maskable(model), 0.01, allocation="uniform", seed=0)
    a = {n: t * masks[n] if n in masks else 0 * t for n, t in random_state(model, 0).items()}
    assert sum(int((m.flatten(1).sum(1) == 0).sum()) for m in masks.values()) > 10
    b, _ = shuffled_chain(model, a, 1)
    found = align(model, a, b)
    assert found.distance_before > 1
    assert found.distance_after == 0
    assert all(torch.equal(found.state[n], t) for n, t in a.items())


@pytest.mark.parametrize("case", ["lenet5", "mlp", "batch norm"])
def test_a_permuted_network_is_aligned_back(case):
    build, shape = CASES[case]
    model = build()
    a = random_state(model, 0)
    b, orders = shuffled_chain(model, a, 1)
    x = torch.rand(3, *shape, dtype=DOUBLE)
    assert_equal_but_for_order(build, a, b, x)
    found = align(model, a, b)
    assert found.distance_before > 1
    assert found.distance_after == 0
    assert list(found.permutations) == list(orders)
    for group, order in orders.items():
        assert torch.equal(found.permutations[group], order.argsort())
    assert all(torch.equal(found.state[n], t) for n, t in a.items())


def test_a_permuted_residual_network_is_aligned_back():
    model = Residual()
    a = random_state(model, 0)
    stream, mid = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([6, 2, 0, 1, 5, 4, 3])
    b = dict(a)
    for name in ("stem", "norm", "down", "square"):
        for n in [n for n in b if n.startswith(name) and b[n].ndim]:
            b[n] = b[n][stream]
    for name in ("up", "square"):
        b[f"{name}.weight"] = b[f"{name}.weight"][:, stream]
    b["up.weight"], b["up.bias"] = b["up.weight"][mid], b["up.bias"][mid]
    b["down.weight"] = b["down.weight"][:, mid]
    b["head.weight"] = b["head.weight"].reshape(3, 5, 4)[:, stream].reshape(3, 20)
    x = torch.rand(3, 1, 6, 6, dtype=DOUBLE)
    assert_equal_but_for_order(Residual, a, b, x)
    found = align(model, a, b)
    assert found.distance_after == 0
    assert found.permutations["stem"].tolist() == stream.argsort().tolist()
    assert found.permutations["up"].tolist() == mid.argsort().tolist()


@pytest.mark.parametrize("case", CASES)
def test_an_aligned_network_computes_the_same_function(case):
    build, shape = CASES[case]
    model = build()
    a, b = random_state(model, 0), random_state(model, 1)
    kept = {n: t.clone() for n, t in model.state_dict().items()}
    given = {n: t.clone() for n, t in b.items()}
    stream = torch.random.get_rng_state()
    found = align(model, a, b, starts=3)
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(t, given[n]) for n, t in b.items())
    assert model.training
    assert found.distance_after < found.distance_before
    assert any(not torch.equal(found.state[n], t) for n, t in b.items())
    x = torch.rand(4, *shape, dtype=DOUBLE)
    assert float(outputs(build(), b, x).std()) > 1e-3
    assert_equal_but_for_order(build, found.state, b, x)
    names = [n for n, _ in model.named_parameters()]
    assert (
        found.distance_after
        == sf.distance({n: a[n] for n in names}, {n: found.state[n] for n in names}).l2
    )


def all_distances(a, b, sizes):
    """Distance to b under every permutation of the hidden layers of an MLP."""
    for orders in product(*(permutations(range(n)) for n in sizes)):
        state = dict(b)
        for i, order in enumerate(orders):
            first, second = f"{2 * i}", f"{2 * i + 2}.weight"
            for n in (f"{first}.weight", f"{first}.bias"):
                state[n] = state[n][list(order)]
            state[second] = state[second][:, list(order)]
        yield sf.distance(a, state).l2


@pytest.mark.parametrize("seed", range(4))
def test_one_hidden_layer_against_all_permutations(seed):
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    a, b = random_state(model, seed), random_state(model, 100 + seed)
    best = min(all_distances(a, b, [5]))
    assert align(model, a, b, starts=1).distance_after == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_two_hidden_layers_against_all_permutations(seed):
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    a, b = random_state(model, seed), random_state(model, 100 + seed)
    best = min(all_distances(a, b, [4, 4]))
    found = align(model, a, b, starts=24)
    assert found.distance_after == pytest.approx(best, rel=1e-12)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    seed=st.integers(0, 1_000),
    density=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_alignment_never_moves_away(widths, seed, density):
    """Down to networks that are all zero, where every order is as good."""
    layers = [m for i, o in pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], widths[-1]))
    stream = torch.Generator().manual_seed(seed)
    a, b = (
        {n: t * (torch.rand(t.shape, generator=stream) < density) for n, t in s.items()}
        for s in (random_state(model, seed), random_state(model, seed + 1))
    )
    found, again = align(model, a, b, starts=3), align(model, a, b, starts=3)
    assert found.distance_after <= found.distance_before
    for group, order in found.permutations.items():
        assert sorted(order.tolist()) == list(range(len(order)))
        assert torch.equal(order, again.permutations[group])


def test_masks_and_other_tensors_follow():
    model = lenet5((4, 6, 20, 10))
    masks = sf.sparsify(model, density=0.2, seed=1)
    b = {n: t.clone() for n, t in model.state_dict().items()}
    found = align(model, random_state(model, 0), b)
    moved = found.apply(masks)
    assert isinstance(moved, Masks)
    assert moved != masks
    assert moved.counts == masks.counts
    for name, mask in moved.items():
        assert not found.state[name][~mask].any()
        assert found.state[name][mask].all()
    again = found.apply(b)
    assert isinstance(again, dict)
    assert all(torch.equal(again[n], t) for n, t in found.state.items())
    assert found.apply({}) == {}


def test_a_module_used_twice_and_tied_weights_join_their_units():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.mid, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.out.weight = nn.Parameter(self.inp.weight.detach().t().clone())

        def forward(self, x):
            return self.out(self.mid(self.mid(self.inp(x)).relu()))

    found = channels(Twice())
    assert found.sizes == {"inp": 4}
    assert found.axes["mid.weight"] == (Axis(0, "inp"), Axis(1, "inp"))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.three(self.two(self.one(x)))

    # one's input is the network's: so is two's, and so are the units of one.
    found = channels(Tied())
    assert found.axes["one.weight"] == found.axes["two.weight"]


def test_inputs_outputs_and_what_they_are_added_to_stay():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x):
            return {"out": (x + self.outer(self.inner(x).relu())).tanh()}

    found = channels(Around())
    assert found.sizes == {"inner": 6}
    assert found.axes["outer.weight"] == (Axis(1, "inner"),)
    assert found.axes["outer.bias"] == ()
    model = nn.Linear(3, 2)
    a, b = random_state(model, 0), random_state(model, 1)
    alone = align(model, a, b)
    assert alone.permutations == {}
    assert alone.distance_after == alone.distance_before == sf.distance(a, b).l2


# ---- what cannot be followed


class Odd(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between, module=None):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
        self.d = nn.Conv2d(4, 2, 1)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.module = module or nn.Identity()
        self.between = between

    def forward(self, x):
        return self.between(self, x)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (
            lambda s, x: s.d(torch.cat([s.a(x), s.b(x)], 1)),
            r"through cat \(node 'cat'\).*supported are",
        ),
        (lambda s, x: s.a(x) * s.gain, "through mul .*a parameter outside a layer"),
        (lambda s, x: s.c(s.a(x).view(-1, 4).relu()), "through view .*not known"),
        (lambda s, x: s.c(s.a(x).flatten().relu()), "through flatten .*not known"),
        (lambda s, x: s.d(1 + s.a(x).transpose(1, 2)), "through transpose"),
        (lambda s, x: s.a(x) + s.b(x).flatten(1), "through add .*along different dimensions"),
        (lambda s, x: s.c(s.a(x)), "through Linear 'c' .*dimension of a linear"),
        (lambda s, x: s.a(s.c(s.a(x).flatten(1))), "through Linear 'c'|dimension of a conv"),
        (lambda s, x: functional.conv2d(x, s.gain[None]), "through .*which units its weights make"),
        (lambda s, x: s.a(x) if x.sum() > 0 else s.b(x), "Odd cannot be traced by torch.fx"),
        (lambda s, x: s.a(x) + s.module(x), "through Conv2d 'module' .*groups=2"),
    ],
)
def test_operations_that_cannot_be_followed(between, message):
    with pytest.raises(MeasureError, match=message):
        channels(Odd(between, nn.Conv2d(2, 4, 3, groups=2)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "through LayerNorm '1'"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)), "takes 5 features and gets 4 units"),
        (
            nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2)),
            "Embedding '0' .*which units",
        ),
        (nn.Sequential(nn.Linear(3, 4), nn.MaxPool2d(2)), "dimension of a pool"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)),
            "its weight is computed, not a parameter",
        ),
    ],
)
def test_modules_that_cannot_be_followed(model, message):
    with pytest.raises(MeasureError, match=message):
        channels(model)


def test_a_sum_of_different_widths():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 1), nn.Linear(2, 3)

        def forward(self, x):
            return self.a(x) + self.b(x)

    with pytest.raises(MeasureError, match="1 units meet 3"):
        channels(Wide())


@pytest.mark.parametrize(("label", "value"), [("a", float("nan")), ("b", float("-inf"))])
def test_states_that_are_not_finite(label, value):
    model = mlp([4])
    states = {n: dict(random_state(model, 0)) for n in "ab"}
    states[label]["3.bias"] = torch.full((10,), value)
    with pytest.raises(MeasureError, match=f"'3.bias' of {label} holds .*: 10 of 10, .* {value}"):
        align(model, states["a"], states["b"])


def test_alignment_refuses():
    model = mlp((4, 3))
    a, b = random_state(model, 0), random_state(model, 1)
    other = random_state(mlp((5, 3)), 1)
    with pytest.raises(MeasureError, match=r"'1.weight' has shape \(5, 784\) in b and \(4, 784\)"):
        align(model, a, other)
    with pytest.raises(MeasureError, match="starts=0"):
        align(model, a, b, starts=0)
    found = align(model, a, b)
    with pytest.raises(MeasureError, match="'x' names no parameter"):
        found.apply({"x": torch.ones(1)})
    with pytest.raises(
        MeasureError, match=r"'3.weight' has shape \(2, 2\); its axis 0 must have 3"
    ):
        found.apply({"3.weight": torch.ones(2, 2)})
