"""Truly sparse layers against their dense forms."""

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from sparseflow.core.errors import KernelError, MaskError
from sparseflow.core.parameters import SparseWeight
from sparseflow.sparse import SparseConv2d, SparseLinear


def masked(layer: nn.Module, density: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(layer.weight.shape, generator=generator) < density
    with torch.no_grad():
        layer.weight.masked_fill_(~mask, 0)
    return mask


def linear(density=0.3, inputs=20, outputs=12, bias=True) -> tuple[nn.Linear, SparseLinear]:
    torch.manual_seed(0)
    dense = nn.Linear(inputs, outputs, bias=bias)
    return dense, SparseLinear.from_dense(dense, masked(dense, density))


def conv(density=0.3, **how) -> tuple[nn.Conv2d, SparseConv2d]:
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 6, 3, **how)
    return dense, SparseConv2d.from_dense(dense, masked(dense, density))


CASES = {
    "linear": (linear, (21, 20)),
    "linear without bias": (lambda: linear(bias=False), (5, 20)),
    "linear of leading dimensions": (linear, (3, 7, 20)),
    "linear of one vector": (linear, (20,)),
    "empty linear": (lambda: linear(density=0.0), (4, 20)),
    "conv": (lambda: conv(padding=1), (17, 4, 9, 7)),
    "strided conv": (lambda: conv(stride=(2, 1), padding=(1, 2)), (3, 4, 9, 8)),
    "grouped conv": (lambda: conv(groups=2, dilation=2), (2, 4, 9, 8)),
    "same padding": (lambda: conv(padding="same"), (2, 4, 6, 6)),
    "one image without a batch": (conv, (4, 6, 7)),
}


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients_equal_the_dense_layers(case):
    make, shape = CASES[case]
    dense, sparse = make()
    torch.manual_seed(1)
    x = torch.randn(shape)
    x_dense, x_sparse = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, own = dense(x_dense), sparse(x_sparse)
    torch.testing.assert_close(own, out, atol=1e-5, rtol=1e-5)
    weights = torch.randn(out.shape)
    (out * weights).sum().backward()
    (own * weights).sum().backward()
    torch.testing.assert_close(x_sparse.grad, x_dense.grad, atol=1e-5, rtol=1e-5)
    flat = dense.weight.grad.reshape(-1)[sparse.indices()]
    torch.testing.assert_close(sparse.values.grad, flat, atol=1e-4, rtol=1e-4)
    if dense.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["linear", "conv", "strided conv", "grouped conv"])
def test_gradcheck(case):
    """The layer is linear in each argument: finite differences are exact at any step."""
    _, sparse = CASES[case][0]()
    size = (2, 20) if case == "linear" else (1, 4, 5, 6)
    x = torch.randn(size, requires_grad=True)

    def apply(x, values, bias):
        return torch.func.functional_call(sparse, {"values": values, "bias": bias}, (x,))

    inputs = (x, sparse.values.detach().requires_grad_(), sparse.bias.detach().requires_grad_())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*double precision.*")
        assert torch.autograd.gradcheck(
            apply, inputs, eps=0.5, atol=2e-4, rtol=1e-3, check_batched_grad=False
        )


def test_double_backward_is_refused():
    _, sparse = linear()
    x = torch.randn(3, 20, requires_grad=True)
    (grad,) = torch.autograd.grad(sparse(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("make", [linear, lambda: conv(groups=2, padding=1)])
def test_dense_weight_gradient_on_demand(make):
    dense, sparse = make()
    shape = (18, 20) if isinstance(dense, nn.Linear) else (18, 4, 5, 6)
    sparse.record = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        x = torch.randn(shape)
        dense(x).square().sum().backward()
        sparse(x).square().sum().backward()
    whole = dense.weight.grad
    torch.testing.assert_close(sparse.weight_gradient(slice(None)), whole, atol=1e-3, rtol=1e-4)
    for rows in (slice(0, 1), slice(2, 5), slice(3, 3)):
        found = sparse.weight_gradient(rows)
        torch.testing.assert_close(found, whole[rows], atol=1e-3, rtol=1e-4)
    sparse.record = None
    with pytest.raises(KernelError, match="record"):
        sparse.weight_gradient(slice(None))


def test_the_protocol():
    for make in (linear, conv):
        dense, sparse = make()
        assert isinstance(sparse, SparseWeight)
        assert sparse.shape == dense.weight.shape
        assert torch.equal(sparse.dense_weight(), dense.weight)
        assert torch.equal(sparse.to_dense().weight, dense.weight)


def test_set_topology_keeps_the_parameter():
    _, sparse = linear()
    parameter = sparse.values
    sparse(torch.randn(2, 20)).sum().backward()
    indices = torch.tensor([0, 21, 239])
    sparse.set_topology(indices, torch.tensor([1.0, 2.0, 3.0]))
    assert sparse.values is parameter
    assert sparse.values.grad is None
    weight = torch.zeros(12, 20)
    weight.view(-1)[indices] = torch.tensor([1.0, 2.0, 3.0])
    x = torch.randn(4, 20)
    torch.testing.assert_close(sparse(x), x @ weight.t() + sparse.bias)


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        (torch.tensor([3, 2]), "sorted"),
        (torch.tensor([2, 2]), "twice"),
        (torch.tensor([-1, 2]), "0 to 239"),
        (torch.tensor([2, 240]), "0 to 239"),
        (torch.tensor([2]), "values"),
        (torch.tensor([1.0, 2.0]), "int64"),
    ],
)
def test_a_bad_topology_changes_nothing(indices, match):
    _, sparse = linear()
    before = copy.deepcopy(sparse.state_dict())
    with pytest.raises(KernelError, match=match):
        sparse.set_topology(indices, torch.ones(2))
    assert all(torch.equal(v, before[k]) for k, v in sparse.state_dict().items())
    sparse(torch.randn(2, 20))


