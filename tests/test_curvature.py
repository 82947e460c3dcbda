"""Curvature operators against explicit matrices; spectra against known ones."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.errors import MaskError, MeasureError
from sparseflow.measure.density import SpectralDensity, spectral_density
from sparseflow.measure.lanczos import signs
from sparseflow.measure.linear import _bytes
from sparseflow.measure.operators import gauss_newton, hessian
from sparseflow.measure.products import plain_attention
from sparseflow.measure.spectrum import eigenvalues, spectrum, trace
from sparseflow.models import build

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


CASES = [conv, normed, tied, tree, attention]


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


@pytest.mark.parametrize("case", CASES)
def test_hessian_against_the_explicit_matrix(case):
    model, masks, loss, batch, parts = sparse(case)
    expected = explicit_hessian(model, masks, loss, batch)
    n = len(expected)
    assert expected.abs().max() > 1e-3
    matrix = hessian(model, loss, iter(parts), masks, chunk=3)
    assert matrix.shape == (n, n)
    assert matrix.dtype == DOUBLE
    assert matrix.loss == pytest.approx(float(loss(model, batch).detach()), abs=1e-12)
    torch.testing.assert_close(matrix.dense(block=7), expected, rtol=0, atol=1e-10)
    for data in (batch, parts) if case is conv else (batch,):
        product = hessian(model, loss, data, masks) @ torch.eye(n, dtype=DOUBLE)
        torch.testing.assert_close(product, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", [conv, normed, tied, attention])
def test_gauss_newton_against_the_jacobian(case):
    model, masks, loss, batch, parts = sparse(case)
    expected = explicit_gauss_newton(model, masks, batch)
    n = len(expected)
    matrix = gauss_newton(model, loss, parts, masks, chunk=3)
    torch.testing.assert_close(matrix.dense(block=7), expected, rtol=0, atol=1e-10)
    for data in (batch, parts) if case is conv else (batch,):
        product = gauss_newton(model, loss, data, masks) @ torch.eye(n, dtype=DOUBLE)
        torch.testing.assert_close(product, expected, rtol=0, atol=1e-10)
    assert spectrum(matrix).smallest > -1e-12


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


def test_what_is_not_kept_is_computed_again():
    model, masks, loss, batch, _ = sparse(normed)
    kept = hessian(model, loss, batch, masks, chunk=3)
    v = torch.randn(kept.shape[0], 3, dtype=DOUBLE)
    product = kept @ v
    stored = [r for _, r in kept._replay._known if r is not None]
    assert len(stored) == 3
    size = _bytes(stored[0], but=kept._replay._inputs(kept._chunks[0]))
    assert size > 0
    for cache, expected in ((2 * size + 1, 2), (size - 1, 0)):
        less = hessian(model, loss, batch, masks, chunk=3, cache=cache)
        assert torch.equal(less @ v, product)
        assert torch.equal(less @ v, product)
        assert sum(r is not None for _, r in less._replay._known) == expected


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
    matrix = hessian(model, loss, parts)
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


# ---- eigenvalues


def symmetric(values, seed=0):
    """A matrix with the given eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=DOUBLE)
    stream = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=stream, dtype=DOUBLE))
    matrix = q * values @ q.T
    return (matrix + matrix.T) / 2


def quadratic(matrix):
    """A model and a loss whose Hessian is the matrix."""
    model = nn.Linear(len(matrix), 1, bias=False).double()

    def loss(model, batch):
        w = model.weight[0]
        return 0.5 * w @ matrix @ w + 0 * batch.sum()

    return hessian(model, loss, torch.zeros(3, 1, dtype=DOUBLE))


def like_a_network(n=300):
    """A few large eigenvalues, many around zero, some clearly negative."""
    bulk = 1e-4 * torch.randn(n - 14, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    top = torch.tensor([10.0, 8, 5, 3, 2, 1, 0.9, 0.5, 0.2, 0.1], dtype=DOUBLE)
    return torch.cat([top, bulk, torch.tensor([-0.3, -0.1, -0.05, -0.02], dtype=DOUBLE)])


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("k", [1, 6, 30, 299])
def test_eigenvalues_against_numpy(which, k):
    matrix = symmetric(like_a_network())
    exact = np.linalg.eigvalsh(matrix.numpy())
    order = {"LA": -exact, "SA": exact, "LM": -abs(exact)}[which].argsort()[:k]
    expected = np.sort(exact[order])[::-1]
    found = eigenvalues(matrix, k, which, tol=1e-6)
    assert found.values.dtype == DOUBLE
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=0, atol=2e-5)
    assert float(found.residuals.max()) <= 1e-6
    error = (matrix @ found.vectors - found.values * found.vectors).norm(dim=0) / 10
    torch.testing.assert_close(found.residuals, error, rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(
        found.vectors.T @ found.vectors, torch.eye(k, dtype=DOUBLE), rtol=0, atol=1e-6
    )


def test_eigenvalues_of_float32_near_zero():
    """The tolerance is relative to max|λ|, so rounding does not keep Lanczos from ending."""
    matrix = symmetric(like_a_network()).float()
    matrix = (matrix + matrix.T) / 2
    found = eigenvalues(matrix, 8, "SA", tol=1e-5)
    expected = like_a_network().sort().values[:8].flip(0)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-4)


