"""Training: the loop, rates and optimisers, checkpoints."""

import math

import pytest
import torch
from helpers.scatter import scattered
from helpers.small import assert_same, batch, loss, network, snapshot
from safetensors.torch import save_file
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import DivergedError, SpecError, StoreError
from sparseflow.core.files import write_atomic
from sparseflow.train import (
    constant_rate,
    cosine_rate,
    evaluate,
    make_optimizer,
    set_rate,
    step_rate,
    with_warmup,
)
from sparseflow.train.checkpoint import load_resume, load_state, save_resume, save_weights

DATA = {step: batch(step) for step in range(40)}

# ---- the loop


def train(model, optimizer, **options):
    sf.fit(model, loss, DATA, optimizer, **{"steps": 10, **options})


def test_fit_is_the_loop_that_one_would_write():
    model, plain = network(), network()
    optimizer, plain_optimizer = (
        torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, plain)
    )
    rate = cosine_rate(0.1, 10)
    train(model, optimizer, set_rate=lambda step: set_rate(optimizer, rate, step))
    for step in range(10):
        plain_optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / 10))
        plain_optimizer.zero_grad()
        loss(plain, DATA[step]).backward()
        plain_optimizer.step()
    assert_same(snapshot(model, optimizer), snapshot(plain, plain_optimizer))


def test_same_seed_same_weights_bit_for_bit():
    def run(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 10), nn.Dropout(0.3), nn.Linear(10, 3))
        masks = sf.sparsify(model, density=0.5, pattern="constant_fan_in", seed=seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        sf.attach(model, optimizer, masks, sf.RigL(sf.every(2)), seed=seed)
        train(model, optimizer)
        return snapshot(model, optimizer)

    assert_same(run(4), run(4))
    assert not torch.equal(run(4)["0.weight"][0], run(5)["0.weight"][0])


def test_fit_in_two_parts_is_fit_in_one():
    whole, parts = network(), network()
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (whole, parts))
    train(whole, optimizer)
    train(parts, other, steps=4)
    train(parts, other, start=4)
    assert_same(snapshot(whole, optimizer), snapshot(parts, other))


def test_observers_and_rates_are_called_with_the_steps_taken():
    seen, rates = [], []
    model = network().eval()
    train(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        steps=5,
        start=2,
        observers=[seen.append, lambda step: seen.append(-step)],
        set_rate=rates.append,
    )
    assert seen == [2, -2, 3, -3, 4, -4, 5, -5]
    assert rates == [2, 3, 4]
    assert model.training


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(bad):
    model, good = network(), network()
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, good))
    x, y = DATA[6]
    data = {**DATA, 6: (x, y * bad)}
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step 6: training stopped"):
        sf.fit(model, loss, data, optimizer, steps=10)
    train(good, other, steps=6)
    assert_same(snapshot(model, optimizer), snapshot(good, other))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_evaluate(size):
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 3)).train()
    x, y = torch.randn(30, 4), torch.randint(3, (30,))
    batches = zip(x.split(size), y.split(size), strict=True)
    accuracy, value = evaluate(model, batches)
    logits = model[1](x).detach().double()
    assert accuracy == pytest.approx(100 * float((logits.argmax(1) == y).double().mean()))
    picked = logits.log_softmax(1)[torch.arange(30), y]
    assert value == pytest.approx(-float(picked.mean()), rel=1e-5)
    assert model.training


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_with_smoothed_labels_in_closed_form(smoothing):
    """Targets are (1 - s) at the class and s/C everywhere."""
    model, x = nn.Linear(4, 3).double(), torch.randn(7, 4, dtype=torch.float64)
    y = torch.arange(7) % 3
    logs = model(x).log_softmax(1)
    targets = (1 - smoothing) * torch.eye(3)[y] + smoothing / 3
    found = sf.cross_entropy(model, (x, y), label_smoothing=smoothing)
    torch.testing.assert_close(found, -(targets * logs).sum(1).mean(), check_dtype=False)


# ---- rates


