"""Batch norm in the blocked layout against float64, and joined with what stands behind it."""

import copy

import pytest
import torch
from helpers.kernels import threads
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.errors import KernelError
from sparseflow.sparse.convert import conversion
from sparseflow.sparse.convert.rewrite import blocked_graph
from sparseflow.sparse.kernels.blocked import block, unblock
from sparseflow.sparse.kernels.norm import norm_forward, norm_gradient
from sparseflow.sparse.layers.chain import from_blocked, to_blocked
from sparseflow.sparse.layers.norm import norm


def check(n, shape, *, counts=True, affine=True, added=False, relu=False, seed=0, mean=0.0):
    """Forward and gradients of one case against autograd in float64."""
    draw = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(size, generator=draw)

    c = shape[0]
    x, dy, extra = random(n, *shape) + mean, random(n, *shape), random(n, *shape)
    weight, bias = (random(c), random(c)) if affine else (None, None)
    own = random(c), random(c).exp()
    exact = [None if t is None else t.double().requires_grad_() for t in (x, extra, weight, bias)]
    y64 = functional.batch_norm(
        exact[0], *(None if counts else t.double() for t in own), *exact[2:], training=counts
    )
    y64 = y64 + exact[1] if added else y64
    y64 = y64.relu() if relu else y64
    y64.backward(dy.double())

    statistics = tuple(t.clone() for t in own)
    xb, rest = block(x), block(extra) if added else None
    y = norm_forward(
        xb, n, statistics, weight, bias, counts=counts, added=rest, relu=relu
    )  # fmt: skip
    close(unblock(y, n), y64.detach(), 1e-5)
    if counts:
        values = x.double().transpose(0, 1).flatten(1)
        close(statistics[0], values.mean(1), 1e-6)
        close(statistics[1], values.var(1, correction=0), 1e-5)
    found = norm_gradient(
        xb, n, block(dy), statistics, weight, counts=counts, y=y if relu else None, added=added
    )
    # A ReLU cuts at an output that float32 may put on the other side of zero.
    sure = not relu or bool((y64.abs() > 1e-4).logical_or(y64 == 0).all())
    if not sure:
        return
    size = n * x[0, 0].numel()
    close(unblock(found[0], n), exact[0].grad, 1e-5)
    assert (found[0].flatten(0, -2).reshape(xb.shape)[-1][..., (n - 1) % 16 + 1 :] == 0).all()
    if added:
        close(unblock(found[1], n), exact[1].grad, 1e-6)
    if affine:
        close(found[2], exact[2].grad, 1e-6 * size**0.5)
        close(found[3], exact[3].grad, 1e-6 * size**0.5)


def close(actual, exact, tolerance):
    scale = max(1.0, float(exact.abs().max()))
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=tolerance * scale)


@options(max_examples=60)
@given(
    n=st.integers(2, 40),
    shape=st.sampled_from([(1,), (5,), (3, 1, 1), (2, 3, 5), (4, 7, 1)]),
    counts=st.booleans(),
    affine=st.booleans(),
    added=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batch_norm_is_right_for_any_shape_and_batch(n, shape, counts, affine, added, relu, seed):
    check(n, shape, counts=counts, affine=affine, added=added, relu=relu, seed=seed)


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("n", [1, 16, 35])
def test_batch_norm_is_right_at_every_level(level, n, added):
    check(n, (3, 9, 8), added=added, relu=True)
    check(n, (3, 9, 8), added=added, counts=False)


def test_a_large_mean_does_not_hide_the_variance():
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1000.0
    statistics = torch.empty(3), torch.empty(3)
    y = norm_forward(block(x), 64, statistics, epsilon=1e-9)
    values = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        statistics[1].double(), values.var(1, correction=0), rtol=1e-5, atol=0
    )
    expected = functional.batch_norm(x.double(), None, None, training=True, eps=1e-9)
    torch.testing.assert_close(unblock(y, 64).double(), expected, rtol=0, atol=1e-3)


def test_what_stands_in_the_padding_does_not_matter():
    x = block(torch.randn(19, 2, 3, 3))
    x[-1, ..., 3:] = float("nan")
    statistics = torch.empty(2), torch.empty(2)
    y = norm_forward(x, 19, statistics)
    plain = unblock(x, 19)
    close(unblock(y, 19), functional.batch_norm(plain.double(), None, None, training=True), 1e-5)
    dy = block(torch.randn(19, 2, 3, 3))
    dx, _, dweight, _ = norm_gradient(x, 19, dy, statistics)
    assert dx.isfinite().all() == dweight.isfinite().all() == True  # noqa: E712
    assert (dx[-1, ..., 3:] == 0).all()


