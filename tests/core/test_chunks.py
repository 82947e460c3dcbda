"""Batches in chunks: the loss of the whole, or a refusal."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import sparseflow as sf
from sparseflow.core.batches import batch_size, batches, split, spread
from sparseflow.core.chunks import Chunks, parts_of
from sparseflow.core.errors import MeasureError
from sparseflow.core.functional import logits_of, scalar

DOUBLE = torch.float64
CLASSES = torch.tensor([10.0, 1, 1, 1, 0.1], dtype=DOUBLE)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Linear(12, 5).double()


def examples(count=600):
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(count, 12, generator=stream, dtype=DOUBLE)
    return x, torch.randint(0, 5, (count,), generator=stream)


def padded(first=300):
    x, y = examples()
    y[first:] = -100
    return x, y


def sparsely_padded():
    x, y = examples()
    y[torch.rand(600, generator=torch.Generator().manual_seed(1)) < 0.05] = -100
    return x, y


def plain(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def weighted(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], weight=CLASSES)


def total(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def root(model, batch):
    return plain(model, batch).sqrt()


def penalised(model, batch):
    return plain(model, batch) + 0.1 * model.weight.square().sum()


def contrast(model, batch):
    z = functional.normalize(model(batch[0]))
    return functional.cross_entropy(z @ z.T, torch.arange(len(z)))


WHOLE = [
    ("half of the labels ignored", plain, padded),
    ("one label in twenty ignored", plain, sparsely_padded),
    ("all labels but the first ignored", plain, lambda: padded(1)),
    ("class weights", weighted, examples),
    ("a sum", total, examples),
    ("the root of a mean", root, examples),
    ("examples compared with each other", contrast, examples),
]


@pytest.mark.parametrize(("loss", "make"), [w[1:] for w in WHOLE], ids=[w[0] for w in WHOLE])
def test_losses_that_are_no_mean_over_examples(net, loss, make):
    """By default the value of the whole batch; in chunks that were asked for a refusal."""
    batch = make()
    expected = loss(net, batch)
    slopes = torch.autograd.grad(expected, list(net.parameters()))
    norm = float(torch.cat([g.flatten() for g in slopes]).norm())
    for chunk in (None, 600, 10_000):
        flow = sf.gradient_flow(net, loss, batch, chunk=chunk)
        assert (flow.loss, flow.total) == pytest.approx((float(expected.detach()), norm), rel=1e-12)
    state, full = net.state_dict(), sf.full_masks(sf.maskable(net))
    measures = {
        "flow": lambda chunk: sf.gradient_flow(net, loss, batch, chunk=chunk).loss,
        "hessian": lambda chunk: sf.hessian(net, loss, batch, chunk=chunk).loss,
        "path": lambda chunk: sf.interpolate(
            net, state, state, loss, batch, 3, span=(0.0, 1.0), chunk=chunk
        ).losses[0],
    }
    for measure in measures.values():
        assert measure(None) == pytest.approx(float(expected.detach()), rel=1e-12)
        with pytest.raises(MeasureError, match=r"as the mean over chunks|cannot be had"):
            measure(250)
    gain = sf.step_decrease(net, loss, batch, full, 1e-9)
    assert gain.ratio == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("loss", [plain, penalised])
@pytest.mark.parametrize("chunk", [None, 7, 250, Chunks(100)])
def test_means_over_examples_are_cut(net, loss, chunk):
    batch = examples()
    expected = float(loss(net, batch).detach())
    assert sf.gradient_flow(net, loss, batch, chunk=chunk).loss == pytest.approx(expected, 1e-12)
    sizes = [batch_size(part.batch) for part in parts_of(net, loss, batch, chunk)]
    size = Chunks.of(chunk).size or 250
    assert sum(sizes) == 600
    assert max(sizes) <= size
    assert len(sizes) == -(-600 // size)


WEIGHED = {
    "ignored labels": (plain, padded, lambda b: (b[1] != -100).sum()),
    "class weights": (weighted, examples, lambda b: CLASSES[b[1]].sum()),
}


@pytest.mark.parametrize("case", WEIGHED)
@pytest.mark.parametrize("as_loader", [False, True])
def test_declared_weights(net, case, as_loader):
    """Chunks, and batches of a loader, count as the weight says: loss and Hessian of the whole."""
    loss, make, weight = WEIGHED[case]
    batch = make()
    expected = float(loss(net, batch).detach())
    data = DataLoader(TensorDataset(*batch), batch_size=90) if as_loader else batch
    chunks = Chunks(70, weight=weight)
    assert sf.gradient_flow(net, loss, data, chunk=chunks).loss == pytest.approx(expected, 1e-12)
    ours = sf.hessian(net, loss, data, chunk=chunks).dense()
    whole = sf.hessian(net, loss, batch).dense()
    torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-12)


def test_wrong_weights_are_noticed(net):
    with pytest.raises(MeasureError, match=r"to say how much a chunk counts"):
        sf.gradient_flow(net, plain, padded(), chunk=Chunks(90, weight=lambda b: len(b[1])))
    for weight, words in ((lambda b: -1, "weight gives -1.0"), (lambda b: 0, "no example that")):
        with pytest.raises(MeasureError, match=words):
            sf.gradient_flow(net, plain, examples(), chunk=Chunks(weight=weight))


def test_the_weighted_mean_over_given_batches_is_what_was_declared(net):
    """Even of a loss that is no mean over examples, as long as its batches stay whole."""
    batches = [examples(90), examples(40)]
    expected = sum(w * float(root(net, b).detach()) for w, b in zip((1, 3), batches, strict=True))
    by_size = {90: 1.0, 40: 3.0}
    chunks = Chunks(weight=lambda batch: by_size[len(batch[1])])
    flow = sf.gradient_flow(net, root, batches, chunk=chunks)
    assert flow.loss == pytest.approx(expected / 4, rel=1e-12)
    with pytest.raises(MeasureError, match="as the mean over chunks"):
        sf.gradient_flow(net, root, batches)


def test_batches_of_a_loader_count_by_their_examples_if_that_is_right(net):
    batch = examples()
    loader = DataLoader(TensorDataset(*batch), batch_size=256)
    expected = float(plain(net, batch).detach())
    assert sf.gradient_flow(net, plain, loader).loss == pytest.approx(expected, rel=1e-12)
    assert sf.hessian(net, plain, loader).loss == pytest.approx(expected, rel=1e-12)
    with pytest.raises(MeasureError, match="Chunks"):
        sf.gradient_flow(net, plain, DataLoader(TensorDataset(*padded()), batch_size=256))


def test_batches_that_are_time_first():
    """Recurrent layers take [time, batch, features]: cut along the second axis."""
    torch.manual_seed(0)
    net = nn.GRU(4, 3).double()
    x, y = torch.randn(6, 40, 4, dtype=DOUBLE), torch.randn(6, 40, 3, dtype=DOUBLE)

    def loss(model, batch):
        return (model(batch[0])[0] - batch[1]).square().mean()

    expected = float(loss(net, (x, y)).detach())
    for chunk in (None, Chunks(7, axis=1)):
        assert sf.gradient_flow(net, loss, (x, y), chunk=chunk).loss == pytest.approx(expected)
    assert len(parts_of(net, loss, (x, y), Chunks(7, axis=1))) == 6
    with pytest.raises(MeasureError, match="as the mean over chunks"):
        sf.gradient_flow(net, loss, (x, y), chunk=2)  # cuts time
    with pytest.raises(MeasureError, match="axis is -1"):
        Chunks(axis=-1)


def test_tensors_that_are_not_per_example(net):
    """One of another length goes whole into each chunk; one of the same length is noticed."""
    x, y = examples(300)

    def loss(model, batch):
        return functional.cross_entropy(model(batch[0]) * batch[2], batch[1])

    scale = torch.linspace(1, 2, 5, dtype=DOUBLE)
    expected = float(loss(net, (x, y, scale)).detach())
    assert sf.gradient_flow(net, loss, (x, y, scale), chunk=40).loss == pytest.approx(expected)

    graph = torch.rand(300, 300, dtype=DOUBLE).softmax(1)

    def mixing(model, batch):
        return functional.cross_entropy(batch[2] @ model(batch[0]), batch[1])

    expected = float(mixing(net, (x, y, graph)).detach())
    assert sf.gradient_flow(net, mixing, (x, y, graph)).loss == pytest.approx(expected, rel=1e-12)
    with pytest.raises(MeasureError, match="cannot be had from chunks"):
        sf.gradient_flow(net, mixing, (x, y, graph), chunk=100)


def test_dropout_and_batch_norm_in_training_mode_are_cut_as_before():
    """They draw, or mix a chunk's examples, whatever the loss is, which is tried without them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))
    net = net.double()
    statistics = net[1].running_mean.clone()
    batch = examples()
    assert [batch_size(p.batch) for p in parts_of(net, plain, batch)] == [200, 200, 200]
    assert all(module.training for module in net.modules())
    assert torch.equal(net[1].running_mean, statistics)
    stream = torch.random.get_rng_state()
    sf.gradient_flow(net, plain, batch)
    assert torch.equal(torch.random.get_rng_state(), stream)


