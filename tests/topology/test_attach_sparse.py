"""Attach on truly sparse layers: what masked dense execution does, by the non-zeros alone."""

import copy
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.scatter import connections, scattered
from helpers.small import batch, loss, network
from torch import nn

import sparseflow as sf
from sparseflow.core.chunks import parts_of
from sparseflow.core.errors import MaskError, TopologyError
from sparseflow.core.functional import gradient
from sparseflow.topology import view

DOUBLE = torch.float64

OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, amsgrad=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, foreach=True),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05),
}

EACH = sf.every(1)
HALF = sf.constant(0.5)
METHODS = {
    "static": lambda m: sf.Static(),
    "set": lambda m: sf.SET(EACH, HALF),
    "rigl": lambda m: sf.RigL(EACH, HALF),
    "rigl probe": lambda m: sf.RigL(EACH, HALF, sf.probe_gradient(m, loss, batch(99, DOUBLE), 5)),
    "rigl inverted": lambda m: sf.RigLInverted(EACH, HALF),
    "pruning": lambda m: sf.GradualPruning({"0.weight": 0.1, "2.weight": 0.0}, 1, 20, 1),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of the first layer at a time, and one of the second."""
    monkeypatch.setattr(view, "BLOCK", 13)


def pair(make, method, density=0.4, seed=3, **options):
    """One network in both executions: model, optimiser and topology of each."""
    dense = network(DOUBLE)
    masks = sf.sparsify(dense, density=density, init=None)
    found = []
    for model in (dense, scattered(dense, masks)):
        optimizer = make(model)
        topology = sf.attach(model, optimizer, masks, method(model), seed=seed, **options)
        found.append((model, optimizer, topology))
    return found


def advance(model, optimizer, steps, *, set_to_none=True):
    for step in steps:
        optimizer.zero_grad(set_to_none=set_to_none)
        value = loss(model, batch(step, DOUBLE))  # alive until the next: so is its graph
        value.backward()
        optimizer.step()


def assert_alike(dense, sparse, *, gradients=True):
    ours, theirs = (connections(m, o, t.masks) for m, o, t in (dense, sparse))
    assert dense[2].masks == sparse[2].masks
    assert list(ours) == list(theirs)
    for name, tensors in ours.items():
        assert list(tensors) == list(theirs[name])
        for key, tensor in tensors.items():
            if gradients or key != "gradient":
                found = theirs[name][key]
                torch.testing.assert_close(
                    found, tensor, rtol=1e-9, atol=1e-13, msg=f"{name} {key}"
                )


# ---- the matrix


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("way", METHODS)
def test_sparse_is_masked_dense(way, kind):
    """Over 20 updates: the same masks, weights, gradients and state, connection by connection."""
    density = 1.0 if way == "pruning" else 0.4
    dense, sparse = pair(OPTIMIZERS[kind], METHODS[way], density)
    model, optimizer, topology = sparse
    values = [layer.values for layer in (model[0], model[2])]
    before = topology.masks
    for step in range(20):
        for m, o, _ in (dense, sparse):
            advance(m, o, [step])
        assert_alike(dense, sparse)
        for i, parameter in zip((0, 2), values, strict=True):
            layer, indices = model[i], topology.masks.indices(f"{i}.weight")
            assert layer.values is parameter
            assert torch.equal(layer.indices(), indices)
            shapes = {s.shape for s in optimizer.state[parameter].values()}
            assert shapes <= {parameter.shape, torch.Size([])}
            assert parameter.shape == parameter.grad.shape == indices.shape
    assert topology.step == 20
    assert topology.updates == dense[2].updates == (0 if way == "static" else 20)
    if way != "rigl inverted":
        assert (topology.masks == before) == (way == "static")
    if way == "pruning":
        assert topology.masks.counts == {"0.weight": 6, "2.weight": 0}


@pytest.mark.parametrize("way", ["set", "rigl"])
def test_one_block_or_many_are_the_same(way, monkeypatch):
    (_, _, topology) = many = pair(OPTIMIZERS["sgd"], METHODS[way])[1]
    advance(*many[:2], range(6))
    monkeypatch.setattr(view, "BLOCK", 1 << 22)
    one = pair(OPTIMIZERS["sgd"], METHODS[way])[1]
    advance(*one[:2], range(6))
    assert topology.masks.digest() == one[2].masks.digest()


def test_dropped_and_grown_at_once_keeps_value_and_state():
    class Back(sf.SET):
        def grow_score(self, view):
            return view.weight.abs() + view.mask

    _, sparse = pair(OPTIMIZERS["adam"], lambda m: Back(EACH, sf.constant(0.9)))
    _, still = pair(OPTIMIZERS["adam"], lambda m: sf.Static())
    for model, optimizer, _ in (sparse, still):
        advance(model, optimizer, range(4))
    assert sparse[2].updates == 4
    assert_alike(sparse, still)


def test_a_method_may_drop_by_gradient_and_sees_the_same_in_both_executions():
    class Saliency(sf.SET):
        growth_gradient = "batch"

        def drop_score(self, view):
            return (view.weight * view.gradient).abs()

        def grow_score(self, view):
            noise = torch.rand(view.mask.shape, generator=view.generator)
            return view.gradient.abs() * (1 + noise) + view.weight.abs() + view.mask

    dense, sparse = pair(OPTIMIZERS["sgd"], lambda m: Saliency(EACH, HALF))
    for step in range(6):
        for model, optimizer, _ in (dense, sparse):
            advance(model, optimizer, [step])
        assert_alike(dense, sparse)


def test_one_layer_sparse_and_one_masked_dense():
    dense, whole = pair(OPTIMIZERS["adam"], METHODS["rigl"])
    mixed = nn.Sequential(network(DOUBLE)[0], nn.Tanh(), whole[0][2])
    sf.Masks({"0.weight": whole[2].masks["0.weight"]}).apply(mixed)
    whole[2].detach()
    optimizer = OPTIMIZERS["adam"](mixed)
    method = METHODS["rigl"](mixed)
    topology = sf.attach(mixed, optimizer, whole[2].masks, method, seed=3)
    for step in range(5):
        advance(*dense[:2], [step])
        advance(mixed, optimizer, [step])
    assert_alike(dense, (mixed, optimizer, topology))


# ---- loops


@pytest.mark.parametrize("set_to_none", [True, False])
def test_micro_batches_and_passes_that_do_not_count(set_to_none):
    """Two micro-batches; autograd.grad and a measurement between them; without a trace."""
    every_other = lambda m: sf.RigL(sf.every(2), HALF)  # noqa: E731
    dense, sparse = pair(OPTIMIZERS["sgd"], every_other)
    model, optimizer, topology = sparse
    for step in range(8):
        advance(*dense[:2], [step])
        optimizer.zero_grad(set_to_none=set_to_none)
        x, y = batch(step, DOUBLE)
        for data in zip(x.chunk(2), y.chunk(2), strict=True):
            value = loss(model, data) / 2
            torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
            value.backward()
            sf.gradient_flow(model, loss, batch(60, DOUBLE), topology.masks)
            sf.probe_gradient(model, loss, batch(61, DOUBLE))()
        optimizer.step()
        assert_alike(dense, sparse)


def test_a_backward_pass_that_is_thrown_away_does_not_count():
    dense, sparse = pair(OPTIMIZERS["sgd"], METHODS["rigl"])
    for step in range(6):
        advance(*dense[:2], [step])
        (1000 * loss(sparse[0], batch(70 + step, DOUBLE))).backward()
        advance(*sparse[:2], [step])
        assert_alike(dense, sparse)


def test_nothing_is_recorded_but_for_a_step_that_updates():
    model, optimizer, topology = pair(
        OPTIMIZERS["sgd"], lambda m: sf.RigL(sf.every(3, start=3), HALF)
    )[1]
    seen = []
    for step in range(6):
        seen.append(copy.copy(model[0].record))
        advance(model, optimizer, [step])
    assert seen == [None, None, [], None, None, []]
    topology.detach()
    assert model[0].record is None
    assert not model[0].values._backward_hooks
    assert not model[0].values._post_accumulate_grad_hooks


def test_a_layer_that_gets_no_gradient_grows_from_zeros():
    dense, sparse = pair(OPTIMIZERS["sgd"], METHODS["rigl"])
    for model, optimizer, _ in (dense, sparse):
        optimizer.zero_grad()
        model[:1](batch(0, DOUBLE)[0]).square().mean().backward()
        optimizer.step()
    assert sparse[2].updates == 1
    assert dense[2].masks == sparse[2].masks


@pytest.mark.parametrize("where", ["0", "2"])
def test_a_step_that_grad_scaler_skips_leaves_no_trace(where):
    dense, sparse = pair(OPTIMIZERS["sgd"], METHODS["rigl"])
    for step in range(4):
        advance(*dense[:2], [step])
    model, optimizer, _ = sparse
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    for step, broken in [(0, False), (90, True), *((i, False) for i in range(1, 4))]:
        optimizer.zero_grad()
        value = loss(model, batch(step, DOUBLE))
        scaler.scale(value).backward()
        if broken:
            model.get_submodule(where).bias.grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
    assert_alike(dense, sparse, gradients=False)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("source", ["batch", "probe"])
def test_a_growth_gradient_that_is_not_finite_defers_the_update_of_all_layers(source, layer):
    """Infinite in one place of one layer, whose drop fraction may be nothing."""
    model, optimizer, topology = pair(
        OPTIMIZERS["sgd"], METHODS["rigl" if source == "batch" else "rigl probe"]
    )[1]
    broken = model[layer]
    whole = type(broken).weight_gradient
    bad = [True]

    def weight_gradient(rows):
        found = whole(broken, rows)
        return found.index_fill(0, torch.tensor([0]), torch.inf) if bad[0] else found

    broken.weight_gradient = weight_gradient
    before = topology.masks
    advance(model, optimizer, [0])
    assert (topology.step, topology.updates) == (1, 0)
    assert topology.masks is before
    bad[0] = False
    advance(model, optimizer, [1])
    assert (topology.step, topology.updates) == (2, 1)


def test_the_gradient_is_looked_at_also_where_nothing_is_dropped():
    model, optimizer, topology = pair(OPTIMIZERS["sgd"], lambda m: sf.RigL(EACH, sf.constant(0.0)))[
        1
    ]
    model[0].weight_gradient = lambda rows: torch.full((rows.stop - rows.start, 6), torch.nan)
    advance(model, optimizer, [0])
    assert topology.updates == 0


# ---- state, proposals, masks that do not fit


@pytest.mark.parametrize("way", ["set", "rigl", "pruning"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_state_is_saved_and_loaded(way, kind):
    density = 1.0 if way == "pruning" else 0.4
    model, optimizer, topology = whole = pair(OPTIMIZERS[kind], METHODS[way], density)[1]
    advance(model, optimizer, range(4))
    saved = copy.deepcopy([x.state_dict() for x in (model, optimizer, topology)])
    assert {t.dtype for t in saved[2]["masks"].values()} == {torch.int64}
    advance(model, optimizer, range(4, 8))
    other = pair(OPTIMIZERS[kind], METHODS[way], density)[1]
    with pytest.raises(
        MaskError, match=r"'0.weight' has .* connections that the sparse layer lacks"
    ):
        pair(OPTIMIZERS[kind], METHODS["set"], 0.2)[1][2].load_state_dict(saved[2])
    for part, state in zip(other, saved, strict=True):
        part.load_state_dict(state)
    advance(*other[:2], range(4, 8))
    assert_alike(whole, other)
    assert (other[2].step, other[2].updates) == (topology.step, topology.updates)


@pytest.mark.parametrize("way", ["set", "rigl probe", "pruning"])
def test_propose_is_the_update_that_attach_makes(way):
    proposed = []

    @contextmanager
    def around(topology):
        now = topology.masks, topology.moment
        proposed.append(sf.propose(topology.method, model, *now, seed=3))
        yield

    density = 1.0 if way == "pruning" else 0.4
    _, (model, optimizer, topology) = pair(OPTIMIZERS["adam"], METHODS[way], density, around=around)
    advance(model, optimizer, range(2))
    assert len(proposed) == 2
    assert proposed[1] == topology.masks
    assert proposed[0] != proposed[1]


def test_propose_for_fewer_connections_than_a_layer_holds():
    model, _, topology = pair(OPTIMIZERS["sgd"], METHODS["static"])[1]
    some = sf.Masks.from_indices({"0.weight": (topology.masks.indices("0.weight")[::2], (10, 6))})
    dense = network(DOUBLE)
    topology.masks.apply(dense)
    found = [sf.propose(sf.SET(), m, some, sf.Moment(1), seed=1) for m in (model, dense)]
    assert found[0] == found[1]


def test_attach_drops_what_is_off_the_mask_and_refuses_what_is_lacking():
    model, optimizer, topology = pair(OPTIMIZERS["adam"], METHODS["static"])[1]
    advance(model, optimizer, range(2))
    topology.detach()
    held = topology.masks.indices("0.weight")
    before, state = model[0].values.detach().clone(), optimizer.state[model[0].values]
    moments = state["exp_avg"].clone()
    some = sf.Masks.from_indices({"0.weight": (held[1::2], (10, 6))})
    sf.attach(model, optimizer, some, sf.Static()).detach()
    assert torch.equal(model[0].indices(), held[1::2])
    assert torch.equal(model[0].values, before[1::2])
    assert torch.equal(state["exp_avg"], moments[1::2])
    with pytest.raises(MaskError, match="connections that the sparse layer lacks: it holds"):
        sf.attach(model, optimizer, topology.masks, sf.Static())


def test_what_a_layer_cannot_take_changes_nothing():
    class Wrong(sf.SET):
        def update_layer(self, connections):
            return connections.indices.flip(0)

    class Long(sf.SET):
        def grow_score(self, view):
            return view.weight.flatten()

    for method, error, message in [
        (Wrong(EACH), MaskError, r"'0\.weight': positions are not strictly ascending"),
        (Long(EACH, HALF), TopologyError, r"grow_score of 0\.weight has shape \(12,\)"),
    ]:
        model, optimizer, topology = pair(OPTIMIZERS["sgd"], METHODS["static"])[1]
        topology.detach()
        topology = sf.attach(model, optimizer, topology.masks, method)
        with pytest.raises(error, match=message):
            advance(model, optimizer, [0])
        assert torch.equal(model[0].indices(), topology.masks.indices("0.weight"))


# ---- size


def test_no_tensor_of_dense_size_is_made(elsewhere):
    """3,000 × 3,000 at 99.9 %, in blocks of 87 rows: attach, update, save, compare, measure."""
    folder = Path(__file__).parents[1]
    found = elsewhere(
        f"import sys; sys.path.insert(0, {str(folder)!r}); from helpers.large import main; main()"
    )
    sizes = [int(line) for line in found.split()]
    assert len(sizes) == 4
    assert all(4 * 3000 <= entries <= 1 << 18 for entries in sizes)


# ---- measurement


def test_flow_and_decrease_over_the_non_zeros():
    (dense, _, topology), (sparse, *_) = pair(OPTIMIZERS["sgd"], METHODS["static"])
    data, masks = batch(5, DOUBLE), topology.masks
    ours, theirs = (sf.gradient_flow(m, loss, data, masks, chunk=5) for m in (sparse, dense))
    assert list(ours.per_layer) == list(theirs.per_layer)
    assert ours.per_layer == pytest.approx(theirs.per_layer, rel=1e-12)
    for field in ("loss", "total", "kernels", "biases", "effective"):
        assert getattr(ours, field) == pytest.approx(getattr(theirs, field), rel=1e-12)
    assert ours.dense != ours.dense
    assert theirs.dense > theirs.total
    before = sparse[0].values.detach().clone()
    steps = [sf.step_decrease(m, loss, data, masks, lr=0.1, chunk=5) for m in (sparse, dense)]
    assert steps[0].actual == pytest.approx(steps[1].actual, rel=1e-9)
    assert steps[0].predicted == pytest.approx(steps[1].predicted, rel=1e-12)
    assert torch.equal(sparse[0].values, before)
    some = sf.Masks.from_indices({"0.weight": (masks.indices("0.weight")[::3], (10, 6))})
    ours, theirs = (sf.gradient_flow(m, loss, data, some) for m in (sparse, dense))
    assert ours.per_layer["0.weight"] == pytest.approx(theirs.per_layer["0.weight"], rel=1e-12)


def test_gradient_over_the_non_zeros_and_dense_by_rows():
    (dense, _, topology), (sparse, *_) = pair(OPTIMIZERS["sgd"], METHODS["static"])
    data = batch(5, DOUBLE)
    whole = gradient(dense, loss, parts_of(dense, loss, data, 5))[1]
    found = gradient(sparse, loss, parts_of(sparse, loss, data, 4))[1]
    assert list(found) == list(whole)
    by_rows = sf.probe_gradient(sparse, loss, data, chunk=4)()
    for name, mask in topology.masks.items():
        torch.testing.assert_close(found[name], whole[name][mask], rtol=1e-12, atol=1e-15)
        rows = by_rows[name](slice(1, 3))
        torch.testing.assert_close(rows, whole[name][1:3], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(by_rows["0.bias"], whole["0.bias"], rtol=1e-12, atol=1e-15)
    assert sparse[0].record is None