def test_eigenvalues_of_small_and_of_flat_operators():
    assert eigenvalues(torch.diag(torch.tensor([2.0, -3.0])), 2).values.tolist() == [2.0, -3.0]
    assert eigenvalues(torch.zeros(100, 100), 3).values.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_eigenvalues_that_occur_several_times(k, which):
    """The space of one vector has each once; it is exhausted k times."""
    values = torch.tensor([5.0] * 3 + [-2.0] * 2 + [0.0] * 70 + [1.0] * 25, dtype=DOUBLE)
    order = {"LA": -values, "SA": values, "LM": -values.abs()}[which].argsort()[:k]
    expected = values[order].sort(descending=True).values
    found = eigenvalues(symmetric(values), k, which)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-9)


def test_eigenvalues_of_a_network():
    model, masks, loss, batch, _ = sparse(conv)
    operator = hessian(model, loss, batch, masks)
    exact = spectrum(operator).values
    torch.testing.assert_close(eigenvalues(operator, 3).values, exact[:3], rtol=0, atol=1e-9)
    torch.testing.assert_close(eigenvalues(operator, 3, "SA").values, exact[-3:], rtol=0, atol=1e-9)


def test_no_start_vector_hides_an_eigenvalue():
    """Without steps that confirm it, every third result here misses one."""
    values = torch.linspace(0.2, 1, 5, dtype=DOUBLE)
    values = torch.cat([10 * values, -9.5 * values, like_a_network(90)[10:]])
    wanted = values[values.abs().argsort(descending=True)[:10]].sort(descending=True).values
    matrix = torch.diag(values)
    for seed in range(40):
        found = eigenvalues(matrix, 10, "LM", tol=1e-2, seed=seed)
        torch.testing.assert_close(found.values, wanted, rtol=0, atol=0.05)


def test_eigenvalues_are_the_same_every_time():
    matrix = symmetric(like_a_network())
    a, b = eigenvalues(matrix, 3), eigenvalues(matrix, 3)
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.vectors, b.vectors)


def test_lanczos_that_does_not_converge_says_how_far_it_came():
    even = symmetric(torch.linspace(0, 1, 400))
    with pytest.raises(MeasureError, match=r"did not converge in 20 steps: 0 of 3 .* 1e-10"):
        eigenvalues(even, 3, tol=1e-10, maxiter=20)


def test_eigenvalues_that_do_not_exist():
    matrix = torch.eye(3)
    with pytest.raises(MeasureError, match="k is 4; an operator of 3 rows has 1 to 3"):
        eigenvalues(matrix, 4)
    with pytest.raises(MeasureError, match=r"tol is 1e-09; products in torch.float32 are right"):
        eigenvalues(matrix, tol=1e-9)
    with pytest.raises(MeasureError, match="symmetric floating matrix"):
        eigenvalues(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))


def test_spectrum_counts_negative_eigenvalues():
    values = like_a_network()
    found = spectrum(quadratic(symmetric(values)))
    torch.testing.assert_close(found.values, values.sort(descending=True).values)
    assert (found.largest, found.smallest) == (pytest.approx(10), pytest.approx(-0.3))
    assert found.negative == 4
    assert found.negative_share == 4 / 300
    with pytest.raises(MeasureError, match="300 active entries is over the limit of 299"):
        spectrum(quadratic(symmetric(values)), limit=299)


# ---- trace and density


def test_trace_within_its_error():
    values = like_a_network()
    matrix = symmetric(values)
    found = [trace(matrix, probes=16, seed=s) for s in range(60)]
    inside = sum(abs(f.value - float(values.sum())) < 2.13 * f.error for f in found)
    assert inside >= 52
    assert len({f.value for f in found}) == 60
    exact = trace(torch.diag(values), probes=3)
    assert exact.value == pytest.approx(float(values.sum()))
    assert exact.error == pytest.approx(0, abs=1e-12)
    with pytest.raises(MeasureError, match="probes is 1; an error bar needs at least 2"):
        trace(torch.eye(3), probes=1)


