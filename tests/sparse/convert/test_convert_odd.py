"""Forwards that a conversion could get wrong without saying so."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.errors import KernelError
from sparseflow.sparse.layers.chain import BLOCK, RELU, UNBLOCK, Apply, run

NO_TRACE = pytest.mark.filterwarnings("ignore:(?s).*changes the layout alone")


class Net(nn.Module):
    def __init__(self, forward, **parts):
        super().__init__()
        self.a, self.b, self.l = (nn.Linear(8, 8) for _ in range(3))
        for name, part in parts.items():
            setattr(self, name, part)
        self._how = (forward,)

    def forward(self, x):
        return self._how[0](self, x)


def pair(model, example):
    torch.manual_seed(0)
    masks = sf.Masks({n: torch.rand(p.shape) < 0.6 for n, p in model.named_parameters()
                      if n.endswith("weight") and p.ndim in (2, 4)})  # fmt: skip
    masks.apply(model)
    return model, sf.to_sparse(model, masks, example, force=True)


def same(model, x, example=None):
    """Outputs and all gradients are those of the dense model."""
    dense, sparse = pair(model, x if example is None else example)
    first, second = dense(x), sparse(x)
    torch.testing.assert_close(second, first, atol=1e-4, rtol=1e-4)
    weights = torch.randn(first.shape)
    (first * weights).sum().backward()
    (second * weights).sum().backward()
    for path, layer in sparse.named_modules():
        if isinstance(layer, sf.SparseLinear | sf.SparseConv2d):
            wanted = dense.get_submodule(path).weight.grad
            if wanted is None:
                assert layer.values.grad is None
                continue
            flat = wanted.reshape(-1)[layer.indices()]
            torch.testing.assert_close(layer.values.grad, flat, atol=1e-3, rtol=1e-3)
    return dense, sparse


def residual(m, x):
    x = m.a(x)
    return m.l(functional.relu(m.b(functional.relu(x, inplace=True))) + x)


def relu_dropped(m, x):
    a = m.a(x)
    functional.relu(a, inplace=True)
    return m.l(a)


def added(m, x):
    a = m.a(x)
    b = a.add_(1)
    return m.l(a * b)


def read_after(change):
    def forward(m, x):
        h = m.a(x)
        return m.l(change(h)) + h

    return forward


def incremented(h):
    h += 1
    return h


def keywords(m, x):
    h = m.a(x)
    return m.l(torch.cat(tensors=[torch.add(h, other=m.b(x))], dim=1))


FORWARDS = {
    "in-place before a residual": residual,
    "in-place result not used": relu_dropped,
    "in-place method": added,
    "in-place function": read_after(torch.relu_),
    "in-place module": read_after(nn.ReLU(inplace=True)),
    "in-place operator": read_after(incremented),
    "division of values": lambda m, x: m.l(m.a(x) / (m.b(x).abs() + 3)),
    "division by zeros in the padding": lambda m, x: m.l(1 / (torch.exp(m.a(x)) + 1) ** 0.5),
    "comparison": lambda m, x: m.l(m.a(x) * (m.a(x) > 0)),
    "keywords": keywords,
    "tensor argument": lambda m, x: m.l(torch.clamp(m.a(x), min=m.lo)),
    "constant": lambda m, x: m.l(m.a(x) * torch.tensor(2.0)),
    "two uses before a chain": lambda m, x: torch.cat([torch.relu(m.a(x)), m.l(x)], 1),
    "relu of the input": lambda m, x: m.l(m.a(torch.relu(x))),
    "not all is used": lambda m, x: m.l(x),
}


@NO_TRACE
@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("n", [5, 16])
def test_same_as_dense(name, n):
    torch.manual_seed(1)
    model = Net(FORWARDS[name], lo=torch.linspace(-1, 1, 8))
    same(model, torch.randn(n, 8))


def test_padding_never_divides():
    """Without biases the padding is exactly zero, and 0 / 0 has no gradient."""
    model = Net(lambda m, x: m.l(m.a(x) / m.b(x)))
    model.a.bias = model.b.bias = None
    with torch.no_grad():
        model.a.weight.abs_()
        model.b.weight.abs_()
    same(model, torch.rand(5, 8) + 1)


def test_a_parameter_is_not_a_batch():
    model = Net(lambda m, x: m.l(m.a(x) + m.pos), pos=nn.Parameter(torch.randn(1, 8)))
    same(model, torch.randn(5, 8), example=torch.randn(1, 8))


def test_a_chain_that_begins_with_an_image_read_twice():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.l = nn.Conv2d(1, 2, 3), nn.Linear(36, 4)

        def forward(self, x):
            return torch.cat([self.c(x).flatten(1), self.l(x.flatten(1))], 1)

    same(Two(), torch.randn(3, 1, 6, 6))


def test_growth_gradients_behind_other_stages():
    torch.manual_seed(0)
    dense = nn.Linear(8, 8)
    layer = sf.SparseLinear.from_dense(dense, torch.rand(8, 8) < 0.5)
    x, weights = torch.randn(5, 8), torch.randn(5, 8)
    layer.record = []
    (run((BLOCK, RELU, Apply(), UNBLOCK), (layer,), 5, x) * weights).sum().backward()
    torch.testing.assert_close(layer.weight_gradient(slice(None)), weights.t() @ x.relu())


@pytest.mark.parametrize("kind", ["buffer", "attribute", "root hook", "layer hook"])
def test_what_a_trace_would_drop_keeps_the_forward(kind):
    def forward(m, x):
        h = m.a(x)
        if kind == "buffer":
            m.seen.add_(h.detach().mean(0))
        if kind == "attribute":
            m.last = h
        return m.l(h)

    model = Net(forward)
    model.register_buffer("seen", torch.zeros(8))
    if "hook" in kind:
        target = model if kind == "root hook" else model.b
        target.register_forward_hook(lambda module, args, out: out * 0)
    with pytest.warns(UserWarning, match="changes the layout alone"):
        dense, sparse = pair(model, torch.randn(2, 8))
    x = torch.randn(3, 8)
    torch.testing.assert_close(sparse(x), dense(x))
    torch.testing.assert_close(sparse.seen, dense.seen)
    assert hasattr(sparse, "last") == hasattr(dense, "last")


def test_optional_inputs_keep_their_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.l = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, act=None, scale=1.0):
            h = self.a(x) * scale
            return self.l(h if act is None else h.relu())

    dense, sparse = pair(Optional(), torch.randn(2, 8))
    x = torch.randn(3, 8)
    torch.testing.assert_close(sparse(x), dense(x))
    with pytest.raises(TypeError):
        sparse(x, "relu")


def test_a_layer_under_two_names_stays_dense():
    model = Net(lambda m, x: m.l(m.b(m.a(x))))
    model.b = model.a
    with pytest.warns(UserWarning, match="shared by a and b"):
        dense, sparse = pair(model, torch.randn(2, 8))
    x = torch.randn(3, 8)
    torch.testing.assert_close(sparse(x), dense(x))


@NO_TRACE
@pytest.mark.parametrize("name", ["chain0", "_chain0", "graph", "original", "stages"])
def test_any_name_of_a_part(name):
    model = Net(lambda m, x: m.l(getattr(m, name)(m.a(x))), **{name: nn.Linear(8, 8)})
    model.classes, model.scale = 4, torch.tensor(2.0)
    _, sparse = same(model, torch.randn(3, 8))
    assert sparse.classes == 4


def test_kernels_and_windows_that_are_too_large():
    model = nn.Sequential(nn.Conv2d(1, 2, 17, padding=8), nn.Conv2d(2, 2, 3, padding=1),
                          nn.MaxPool2d((1, 20)))  # fmt: skip
    x = torch.randn(2, 1, 20, 20)
    with pytest.warns(UserWarning, match="at most 15"):
        dense, sparse = pair(model, x)
    torch.testing.assert_close(sparse(x), dense(x), atol=1e-5, rtol=1e-4)
    with pytest.raises(KernelError, match="32768"):
        sf.SparseConv2d((1, 1, 3, 3), torch.tensor([0]), torch.ones(1), padding=(2**40, 0))


def test_inputs_of_another_rank():
    _, sparse = pair(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(2, 8))
    for x in (torch.randn(2, 3, 8), torch.randn(8), torch.randn(1, 4, 2)):
        with torch.no_grad(), pytest.raises(KernelError, match="converted for 2"):
            sparse(x)
    layer = sf.SparseLinear.from_dense(nn.Linear(8, 4), torch.ones(4, 8, dtype=torch.bool))
    with torch.no_grad(), pytest.raises(KernelError, match="8"):
        layer(torch.randn(1, 4, 2))
    empty = sf.SparseLinear(0, 4, torch.zeros(0).long(), torch.zeros(0), torch.ones(4))
    assert torch.equal(empty(torch.ones(3, 0)), torch.ones(3, 4))


class TestStateDicts:
    """Nothing that is loaded, refused or changed later may reach the kernels unchecked."""

    def layer(self, seed, out=16, density=0.3):
        torch.manual_seed(seed)
        mask = torch.zeros(out * 64, dtype=torch.bool)
        mask[torch.randperm(out * 64)[: int(density * out * 64)]] = True
        return sf.SparseLinear.from_dense(nn.Linear(64, out), mask.view(out, 64))

    def test_a_part_alone_is_refused(self):
        layer, x = self.layer(0), torch.randn(20, 64)
        before = layer(x)
        for strict in (True, False):
            with pytest.raises(RuntimeError, match="together"):
                layer.load_state_dict({"columns": torch.full((307,), 2**30).int()}, strict=strict)
        assert torch.equal(layer(x), before)

    def test_what_was_loaded_may_change_later(self):
        layer, other, x = self.layer(0), self.layer(1), torch.randn(20, 64)
        state = other.state_dict()
        layer.load_state_dict(state)
        before = layer(x)
        other.load_state_dict(self.layer(2).state_dict())
        state["columns"].fill_(2**30)
        assert torch.equal(layer(x), before)
        layer.columns.fill_(2**30)
        assert torch.equal(layer(x), before)

    def test_another_shape_changes_nothing(self):
        layer, x = self.layer(0), torch.randn(20, 64)
        before = layer(x)
        with pytest.raises(RuntimeError, match=r"row_pointers|bias"):
            layer.load_state_dict(self.layer(1, out=24).state_dict())
        assert torch.equal(layer(x), before)
        assert layer.to_dense()(x).shape == (20, 16)


def test_training_flags_survive():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).train()
    model[1].eval()
    _, sparse = pair(model, torch.randn(4, 8))
    back = sf.to_dense(sparse)
    assert [m.training for m in back] == [True, False, True]


# ---- Inference that torch itself does otherwise


@NO_TRACE
@pytest.mark.filterwarnings("ignore:left masked dense")
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")  # of the dense model
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("depth", [0, 2])
def test_transformer_layers_in_evaluation(depth, padded):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    if depth:
        model = nn.TransformerEncoder(model, depth)
    x, masks = torch.randn(4, 5, 16), sf.sparsify(model, density=0.3)
    hidden = torch.arange(5) >= torch.tensor([[5], [3], [2], [4]]) if padded else None
    sparse = sf.to_sparse(model, masks, x, force=True).eval()
    model.eval()
    assert sum(isinstance(m, sf.SparseLinear) for m in sparse.modules()) == 2 * max(depth, 1)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            expected = model(x, src_key_padding_mask=hidden)
            found = sparse(x, src_key_padding_mask=hidden)
        if hidden is not None:  # what is hidden comes as it comes
            expected, found = expected[~hidden[:, : expected.shape[1]]], found[~hidden]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_threads_share_a_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 5),
    ).eval()  # fmt: skip
    masks = sf.sparsify(model, density=0.4)
    batches = [torch.randn(1 + 7 * i, 2, 8, 8) for i in range(8)]
    expected = [model(x) for x in batches]
    gradients = [torch.autograd.grad(y.square().sum(), model[0].bias)[0] for y in expected]
    for _ in range(3):  # what is made on first use is made anew
        sparse = sf.to_sparse(model, masks, batches[1], force=True)
        bias = sparse.get_submodule("0").bias

        def work(x, sparse=sparse, bias=bias):
            found = [sparse(x) for _ in range(5)]
            (gradient,) = torch.autograd.grad(found[-1].square().sum(), bias)
            return [y.detach() for y in found], gradient

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(work, batches))
        for (found, gradient), y, wanted in zip(results, expected, gradients, strict=True):
            for each in found:
                torch.testing.assert_close(each, y, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(gradient, wanted, atol=1e-3, rtol=1e-3)