def test_rates_in_closed_form():
    assert [constant_rate(0.3)(s) for s in (0, 10**6)] == [0.3, 0.3]
    cosine = cosine_rate(0.4, 100)
    assert [cosine(s) for s in (0, 25, 50, 100, 200)] == pytest.approx(
        [0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0, 0]
    )
    steps = step_rate(1.0, [10, 20], 0.5)
    assert [steps(s) for s in (0, 9, 10, 19, 20, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    warm = with_warmup(constant_rate(0.8), 4)
    assert [warm(s) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert with_warmup(cosine, 0)(50) == cosine(50)
    assert with_warmup(cosine, 50)(24) == pytest.approx(cosine(24) / 2)


@pytest.mark.parametrize(
    "rate", [cosine_rate(0.05, 40), step_rate(0.1, [7, 20]), with_warmup(constant_rate(0.1), 9)]
)
def test_momentum_with_the_rate_inside_the_velocity(rate):
    """Keras: v <- m v - lr g, w <- w + v, with the decay in g; written out here."""
    model = network(torch.float64)
    optimizer = make_optimizer("sgd", model, 0.05, momentum=0.9, weight_decay=0.01)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    velocity = {n: torch.zeros_like(w) for n, w in weights.items()}
    data = {step: batch(step, torch.float64) for step in range(40)}
    sf.fit(
        model,
        loss,
        data,
        optimizer,
        steps=40,
        set_rate=lambda step: set_rate(optimizer, rate, step, inner_momentum=0.9),
    )
    for step in range(40):
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
        value = torch.func.functional_call(network(torch.float64), leaves, (data[step][0],))
        grads = torch.autograd.grad((value - data[step][1]).square().mean(), list(leaves.values()))
        for (name, w), g in zip(weights.items(), grads, strict=True):
            decayed = g + 0.01 * w if w.ndim > 1 else g
            velocity[name] = 0.9 * velocity[name] - rate(step) * decayed
            weights[name] = w + velocity[name]
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name], rtol=1e-10, atol=1e-13)


def test_a_rate_of_zero_has_no_momentum_to_match():
    optimizer = make_optimizer("sgd", network(), 0.1, momentum=0.9)
    set_rate(optimizer, constant_rate(0.0), 3, inner_momentum=0.9)
    assert {(g["lr"], g["momentum"]) for g in optimizer.param_groups} == {(0.0, 0.0)}


# ---- optimisers


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "adagrad", "rmsprop"])
def test_decay_acts_on_kernels_only(kind):
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    optimizer = make_optimizer(kind, model, 0.1, weight_decay=0.5)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    names = {n: decays[id(p)] for n, p in model.named_parameters() if id(p) in decays}
    assert names == {
        "0.weight": 0.5,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.5,
    }
    assert all(g["lr"] == g["initial_lr"] == 0.1 for g in optimizer.param_groups)


def test_values_of_sparse_layers_decay_as_kernels():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    model = scattered(model, sf.Masks({"0.weight": torch.ones(4, 6) > 0}))
    kernels, others = make_optimizer("adam", model, 0.1, weight_decay=0.5).param_groups
    assert [id(p) for p in kernels["params"]] == [id(model[0].values), id(model[2].weight)]
    assert [id(p) for p in others["params"]] == [id(model[0].bias), id(model[2].bias)]


def test_drop_fraction_is_relative_to_the_peak_and_not_to_the_warm_up():
    model = network()
    optimizer = make_optimizer("sgd", model, 0.2)
    set_rate(optimizer, with_warmup(constant_rate(0.2), 4), 0)
    masks = sf.make_masks(sf.maskable(model), 0.5)
    assert sf.attach(model, optimizer, masks, sf.Static()).moment.lr_ratio == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("kind", "momentum", "message"),
    [("sdg", 0.0, "did you mean 'sgd'"), ("adam", 0.9, "adam has no momentum=0.9")],
)
def test_impossible_optimizers(kind, momentum, message):
    with pytest.raises(SpecError, match=message):
        make_optimizer(kind, network(), 0.1, momentum=momentum)