def test_trace_of_a_network_against_the_explicit_matrix():
    model, masks, loss, batch, _ = sparse(conv)
    matrix = hessian(model, loss, batch, masks)
    found = trace(matrix, probes=200)
    assert abs(found.value - float(matrix.dense().trace())) < 3 * found.error


def test_density_of_a_diagonal_matrix_is_exact():
    """Every ±1 vector has weight 1/n on each axis, and Lanczos ends after all 5 values."""
    values = torch.tensor([-2.0] * 10 + [-0.5] * 20 + [0.0] * 40 + [1.0] * 25 + [3.0] * 5)
    found = spectral_density(torch.diag(values.double()), steps=80, probes=3)
    assert [len(p.nodes) for p in found.probes] == [5, 5, 5]
    for probe in found.probes:
        torch.testing.assert_close(probe.nodes, values.double().unique())
        torch.testing.assert_close(
            probe.weights, torch.tensor([0.1, 0.2, 0.4, 0.25, 0.05], dtype=DOUBLE)
        )
        assert float(probe.residuals.max()) == 0
    share = found.negative_share
    assert (share.value, share.low, share.high) == pytest.approx((0.3, 0.3, 0.3))
    assert share.error == pytest.approx(0, abs=1e-12)
    assert found.below(2.0).value == pytest.approx(0.95)
    assert (found.largest, found.smallest) == pytest.approx((3.0, -2.0))
    assert found.trace.value == pytest.approx(float(values.sum()))


def test_density_with_a_step_for_every_row_is_the_probe_s_own_measure():
    matrix = symmetric(torch.linspace(-1, 1, 12))
    found = spectral_density(matrix, steps=50, probes=4)
    values, vectors = torch.linalg.eigh(matrix)
    weights = (vectors.T @ signs(12, 4, 0, "density")) ** 2 / 12
    for probe, expected in zip(found.probes, weights.T, strict=True):
        torch.testing.assert_close(probe.nodes, values)
        torch.testing.assert_close(probe.weights, expected)
        for threshold in (-2.0, -0.5, 0.1, 2.0):
            below = float(expected[values < threshold].sum())
            assert probe.bracket(threshold) == pytest.approx((below, below))


@pytest.mark.parametrize("steps", [1, 2, 5, 12, 30])
def test_brackets_hold_for_every_probe_and_threshold(steps):
    values = like_a_network(120)
    matrix = symmetric(values)
    exact, vectors = torch.linalg.eigh(matrix)
    weights = (vectors.T @ signs(120, 3, 7, "density")) ** 2 / 120
    found = spectral_density(matrix, steps=steps, probes=3, seed=7)
    nodes = torch.cat([p.nodes for p in found.probes])
    grid = torch.cat([torch.linspace(-0.4, 11, 40, dtype=DOUBLE), 1e-4 * nodes, nodes, exact[::7]])
    for probe, weight in zip(found.probes, weights.T, strict=True):
        for threshold in grid.tolist():
            low, high = probe.bracket(threshold)
            below = float(weight[exact < threshold - 1e-9].sum())
            upto = float(weight[exact <= threshold + 1e-9].sum())
            assert low <= upto + 1e-8
            assert high >= below - 1e-8
            assert low <= high


def test_brackets_close_with_the_steps():
    matrix = symmetric(like_a_network())
    widths = []
    for steps in (5, 20, 60):
        share = spectral_density(matrix, steps=steps, probes=2).below(0.05)
        widths.append(share.high - share.low)
    assert widths[0] > 10 * widths[2]
    assert widths[1] < 1.01 * widths[0]


