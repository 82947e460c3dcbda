"""Curvature operators against explicit matrices, and what they refuse."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.errors import MaskError, MeasureError
from sparseflow.measure.linear import _bytes
from sparseflow.measure.operators import gauss_newton, hessian
from sparseflow.measure.products import plain_attention

# torch.func's own forward mode, used for the explicit matrices here
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

DOUBLE = torch.float64
OPERATORS = [hessian, gauss_newton]


class Tied(nn.Module):
    """One weight used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Scaled(nn.Module):
    """Takes keywords, and a parameter without axes; one parameter reaches nothing."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, *, first, second):
        return torch.tanh(self.fc(first)) * self.scale * second


class Attend(nn.Module):
    """A transformer layer, which PyTorch fuses in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).eval()
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.layer(x).mean(1))


def cross_entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def keyword_loss(model, batch):
    found = model(first=batch["in"]["x"], second=batch["in"]["y"])
    return (found - batch["target"]).pow(4).mean() * batch["weight"]


def conv():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    )
    return model, (torch.randn(9, 1, 6, 6), torch.randint(4, (9,))), cross_entropy


def normed():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    model(torch.randn(50, 5) + 1)
    return model.eval(), (torch.randn(9, 5), torch.randint(3, (9,))), cross_entropy


def tied():
    return Tied(), (torch.randn(9, 5), torch.randint(3, (9,))), cross_entropy


def tree():
    x, y = torch.randn(9, 4), torch.randn(9, 3)
    batch = {"in": {"x": x, "y": y}, "target": torch.randn(9, 3), "weight": 1.5}
    return Scaled(), batch, keyword_loss


def attention():
    return Attend(), (torch.randn(9, 3, 4), torch.randint(3, (9,))), cross_entropy


SLOW = pytest.param(attention, marks=pytest.mark.slow)
CASES = [conv, normed, tied, tree, SLOW]


def sparse(case):
    """A model of a case in float64, its masks, its data as unequal batches and as one."""
    torch.manual_seed(3)
    model, batch, loss = case()
    model.to(DOUBLE)
    masks = sf.sparsify(model, density=0.4, init=None)
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.normal_(p, std=0.3)
    batch = cast(batch)
    return model, masks, loss, batch, [part(batch, 0, 2), part(batch, 2, 7), part(batch, 7, 9)]


def cast(tree):
    if isinstance(tree, dict):
        return {k: cast(v) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(cast, tree))
    return tree.double() if torch.is_tensor(tree) and tree.is_floating_point() else tree


