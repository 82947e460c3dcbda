"""Sparse 1-D convolutions against dense ones, alone, in a model, planned and in a file."""

import pytest
import torch
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import KernelError
from sparseflow.sparse.layers import SparseConv1d


def pair(density=0.4, **how):
    torch.manual_seed(0)
    dense = nn.Conv1d(4, 6, 3, **how)
    mask = torch.rand(dense.weight.shape) < density
    with torch.no_grad():
        dense.weight.mul_(mask)
    return dense, SparseConv1d.from_dense(dense, mask)


@pytest.mark.parametrize(
    "how",
    [{}, {"stride": 2, "padding": 1}, {"dilation": 3, "bias": False}, {"groups": 2},
     {"padding": "same"}],
)  # fmt: skip
@pytest.mark.parametrize("n", [1, 17])
def test_outputs_and_gradients_are_those_of_the_dense_layer(how, n):
    dense, sparse = pair(**how)
    x = torch.randn(n, 4, 11)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    sparse.record = []
    first, second = dense(xs[0]), sparse(xs[1])
    torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-5)
    weights = torch.randn(first.shape)
    (first * weights).sum().backward()
    (second * weights).sum().backward()
    torch.testing.assert_close(xs[1].grad, xs[0].grad, atol=1e-5, rtol=1e-5)
    whole = dense.weight.grad
    flat = whole.reshape(-1)[sparse.indices()]
    torch.testing.assert_close(sparse.values.grad, flat, atol=1e-4, rtol=1e-4)
    for rows in (slice(None), slice(1, 4), slice(4, 4)):
        found = sparse.weight_gradient(rows)
        torch.testing.assert_close(found, whole[rows], atol=1e-4, rtol=1e-4)
    if dense.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, atol=1e-4, rtol=1e-4)


def test_back_to_dense():
    dense, sparse = pair(stride=2, padding=1, groups=2)
    back = sparse.to_dense()
    assert type(back) is nn.Conv1d
    x = torch.randn(3, 4, 9)
    assert torch.equal(back(x), dense(x))


def test_one_sequence_without_a_batch():
    dense, sparse = pair()
    x = torch.randn(4, 11)
    torch.testing.assert_close(sparse(x), dense(x), atol=1e-5, rtol=1e-5)


def test_inputs_that_are_no_sequences_are_refused():
    _, sparse = pair()
    with pytest.raises(KernelError, match=r"must have 3 axes"):
        sparse(torch.randn(2, 4, 11, 1))


def model():
    torch.manual_seed(0)
    layers = (
        nn.Conv1d(2, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Conv1d(8, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(28, 3),
    )  # fmt: skip
    net = nn.Sequential(*layers)
    return net, sf.sparsify(net, density=0.5)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_of_sequences_stays_blocked(training):
    dense, masks = model()
    x = torch.randn(21, 2, 16)
    sparse = sf.to_sparse(dense, masks, x, force=True)
    layouts = str(sparse).count("Block()"), str(sparse).count("Unblock()")
    assert layouts == (1, 1)
    dense.train(training)
    sparse.train(training)
    first, second = dense(x), sparse(x)
    torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-4)
    first.square().sum().backward()
    second.square().sum().backward()
    flat = dense[0].weight.grad.reshape(-1)[sparse.get_submodule("0").indices()]
    torch.testing.assert_close(sparse.get_submodule("0").values.grad, flat, atol=1e-4, rtol=1e-3)


def test_it_is_planned_and_stored(tmp_path):
    dense, masks = model()
    x = torch.randn(21, 2, 16)
    assert [layer.kind for layer in sf.plan(dense, masks, x).layers] == ["conv", "conv", "linear"]
    sf.save(tmp_path / "m", dense, masks, example_input=x)
    again = sf.load(tmp_path / "m", execution="sparse")
    assert isinstance(again.get_submodule("0"), SparseConv1d)
    torch.testing.assert_close(again(x), dense.eval()(x), atol=1e-5, rtol=1e-4)