@pytest.mark.parametrize("steps", [5, 15, 60])
def test_the_share_lies_in_its_interval(steps):
    """Of 80 intervals of 4 probes 19 in 20, whether or not the quadrature is resolved."""
    values = torch.randn(60, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    share = float((values < -1e-3 * values.max()).double().mean())
    many = spectral_density(symmetric(values), steps, 320, seed=1).probes
    found = [SpectralDensity(60, many[i : i + 4]).negative_share for i in range(0, 320, 4)]
    inside = sum(f.low <= share <= f.high for f in found)
    assert inside >= 71
    assert all(0 <= f.low <= f.value <= f.high <= 1 for f in found)
    if steps == 60:
        assert inside < 80


def test_extreme_eigenvalues_of_a_density():
    values = like_a_network()
    found = spectral_density(symmetric(values), steps=60, probes=2)
    assert found.largest == pytest.approx(10, rel=1e-6)
    assert found.smallest == pytest.approx(-0.3, rel=1e-3)
    assert abs(found.smallest + 0.3) <= found.smallest_residual + 1e-9
    rough = spectral_density(symmetric(values), steps=4, probes=2)
    assert min(abs(values - rough.largest)) <= rough.largest_residual
    assert min(abs(values - rough.smallest)) <= rough.smallest_residual


def test_smoothed_density():
    values = torch.cat([torch.full((30,), -1.0), torch.full((70,), 2.0)]).double()
    found = spectral_density(torch.diag(values), probes=2)
    grid = torch.tensor([-1.0, 0.5, 2.0], dtype=DOUBLE)
    curve = found.density(grid, sigma=0.1)
    peak = 1 / (0.1 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(
        curve.mean, torch.tensor([0.3 * peak, 0, 0.7 * peak], dtype=DOUBLE), rtol=1e-9, atol=1e-9
    )
    assert float(curve.error.max()) < 1e-9
    whole = spectral_density(symmetric(like_a_network()), 40, 3).density()
    assert float(torch.trapezoid(whole.mean, whole.grid)) == pytest.approx(1, abs=1e-3)
    assert float(whole.error.max()) > 0
    with pytest.raises(MeasureError, match="sigma is 0"):
        found.density(grid, 0.0)


def test_densities_of_nothing_and_of_float32():
    flat_one = spectral_density(torch.zeros(20, 20), steps=5, probes=2)
    assert (flat_one.largest, flat_one.negative_share.high) == (0, 0)
    assert float(flat_one.density().mean.sum()) > 0
    rounded = spectral_density(symmetric(like_a_network()).float(), 40, 4)
    exact = spectral_density(symmetric(like_a_network()), 40, 4)
    assert rounded.largest == pytest.approx(exact.largest, rel=1e-5)
    assert rounded.smallest == pytest.approx(exact.smallest, rel=1e-4)
    assert rounded.negative_share.low <= 4 / 300 <= rounded.negative_share.high


def test_densities_that_make_no_sense():
    with pytest.raises(MeasureError, match="probes is 1; an error bar needs at least 2"):
        spectral_density(torch.eye(3), probes=1)
    with pytest.raises(MeasureError, match="steps is 0"):
        spectral_density(torch.eye(3), steps=0)


def test_density_of_a_network():
    """Operator and quadrature together, beside the exact spectrum."""
    model, masks, loss, _, parts = sparse(conv)
    matrix = hessian(model, loss, parts, masks)
    exact, found = spectrum(matrix), spectral_density(matrix, steps=matrix.shape[0], probes=8)
    assert isinstance(found, SpectralDensity)
    assert found.size == matrix.shape[0]
    assert found.largest == pytest.approx(exact.largest, rel=1e-9)
    assert found.smallest == pytest.approx(exact.smallest, rel=1e-9)
    assert found.negative_share.low <= exact.negative_share <= found.negative_share.high


# ---- independent libraries; they are in no environment of sparseflow's own

REFEREE = "a referee: pip install -r benchmarks/referees.txt in an environment of its own"


@pytest.fixture
def dense_network():
    """LeNet5 after a few steps on random images, so that its eigenvalues stand apart."""
    torch.manual_seed(0)
    model = build("lenet5")
    batch = torch.rand(60, 1, 28, 28), torch.randint(10, (60,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, batch


@pytest.mark.filterwarnings("ignore")
def test_top_eigenvalues_against_hessian_eigenthings(dense_network):
    theirs = pytest.importorskip("hessian_eigenthings", reason=REFEREE)
    model, batch = dense_network
    operator = theirs.HessianOperator(model, [batch], cross_entropy)
    expected = theirs.lanczos(
        operator, k=10, max_iter=60, which="LA", seed=0, reorthogonalize=True
    ).eigenvalues
    found = eigenvalues(hessian(model, cross_entropy, batch, chunk=20), 10)
    torch.testing.assert_close(found.values, expected.double(), rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_top_eigenvalues_against_pyhessian(dense_network):
    theirs = pytest.importorskip("pyhessian", reason=REFEREE)
    model, batch = dense_network
    found = eigenvalues(hessian(model, cross_entropy, batch), 3, "LM")
    made = theirs.hessian(model, functional.cross_entropy, data=batch, cuda=False)
    expected, _ = made.eigenvalues(maxIter=300, tol=1e-5, top_n=3)
    order = sorted(expected, reverse=True)
    torch.testing.assert_close(found.values, torch.tensor(order).double(), rtol=1e-2, atol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "name"), [(hessian, "HessianLinearOperator"), (gauss_newton, "GGNLinearOperator")]
)
def test_products_against_curvlinops(dense_network, make, name):
    theirs = pytest.importorskip("curvlinops", reason=REFEREE)
    model, batch = dense_network
    ours = make(model, cross_entropy, batch, chunk=20)
    v = torch.randn(ours.shape[0])
    operator = getattr(theirs, name)(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [batch], check_deterministic=False
    )
    torch.testing.assert_close(ours @ v, operator @ v, rtol=1e-3, atol=1e-5)
