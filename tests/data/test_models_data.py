"""Models, MNIST and batches."""

import gzip
import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

import sparseflow as sf
from sparseflow.core.errors import DataError, SpecError
from sparseflow.data import Batches, Examples, load_mnist
from sparseflow.data.mnist import FOLDER, _read
from sparseflow.models import (
    LENET5_WIDTHS,
    MLP_WIDTHS,
    MODELS,
    build,
    lenet5,
    mlp,
    parameters,
    solve_widths,
)
from sparseflow.models.resnet import BasicBlock

# ---- models


@pytest.mark.parametrize(
    ("name", "widths", "weights", "biases"),
    [
        ("lenet5", (), 44_190, 236),
        ("lenet5", (3, 3, 27, 20), 2_336, 63),
        ("mlp", (), 266_200, 410),
        ("mlp", (8, 8), 6_416, 26),
    ],
)
def test_parameter_counts_on_mnist(name, widths, weights, biases):
    model = build(name, widths)
    assert sum(layer.size for layer in sf.maskable(model).values()) == weights
    assert parameters(model) == weights + biases
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    zero = [p for n, p in model.named_parameters() if n.endswith("bias")]
    assert not any(b.any() for b in zero)


@pytest.mark.parametrize(
    ("name", "count", "kernels"),
    [
        ("resnet20", 269_722, 268_336),  # He et al. 2016: 0.27 M, 0.85 M
        ("resnet56", 853_018, 848_944),
        ("wrn22-2", 1_079_642, 1_076_912),
        ("resnet50", 25_557_032, 25_502_912),
        ("vgg16", 138_357_544, 138_344_128),
    ],
)
def test_parameter_counts_of_the_literature(name, count, kernels):
    with torch.device("meta"):
        model = build(name)
    assert parameters(model) == count
    assert sum(layer.size for layer in sf.maskable(model).values()) == kernels


SMALL = {
    "resnet20": (4, 8, 16),
    "resnet56": (2, 4, 4),
    "wrn22-2": (4, 4, 8, 8),
    "resnet50": (4, 4, 8, 8),
    "vgg16": (4, 4, 8, 8, 8, 16, 16),
}


@pytest.mark.parametrize("name", [n for n in SMALL if n != "resnet56"])
def test_residual_networks_and_vgg_can_be_executed_sparse(name):
    model = build(name, SMALL[name]).eval()
    masks = sf.make_masks(sf.maskable(model), 0.3)
    masks.apply(model)
    x = torch.randn(3, 3, 32, 32)
    sparse = sf.to_sparse(model, masks, x, force=True)
    assert sparse(x).shape == (3, 1000 if MODELS[name].data == "imagenet" else 10)
    torch.testing.assert_close(sparse(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_no_network_depends_on_what_pytorch_draws_for_biases(name):
    zero = [p for n, p in build(name, SMALL[name]).named_parameters() if n.endswith("bias")]
    assert zero
    assert not any(p.any() for p in zero)


def test_the_shortcut_of_he_et_al_has_no_parameters():
    block = BasicBlock(2, 5, 2).eval()
    x = torch.randn(1, 2, 6, 6)
    conv = torch.nn.functional.conv2d
    inner = conv(x, block.first.weight, stride=2, padding=1) / math.sqrt(1 + 1e-5)
    inner = conv(inner.relu(), block.second.weight, padding=1) / math.sqrt(1 + 1e-5)
    inner[:, :2] += x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), inner.relu())


def test_parameters_counts_trainable_ones():
    model = mlp()
    model[1].weight.requires_grad_(False)
    assert parameters(model) == 266_610 - 235_200


def test_lenet5_by_hand():
    """Two valid convolutions, each with ReLU and a max-pool of 2, then three dense layers."""
    model = lenet5()
    c1, c2, f1, f2, f3 = (m for m in model if list(m.parameters()))
    x = torch.rand(3, 1, 28, 28)
    h = torch.max_pool2d(torch.conv2d(x, c1.weight, c1.bias).relu(), 2)
    h = torch.max_pool2d(torch.conv2d(h, c2.weight, c2.bias).relu(), 2).flatten(1)
    h = (h @ f1.weight.T + f1.bias).relu()
    h = (h @ f2.weight.T + f2.bias).relu()
    torch.testing.assert_close(model(x), h @ f3.weight.T + f3.bias)


@pytest.mark.parametrize(
    ("builder", "widths", "budget"),
    [(lenet5, LENET5_WIDTHS, 2_446), (lenet5, LENET5_WIDTHS, 10_000), (mlp, MLP_WIDTHS, 5_734)],
)
def test_solved_widths_meet_the_budget(builder, widths, budget):
    solved = solve_widths(builder, widths, budget)
    count = parameters(builder(solved))
    assert len(solved) == len(widths)
    assert abs(count / budget - 1) < 0.12
    for neighbour in (tuple(w + 1 for w in solved), tuple(max(1, w - 1) for w in solved)):
        assert abs(parameters(builder(neighbour)) - budget) >= abs(count - budget)