def part(tree, start, stop):
    if isinstance(tree, dict):
        return {k: part(v, start, stop) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple(part(v, start, stop) for v in tree)
    return tree[start:stop] if torch.is_tensor(tree) else tree


def flat(model, masks):
    """The trainable parameters as one vector, how to put one back, and its active entries."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    active = [masks[n].flatten() if n in masks else torch.ones(p.numel()) for n, p in named.items()]

    def state(vector):
        parts = vector.split([p.numel() for p in named.values()])
        return {n: v.view(p.shape) for (n, p), v in zip(named.items(), parts, strict=True)}

    return torch.cat([p.flatten() for p in named.values()]), state, torch.cat(active).bool()


def explicit_hessian(model, masks, loss, batch):
    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, batch):
            return loss(self.model, batch)

    vector, state, active = flat(model, masks)

    def value(v):
        return functional_call(Call(), {f"model.{n}": t for n, t in state(v).items()}, (batch,))

    if isinstance(model, Attend):  # torch.func.hessian goes wrong in the layer norm here
        with plain_attention():
            return torch.autograd.functional.hessian(value, vector)[active][:, active]
    return torch.func.hessian(value)(vector)[active][:, active]


def explicit_gauss_newton(model, masks, batch):
    """Cross-entropy: mean over examples of Jᵀ (diag p − ppᵀ) J."""
    vector, state, active = flat(model, masks)
    x, _ = batch
    with plain_attention():
        jacobian = jacrev(lambda v: functional_call(model, state(v), (x,)))(vector)[..., active]
    p = functional_call(model, state(vector), (x,)).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("ian,iab,ibm->nm", jacobian, inner, jacobian) / len(x)


# ---- the operators


def assert_is(expected, make, case, model, loss, masks, batch, parts):
    """The operator's whole matrix, and its products over one batch or several."""
    n = len(expected)
    matrix = make(model, loss, iter(parts), masks, chunk=3)
    assert (matrix.shape, matrix.dtype) == ((n, n), DOUBLE)
    assert matrix.loss == pytest.approx(float(loss(model, batch).detach()), abs=1e-12)
    torch.testing.assert_close(matrix.dense(block=7), expected, rtol=0, atol=1e-10)
    for data in (batch, parts) if case is conv else (batch,):
        product = make(model, loss, data, masks) @ torch.eye(n, dtype=DOUBLE)
        torch.testing.assert_close(product, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_hessian_against_the_explicit_matrix(case):
    model, masks, loss, batch, parts = sparse(case)
    expected = explicit_hessian(model, masks, loss, batch)
    assert expected.abs().max() > 1e-3
    assert_is(expected, hessian, case, model, loss, masks, batch, parts)


@pytest.mark.parametrize("case", [conv, normed, tied, SLOW])
def test_gauss_newton_against_the_jacobian(case):
    model, masks, loss, batch, parts = sparse(case)
    expected = explicit_gauss_newton(model, masks, batch)
    assert float(torch.linalg.eigvalsh(expected)[0]) > -1e-12
    assert_is(expected, gauss_newton, case, model, loss, masks, batch, parts)


def test_gauss_newton_is_the_hessian_of_a_linear_model():
    model, batch = nn.Linear(5, 3).double(), (torch.randn(8, 5).double(), torch.randint(3, (8,)))
    whole, part_of_it = (make(model, cross_entropy, batch).dense() for make in OPERATORS)
    torch.testing.assert_close(whole, part_of_it, rtol=0, atol=1e-12)


def test_gauss_newton_of_any_loss_and_output():
    """A quartic loss on an output with three axes: Jᵀ diag(12 (z − y)² / count) J."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 5, 3).double(), torch.randn(6, 5, 2).double()
    matrix = gauss_newton(model, lambda m, b: (m(b[0]) - b[1]).pow(4).mean(), (x, y), chunk=4)
    vector, state, _ = flat(model, {})
    jacobian = jacrev(lambda v: functional_call(model, state(v), (x,)).flatten())(vector)
    inner = 12 * (model(x) - y).detach().flatten() ** 2 / y.numel()
    torch.testing.assert_close(
        matrix.dense(), jacobian.T @ (inner[:, None] * jacobian), rtol=0, atol=1e-10
    )


def test_frozen_parameters_are_left_out():
    model, masks, loss, batch, _ = sparse(conv)
    model[0].requires_grad_(False)
    matrix = hessian(model, loss, batch, masks)
    assert matrix.names == ("4.weight", "4.bias")
    expected = explicit_hessian(model, masks, loss, batch)
    torch.testing.assert_close(matrix.dense(), expected, rtol=0, atol=1e-10)


def test_a_parameter_without_active_weight_has_no_entry():
    model, masks, loss, batch, _ = sparse(conv)
    empty = sf.Masks({**masks, "0.weight": torch.zeros_like(masks["0.weight"])})
    matrix = hessian(model, loss, batch, empty)
    assert matrix.names == ("0.bias", "4.weight", "4.bias")
    torch.testing.assert_close(matrix.dense(), explicit_hessian(model, empty, loss, batch))


def test_the_loss_may_use_the_parameters_themselves():
    model, masks, _, batch, _ = sparse(tied)

    def decayed(model, batch):
        penalty = sum(p.square().sum() for p in model.parameters())
        return cross_entropy(model, batch) + 0.5 * penalty + model.last.weight.pow(4).sum()

    matrix = hessian(model, decayed, batch, masks)
    expected = explicit_hessian(model, masks, decayed, batch)
    torch.testing.assert_close(matrix.dense(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", OPERATORS)
def test_float64_on_request_and_float32_close_to_it(make):
    model, masks, loss, batch, _ = sparse(normed)
    model.float()
    batch = (batch[0].float(), batch[1])
    exact, rounded = (make(model, loss, batch, masks, dtype=d).dense() for d in (DOUBLE, None))
    assert (exact.dtype, rounded.dtype) == (DOUBLE, torch.float32)
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-6)
    assert not torch.equal(rounded.double(), exact)
    assert next(model.parameters()).dtype == torch.float32
    double = make(model.double(), loss, (batch[0].double(), batch[1]), masks).dense()
    assert torch.equal(double, exact)


def test_the_type_of_a_product():
    torch.manual_seed(0)
    matrix = hessian(nn.Linear(5, 3), cross_entropy, (torch.randn(4, 5), torch.randint(3, (4,))))
    v = torch.randn(18)
    assert (matrix @ v).dtype == torch.float32
    assert (matrix @ v.double()).dtype == DOUBLE
    torch.testing.assert_close(matrix @ v, matrix.dense() @ v)


def test_vectors_and_states_are_inverse():
    model, masks, loss, batch, _ = sparse(conv)
    matrix = hessian(model, loss, batch, masks)
    state = {n: p.detach() for n, p in model.named_parameters()}
    vector = matrix.vector(state)
    active = {n: t * masks[n] if n in masks else t for n, t in state.items()}
    back = matrix.state(vector)
    assert list(back) == list(matrix.names) == list(state)
    assert all(torch.equal(back[n], active[n]) for n in active)
    assert torch.equal(matrix.vector(back), vector)


@pytest.mark.slow
def test_what_is_not_kept_is_computed_again():
    model, masks, loss, batch, _ = sparse(normed)
    kept = hessian(model, loss, batch, masks, chunk=3)
    v = torch.randn(kept.shape[0], 3, dtype=DOUBLE)
    product = kept @ v
    stored = [r for _, r in kept._replay._linearised if r is not None]
    assert len(stored) == 3
    size = _bytes(stored[0], but=kept._replay._inputs(kept._chunks[0]))
    assert size > 0
    for cache, expected in ((2 * size + 1, 2), (size - 1, 0)):
        less = hessian(model, loss, batch, masks, chunk=3, cache=cache)
        assert torch.equal(less @ v, product)
        assert torch.equal(less @ v, product)
        assert sum(r is not None for _, r in less._replay._linearised) == expected


def looks_at_values(model, batch):
    """What it does depends on the numbers in the batch, and not on shapes alone."""
    x, y = batch
    chosen = x[:, 0] > 0
    z = model(x[chosen])
    return functional.cross_entropy(z, y[chosen], reduction="sum") / len(x)


def asks_for_a_number(model, batch):
    x, y = batch
    return functional.cross_entropy(model(x), y) * float(x.square().mean())


@pytest.mark.parametrize("loss", [looks_at_values, asks_for_a_number])
def test_a_loss_that_a_trace_cannot_follow(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(12, 5).double(), torch.randint(3, (12,))
    parts = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 12, 4)]
    assert len({int((a[:, 0] > 0).sum()) for a, _ in parts}) > 1
    matrix = hessian(model, loss, parts, chunk=sf.Chunks(weight=lambda part: len(part[0])))
    expected = sum(explicit_hessian(model, {}, loss, p) for p in parts) / 3
    n = matrix.shape[0]
    torch.testing.assert_close(matrix @ torch.eye(n, dtype=DOUBLE), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(matrix.dense(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", OPERATORS)
def test_nothing_of_the_model_changes(make):
    model, masks, loss, batch, _ = sparse(normed)
    loss(model, batch).backward()
    model[0].train()

    def everything():
        tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
        return [t.detach().clone() for t in tensors]

    before, identity = everything(), [id(t) for t in (*model.parameters(), *model.buffers())]
    flags = [m.training for m in model.modules()]
    stream = torch.get_rng_state()
    matrix = make(model, loss, batch, masks)
    matrix @ torch.ones(matrix.shape[0], 2, dtype=DOUBLE)
    matrix.dense()
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    assert identity == [id(t) for t in (*model.parameters(), *model.buffers())]
    assert flags == [m.training for m in model.modules()]
    assert torch.equal(stream, torch.get_rng_state())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("make", OPERATORS)
def test_an_operator_is_a_snapshot(make):
    model, masks, loss, batch, _ = sparse(normed)
    matrix = make(model, loss, batch, masks)
    before = matrix.dense()
    fresh = make(model, loss, batch, masks)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    assert torch.equal(matrix.dense(), before)
    n = matrix.shape[0]
    torch.testing.assert_close(fresh @ torch.eye(n, dtype=DOUBLE), before)
    assert not torch.allclose(make(model, loss, batch, masks).dense(), before)


def test_attached_hooks_do_not_fire():
    model, masks, loss, batch, _ = sparse(conv)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = sf.attach(model, optimizer, masks, sf.RigL(sf.every(1)))
    hessian(model, loss, batch, topology.masks).dense()
    assert all(p.grad is None for p in model.parameters())
    assert topology.step == 0


# ---- what operators refuse


@pytest.mark.parametrize("make", OPERATORS)
@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.BatchNorm1d(4), r"1 \(BatchNorm1d\) is in training mode: call model.eval\(\) first"),
        (nn.Dropout(0.2), r"1 \(Dropout\) drops at random: call model.eval\(\) first"),
        (nn.BatchNorm1d(4, track_running_stats=False), "keeps no running statistics"),
    ],
)
def test_modules_that_mix_examples_or_draw(make, layer, text):
    model = nn.Sequential(nn.Linear(5, 4), layer)
    batch = torch.randn(6, 5), torch.randint(4, (6,))
    with pytest.raises(MeasureError, match=text):
        make(model, cross_entropy, batch)


@pytest.mark.parametrize("make", OPERATORS)
def test_a_loss_that_draws_without_a_module(make):
    class Dropping(nn.Linear):
        def forward(self, x):
            return functional.dropout(super().forward(x), 0.3, training=self.training)

    model, batch = Dropping(5, 4), (torch.randn(6, 5), torch.randint(4, (6,)))
    with pytest.raises(MeasureError, match=r"the loss is .* and then .* on the same examples: .*"):
        make(model, cross_entropy, batch)
    make(model.eval(), cross_entropy, batch)


def test_inactive_dropout_is_fine():
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.0), nn.Dropout(0.5).eval())
    hessian(model, cross_entropy, (torch.randn(6, 5), torch.randint(4, (6,))))


def test_operations_without_a_second_derivative():
    model = nn.Sequential(nn.EmbeddingBag(5, 4), nn.Linear(4, 3))
    batch = torch.randint(5, (6, 2)), torch.randint(3, (6,))
    with pytest.raises(MeasureError, match=r"no second derivative: .*_embedding_bag"):
        hessian(model, cross_entropy, batch).dense()


def test_attention_that_drops():
    model = nn.MultiheadAttention(4, 2, dropout=0.1)
    with pytest.raises(MeasureError, match=r"the model \(MultiheadAttention\) drops at random"):
        hessian(model, lambda m, x: m(x, x, x)[0].mean(), torch.randn(3, 2, 4))


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return model, (torch.randn(6, 4), torch.randint(3, (6,)))


def test_masks_that_do_not_fit(small):
    with pytest.raises(MaskError, match="names no parameter of Linear"):
        hessian(small[0], cross_entropy, small[1], {"x": torch.ones(3, dtype=torch.bool)})


def test_nothing_active(small):
    model, batch = small
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(MeasureError, match="Linear has no active trainable parameter"):
        hessian(model, cross_entropy, batch)


def test_losses_that_are_not_finite_scalars(small):
    model, batch = small
    bad = batch[0].clone()
    bad[5] = math.nan
    with pytest.raises(MeasureError, match="the loss is nan on chunk 2 of 2"):
        hessian(model, cross_entropy, (bad, batch[1]), chunk=4)
    with pytest.raises(MeasureError, match=r"returns shape \(6, 3\)"):
        hessian(model, lambda m, b: m(b[0]), batch)
    with pytest.raises(MeasureError, match="float"):
        hessian(model, lambda m, b: 1.0, batch)


def test_products_that_are_not_finite():
    """√|w| at 0 has a finite value and no second derivative."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    matrix = hessian(model, lambda m, x: m(x).abs().sqrt().mean(), torch.ones(2, 2))
    with pytest.raises(MeasureError, match="not finite: 2 of 2 entries, the first in weight"):
        matrix @ torch.ones(2)
    with pytest.raises(MeasureError, match="not finite"):
        matrix.dense()


def test_vectors_of_another_length(small):
    matrix = hessian(small[0], cross_entropy, small[1])
    with pytest.raises(MeasureError, match=r"shape \(14,\) does not fit: .* n = 15"):
        matrix @ torch.ones(14)
    with pytest.raises(MeasureError, match=r"\(14,\); it should be \(15,\)"):
        matrix.state(torch.ones(14))
    with pytest.raises(MeasureError, match=r"bias should have shape \(3,\); there is nothing"):
        matrix.vector({"weight": torch.ones(3, 4)})
    with pytest.raises(MeasureError, match=r"weight should have .* there is shape \(4, 3\)"):
        matrix.vector({"weight": torch.ones(4, 3), "bias": torch.ones(3)})


def test_data_and_chunks_that_do_not_fit(small):
    model, batch = small
    with pytest.raises(MeasureError, match="chunk is 0"):
        hessian(model, cross_entropy, batch, chunk=0)
    with pytest.raises(MeasureError, match="no batch"):
        hessian(model, cross_entropy, [])
    with pytest.raises(MeasureError, match=r"\(6, 4\) and \(6,\): pass a tuple \(x, y\)"):
        hessian(model, cross_entropy, list(batch))
    two = hessian(model, lambda m, x: m(x).square().mean(), iter([batch[0], batch[0]]))
    assert two.loss == pytest.approx(float(model(batch[0]).square().mean().detach()))
    with pytest.raises(MeasureError, match="no example"):
        hessian(model, cross_entropy, (batch[0][:0], batch[1][:0]))
    with pytest.raises(MeasureError, match="at least one tensor"):
        hessian(model, cross_entropy, [3.0])


def test_gauss_newton_needs_one_output(small):
    model, batch = small
    with pytest.raises(MeasureError, match="more than once"):
        gauss_newton(model, lambda m, b: (m(b[0]) + m(b[0])).mean(), batch)
    with pytest.raises(MeasureError, match="does not call the model"):
        gauss_newton(model, lambda m, b: m.weight.square().mean(), batch)
    attend = nn.MultiheadAttention(4, 2)
    with pytest.raises(MeasureError, match="returns tuple: Gauss-Newton needs one tensor"):
        gauss_newton(attend, lambda m, x: m(x, x, x)[0].mean(), torch.randn(3, 2, 4))