def test_a_state_dict_is_whole():
    dense, sparse = linear(density=0.4)
    _, other = linear(density=0.1)
    parameter = other.values
    other.load_state_dict(sparse.state_dict())
    assert other.values is parameter
    x = torch.randn(3, 20)
    assert torch.equal(other(x), sparse(x))
    torch.testing.assert_close(other(x), dense(x))


def test_a_tampered_state_dict_is_refused():
    _, sparse = linear()
    for change in (
        lambda s: s["columns"].add_(100),
        lambda s: s["row_pointers"].neg_(),
        lambda s: s.update(values=s["values"][:-1]),
        lambda s: s["columns"].zero_(),
    ):
        state = copy.deepcopy(sparse.state_dict())
        change(state)
        before = sparse(torch.ones(1, 20))
        with pytest.raises(RuntimeError, match=r"Error.* in loading"):
            sparse.load_state_dict(state)
        assert torch.equal(sparse(torch.ones(1, 20)), before)


def test_deepcopy_is_independent():
    _, sparse = conv()
    twin = copy.deepcopy(sparse)
    twin.set_topology(torch.tensor([0]), torch.tensor([1.0]))
    assert sparse.nnz > 1
    assert twin(torch.ones(1, 4, 3, 3)).shape == (1, 6, 1, 1)


def test_narrow_kinds_are_computed_in_float32():
    dense, sparse = linear()
    x = torch.randn(5, 20)
    half = copy.deepcopy(sparse).to(torch.bfloat16)
    assert half.values.dtype == torch.bfloat16
    out = half(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), dense(x), atol=0.05, rtol=0.05)
    out.sum().backward()
    assert half.values.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_of_the_dtype_of_autocast(name, kind):
    make, shape = CASES[name]
    dense, sparse = make()
    x = torch.randn(shape)
    with torch.autocast("cpu", kind):
        found, expected = sparse(x), dense(x)
        with torch.no_grad():
            assert sparse(x).dtype == kind
    assert found.dtype == expected.dtype == kind
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
    found.float().square().sum().backward()
    assert sparse.values.grad is not None
    assert sparse.values.grad.dtype == torch.float32


def test_bad_inputs():
    _, sparse = linear()
    _, images = conv()
    with pytest.raises(KernelError, match="float64"):
        sparse(torch.randn(2, 20, dtype=torch.float64))
    with pytest.raises(KernelError, match="float64"):
        copy.deepcopy(sparse).double()(torch.randn(2, 20))
    with pytest.raises(KernelError, match="20"):
        sparse(torch.randn(2, 19))
    with pytest.raises(KernelError, match="channels"):
        images(torch.randn(5, 5))
    with pytest.raises(KernelError):
        images(torch.randn(1, 3, 5, 5))
    with pytest.raises(KernelError, match="meta"):
        sparse(torch.randn(2, 20, device="meta"))
    with pytest.raises(MaskError, match="must match"):
        SparseLinear.from_dense(nn.Linear(2, 3), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(KernelError, match="reflect"):
        conv(padding_mode="reflect", padding=1)


@pytest.mark.parametrize("n", [0, 1, 16, 33])
def test_any_batch(n):
    dense, sparse = linear()
    x = torch.randn(n, 20)
    torch.testing.assert_close(sparse(x), dense(x))


def test_a_gradient_that_is_not_contiguous():
    dense, sparse = linear()
    x = torch.randn(6, 20)
    for layer in (dense, sparse):
        layer(x).t().sum(0).square().sum().backward()
    flat = dense.weight.grad.reshape(-1)[sparse.indices()]
    torch.testing.assert_close(sparse.values.grad, flat)
    sparse.zero_grad()
    sparse(x).sum().backward()  # an expanded scalar
    torch.testing.assert_close(sparse.bias.grad, torch.full((12,), 6.0))


COMPILED = """
import torch
from torch import nn
from sparseflow.sparse import SparseLinear
dense = nn.Linear(20, 12)
layer = SparseLinear.from_dense(dense, torch.ones(12, 20, dtype=torch.bool))
x = torch.randn(4, 20)
compiled = torch.compile(nn.Sequential(layer, nn.ReLU()), backend="eager")
torch.testing.assert_close(compiled(x), dense(x).relu())
compiled(x).sum().backward()
assert layer.values.grad is not None
"""


def test_compile_treats_layers_as_opaque():
    """In a process of its own, since type checks at run time disturb the compiler."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=120)


def test_in_place_change_of_values_before_backward_is_noticed():
    _, sparse = linear()
    out = sparse(torch.randn(2, 20, requires_grad=True)).sum()
    with torch.no_grad():
        sparse.values.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        out.backward()