def test_solved_widths_of_the_whole_budget_are_the_widths_themselves():
    assert solve_widths(lenet5, LENET5_WIDTHS, 44_426) == LENET5_WIDTHS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build("lenet"), "did you mean 'lenet5'"),
        (lambda: build("lenet5", (1, 2)), r"widths \[1, 2\] do not fit lenet5"),
        (lambda: build("mlp", (0, 2)), "2 positive"),
        (lambda: solve_widths(mlp, MLP_WIDTHS, 100), "no widths fit 100 parameters"),
    ],
)
def test_impossible_models(make, message):
    with pytest.raises(SpecError, match=message):
        make()


# ---- MNIST


def test_mnist():
    data = load_mnist()
    (train_x, train_y), (test_x, test_y) = data.train[:], data.test[:]
    assert train_x.shape == (60_000, 1, 28, 28)
    assert test_x.shape == (10_000, 1, 28, 28)
    for x in (train_x, test_x):
        assert x.dtype == torch.float32
        assert (float(x.min()), float(x.max())) == (0, 1)
    for y in (train_y, test_y):
        assert y.dtype == torch.int64
        assert y.unique().tolist() == list(range(10))
    assert train_y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test_y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert test_y.bincount().tolist()[1] == 1135  # a dead network says 1: 11.35 %
    assert float(train_x.mean()) == pytest.approx(0.13066, abs=1e-4)
    assert float(train_x.square().mean()) == pytest.approx(0.11200, abs=1e-4)
    assert torch.equal(data.to("cpu").first(7).train[:][1], train_y[:7])


LABELS = "train-labels-idx1-ubyte"


def flip(content: bytes) -> bytes:
    return content[:2000] + bytes([content[2000] ^ 1]) + content[2001:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[: len(b) // 2], "is damaged"),
        (lambda b: b"", "is damaged|not the canonical"),
        (lambda b: b"not gzip at all", "is damaged"),
        (flip, "is damaged|not the canonical"),
        (lambda b: gzip.compress(flip(gzip.decompress(b))), "not the canonical one: SHA-256"),
        (lambda b: gzip.compress(gzip.decompress(b)[:-1]), "not the canonical one: SHA-256"),
    ],
    ids=["half", "empty", "foreign", "bit in gzip", "bit in data", "byte short"],
)
def test_damaged_file(tmp_path, damage, message):
    path = tmp_path / f"{LABELS}.gz"
    path.write_bytes(damage((FOLDER / path.name).read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        _read(tmp_path, LABELS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("last", ["missing", "damaged"])
def test_mnist_with_one_bad_file(tmp_path, last):
    """All four files are looked at, the last one too."""
    bad = tmp_path / "t10k-labels-idx1-ubyte.gz"
    for file in FOLDER.glob("*.gz"):
        if file.name != bad.name:
            (tmp_path / file.name).symlink_to(file)
    if last == "damaged":
        bad.write_bytes((FOLDER / bad.name).read_bytes()[:100])
    with pytest.raises(DataError, match=f"{bad} is {last}"):
        load_mnist(tmp_path)


# ---- batches


def batches(n=10, size=4, seed=0, **kwargs):
    x = torch.arange(n)
    return Batches(Examples(x, -x), size=size, seed=seed, **kwargs)


@options(max_examples=40)
@given(n=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_each_epoch_is_a_permutation(n, share, seed):
    size = max(1, round(share * n))
    stream = batches(n, size, seed)
    steps = 3 * n
    flat = torch.cat([stream[t][0] for t in range(steps)])
    assert len(flat) == steps * size
    for epoch in flat.split(n)[:-1]:
        assert epoch.sort().values.tolist() == list(range(n))


def test_targets_go_with_inputs_and_none_is_short():
    stream = batches()
    for t in range(20):
        x, y = stream[t]
        assert len(x) == 4
        assert torch.equal(x, -y)


def test_batches_are_resumable_in_any_order():
    stream = batches()
    forward = [stream[t][0].tolist() for t in range(30)]
    assert [batches()[t][0].tolist() for t in range(17, 30)] == forward[17:]
    assert [stream[t][0].tolist() for t in reversed(range(30))] == forward[::-1]


def test_a_batch_across_the_end_of_an_epoch():
    whole = batches(size=10)
    third = batches()[2][0].tolist()
    assert third == whole[0][0][8:].tolist() + whole[1][0][:2].tolist()


def test_orders_differ_by_seed_epoch_and_stream():
    orders = [
        batches(100, 100, seed=0)[0][0],
        batches(100, 100, seed=1)[0][0],
        batches(100, 100, seed=0)[1][0],
        batches(100, 100, seed=0, stream=("other",))[0][0],
    ]
    assert len({tuple(o.tolist()) for o in orders}) == 4


@pytest.mark.parametrize("size", [0, 11])
def test_impossible_batch_sizes(size):
    with pytest.raises(ValueError, match=f"batch size {size} is not between 1 and the 10"):
        batches(size=size)