def test_results_do_not_depend_on_the_number_of_threads():
    x, dy = torch.randn(3, 7, 9, 4, 16), torch.randn(3, 7, 9, 4, 16)
    found = []
    for count in (1, 2, 5):
        with threads(count):
            statistics = torch.empty(7), torch.empty(7)
            y = norm_forward(x, 48, statistics, added=dy, relu=True)
            found.append([y, *statistics, *norm_gradient(x, 48, dy, statistics, y=y, added=True)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("unannotated")
def test_tensors_that_do_not_fit_are_refused():
    x, one = torch.ones(2, 3, 16), torch.ones(3)
    for n in (0, 16, 33):
        with pytest.raises(KernelError, match=f"do not hold {n} examples"):
            norm_forward(x, n, (one, one))
    with pytest.raises(KernelError, match="blocked"):
        norm_forward(torch.ones(2, 3), 2, (one, one))
    with pytest.raises(KernelError, match="variance must have shape"):
        norm_forward(x, 32, (one, torch.ones(2)))
    with pytest.raises(KernelError, match="weight must be a dense"):
        norm_forward(x, 32, (one, one), one.double())
    with pytest.raises(KernelError, match="added must have shape"):
        norm_forward(x, 32, (one, one), added=torch.ones(2, 3, 1, 16))
    with pytest.raises(KernelError, match="dy must have shape"):
        norm_gradient(x, 32, torch.ones(1, 3, 16), (one, one))


# ---- As modules do it

KINDS = {
    "plain": {},
    "momentum": {"momentum": 0.3, "eps": 1e-2},
    "cumulative": {"momentum": None},
    "without parameters": {"affine": False},
    "without statistics": {"track_running_stats": False},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_module_trains_as_in_torch(make, kind):
    torch.manual_seed(0)
    module = make(3, **KINDS[kind])
    twin = copy.deepcopy(module)
    for step in range(5):
        module.train(step != 3)
        twin.train(step != 3)
        x = torch.randn(21, 3, *(() if make is nn.BatchNorm1d else (4, 5))).requires_grad_()
        other = x.detach().clone().requires_grad_()
        y, expected = from_blocked(norm(to_blocked(x), 21, module), 21), twin(other)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        weight = torch.randn_like(y)
        (y * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)
    pairs = zip(module.parameters(), twin.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-4) for a, b in pairs)
    torch.testing.assert_close(module.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-5)


def test_what_the_kernel_does_not_do_is_left_to_the_module():
    x = block(torch.randn(20, 3, 2, 2))
    seen = []
    hooked = nn.BatchNorm2d(3)
    hooked.register_forward_hook(lambda *_: seen.append(1))
    norm(x, 20, hooked)

    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    added = torch.randn_like(x)
    expected = (2 * norm(x, 20, nn.BatchNorm2d(3)) + added).relu()
    found = norm(x, 20, Doubled(3), added, True)
    torch.testing.assert_close(unblock(found, 20), unblock(expected, 20))
    assert seen == [1]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(block(torch.randn(1, 3)), 1, nn.BatchNorm1d(3))
    double = nn.BatchNorm2d(3).double()
    assert norm(x.double(), 32, double).dtype == torch.float64


def test_running_statistics_may_move_before_the_backward_pass():
    module = nn.BatchNorm1d(2).eval()
    x = torch.randn(1, 2, 16, requires_grad=True)
    y = norm(x, 16, module)
    module.running_var.fill_(100.0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / (1 + 1e-5) ** 0.5))


def test_gradients_of_gradients_are_refused():
    x = torch.randn(1, 2, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        norm(x, 16, nn.BatchNorm1d(2)).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# ---- In converted models


class Residual(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.order = order
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        y = self.other(self.second(x))
        if self.order == "norm first":
            return functional.relu(y + x)
        if self.order == "norm last":
            return functional.relu(torch.add(x, y))
        if self.order == "in place":
            y += x
            return functional.relu(y)
        if self.order == "scaled":
            return functional.relu(torch.add(x, y, alpha=2))
        if self.order == "read twice":
            return functional.relu(y + x) * y
        if self.order == "number":
            return functional.relu(y + 1.0)
        if self.order == "doubled":
            return functional.relu(y + y)
        if self.order == "two norms":
            return functional.relu(y + self.norm(self.first(x)))
        return functional.relu(y) + x


ORDERS = {  # and how many nodes for an addition and for a ReLU are left
    "norm first": (0, 0),
    "norm last": (0, 0),
    "in place": (0, 0),
    "scaled": (1, 0),  # the ReLU joins the change of layout behind it
    "read twice": (1, 1),
    "number": (1, 0),
    "doubled": (1, 1),
    "two norms": (0, 0),
    "sum last": (1, 0),
}


@pytest.mark.parametrize("order", ORDERS)
def test_addition_and_relu_join_the_norm_before_them(order, monkeypatch):
    called = []

    def kept(*arguments):
        graph, chains = blocked_graph(*arguments)
        called.extend(getattr(node.target, "__name__", "") for node in graph.nodes)
        return graph, chains

    monkeypatch.setattr(conversion, "blocked_graph", kept)
    torch.manual_seed(0)
    model = Residual(order)
    masks = sf.sparsify(model, density=0.5)
    x = torch.randn(20, 4, 6, 5)
    sparse = sf.to_sparse(model, masks, x, force=True)
    assert (called.count("add") + called.count("iadd"), called.count("relu")) == ORDERS[order]
    for mode in (True, False):
        model.train(mode)
        sparse.train(mode)
        expected, found = model(x), sparse(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        expected.square().mean().backward()
        found.square().mean().backward()
    for a, b in zip((model.norm, model.other), (sparse.norm, sparse.other), strict=True):
        torch.testing.assert_close(b.weight.grad, a.weight.grad, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(b.bias.grad, a.bias.grad, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(b.state_dict(), a.state_dict(), rtol=1e-4, atol=1e-5)
    dense = sf.to_dense(sparse)
    torch.testing.assert_close(dense(x), model(x), rtol=1e-4, atol=1e-4)