# ---- checkpoints


def objects(kind, momentum):
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Linear(10, 3))
    optimizer = make_optimizer(kind, model, 0.05, momentum=momentum, weight_decay=0.01)
    masks = sf.make_masks(sf.maskable(model), 0.3)
    method = sf.SET(sf.every(3), sf.lr_proportional(0.5))
    return model, optimizer, sf.attach(model, optimizer, masks, method)


@pytest.mark.parametrize(
    ("kind", "momentum"),
    [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0), ("adagrad", 0.0), ("rmsprop", 0.5)],
)
def test_resumed_training_ends_the_same_bit_for_bit(tmp_path, kind, momentum):
    path = tmp_path / "deep" / "resume.safetensors"
    rate = cosine_rate(0.05, 20)

    def go(model, optimizer, start, steps):
        train(
            model,
            optimizer,
            start=start,
            steps=steps,
            set_rate=lambda step: set_rate(optimizer, rate, step),
        )

    model, optimizer, topology = objects(kind, momentum)
    go(model, optimizer, 0, 7)
    save_resume(path, model, optimizer, topology, "run", {"step": 7, "nested": [1.5, None]})
    go(model, optimizer, 7, 20)
    other, other_optimizer, other_topology = objects(kind, momentum)
    extra = load_resume(path, other, other_optimizer, other_topology, "run")
    assert extra == {"step": 7, "nested": [1.5, None]}
    go(other, other_optimizer, 7, 20)
    assert_same(snapshot(model, optimizer), snapshot(other, other_optimizer))
    assert topology.masks.digest() == other_topology.masks.digest()
    assert (topology.step, topology.updates) == (other_topology.step, other_topology.updates)
    buffers = dict(other.named_buffers())
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())


def test_weights_and_masks_roundtrip(tmp_path):
    model, _, topology = objects("sgd", 0.0)
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, topology.masks, "abc", 3)
    weights, masks = load_state(path, "abc").dense()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in weights.items())
    assert masks.digest() == topology.masks.digest()
    assert list(tmp_path.iterdir()) == [path]


def damaged(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) - 50])
    elif how == "cut in the header":
        path.write_bytes(content[:40])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("these are no tensors\n" * 20)
    elif how == "foreign":
        save_file({"weights/x": torch.ones(2)}, path)
    elif how == "missing":
        path.unlink()


@pytest.mark.parametrize(
    ("how", "run", "message"),
    [
        ("truncated", "abc", "cannot be read"),
        ("cut in the header", "abc", "cannot be read"),
        ("empty", "abc", "cannot be read"),
        ("text", "abc", "cannot be read"),
        ("foreign", "abc", "not written by sparseflow"),
        ("missing", "abc", "is missing"),
        ("whole", "xyz", "belongs to run abc, not to xyz"),
    ],
)
def test_checkpoints_that_cannot_be_used(tmp_path, how, run, message):
    model, optimizer, topology = objects("sgd", 0.9)
    path = tmp_path / "c.safetensors"
    save_resume(path, model, optimizer, topology, "abc", {})
    damaged(path, how)
    before = snapshot(model, optimizer)
    for load in (
        lambda: load_state(path, run),
        lambda: load_resume(path, model, optimizer, topology, run),
    ):
        with pytest.raises(StoreError, match=message) as caught:
            load()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert_same(snapshot(model, optimizer), before)


def test_a_checkpoint_of_weights_alone_cannot_be_resumed(tmp_path):
    model, optimizer, topology = objects("sgd", 0.9)
    path = tmp_path / "c.safetensors"
    save_weights(path, model, topology.masks, "abc", 3)
    with pytest.raises(StoreError, match="holds no optimiser state"):
        load_resume(path, model, optimizer, topology, "abc")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, "old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        write_atomic(tmp_path / "folder", "new")
    with pytest.raises(StoreError, match="cannot write"):
        write_atomic(path / "below", "new")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