def test_a_loss_that_is_not_finite_is_measured_and_not_blamed_on_chunks(net):
    with torch.no_grad():
        net.weight.fill_(float("nan"))
    assert sf.gradient_flow(net, plain, examples(), chunk=100).loss != 0.0
    assert len(parts_of(net, plain, examples(), 100)) == 6


def test_a_data_set_is_not_a_batch(net):
    with pytest.raises(MeasureError, match="TensorDataset, not a batch: pass one batch, or a Data"):
        sf.gradient_flow(net, plain, TensorDataset(*examples()))
    with pytest.raises(MeasureError, match="with an axis 1"):
        batch_size(torch.ones(3), axis=1)


def test_spread_takes_the_ends_and_what_lies_between():
    x = torch.arange(100)
    assert spread((x, x[:3]), 5)[0].tolist() == [0, 24, 49, 74, 99]
    assert spread((x, x[:3]), 5)[1].tolist() == [0, 1, 2]


def test_mappings_of_tokenizers_keep_their_type():
    transformers = pytest.importorskip("transformers")
    encoding = transformers.BatchEncoding({"input_ids": torch.arange(8).reshape(4, 2), "n": 3})
    first, second = split(encoding, 3)
    assert type(first) is type(second) is transformers.BatchEncoding
    assert first.input_ids.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert second["input_ids"].tolist() == [[6, 7]]
    assert second["n"] == 3
    assert encoding.input_ids.shape == (4, 2)
    assert batches(encoding) == [encoding]


def test_what_a_loss_returns():
    assert scalar(torch.ones(1, 1)).shape == ()
    holder = type("Output", (), {"loss": 1})()
    for value, words in (
        (torch.ones(2), r"shape \(2,\)"),
        (1.0, "float"),
        (holder, "take its .lo"),
    ):
        with pytest.raises(MeasureError, match=words):
            scalar(value)
    x = torch.ones(2)
    assert logits_of({"logits": x}) is x
    assert logits_of(type("Output", (), {"logits": x})()) is x


@pytest.mark.parametrize(
    ("case", "value", "norm"), [("ignored", 1.8106, 0.3561), ("weighted", 1.7955, 0.7593)]
)
def test_values_of_a_published_case(case, value, norm):
    """600 examples, once with half of the labels ignored and once with class weights."""
    torch.manual_seed(0)
    net = nn.Linear(12, 5)
    x, y = torch.randn(600, 12), torch.randint(0, 5, (600,))
    if case == "ignored":
        y[300:] = -100
    weight = CLASSES.float() if case == "weighted" else None

    def measured(model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1], weight=weight)

    flow = sf.gradient_flow(net, measured, (x, y))
    assert (flow.loss, flow.total) == pytest.approx((value, norm), abs=1e-4)
