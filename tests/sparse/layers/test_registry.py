"""The registry of layer types."""

import pytest
import torch
from torch import nn

import sparseflow as sf
from sparseflow.core import layouts
from sparseflow.core.errors import MaskError
from sparseflow.sparse.kernels.linear import LinearPattern
from sparseflow.sparse.layers import SparseLayer
from sparseflow.sparse.layers.registry import SPARSE_FORMS, sparse_form


class Affine(nn.Module):
    """A linear layer of a user."""

    def __init__(self, inputs, outputs, bias=True, device=None):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight = nn.Parameter(torch.randn(outputs, inputs, device=device))
        self.bias = nn.Parameter(torch.zeros(outputs, device=device)) if bias else None

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class SparseAffine(SparseLayer):
    arguments, axes, cost = ("inputs", "outputs", "bias"), 2, "linear"

    @classmethod
    def of(cls, layer, indices, values):
        return cls((layer.outputs, layer.inputs), indices, values, layer.bias)

    inputs = property(lambda self: self.shape[1])
    outputs = property(lambda self: self.shape[0])

    def _make_pattern(self, row_pointers, columns):
        return LinearPattern(row_pointers, columns, self.shape[1])


@pytest.fixture
def registered(monkeypatch):
    """Whatever a test registers is forgotten afterwards."""
    monkeypatch.setattr(layouts, "_LAYOUTS", dict(layouts._LAYOUTS))
    before = dict(SPARSE_FORMS)
    yield
    SPARSE_FORMS.clear()
    SPARSE_FORMS.update(before)


@pytest.mark.usefixtures("registered")
def test_a_type_of_layer_is_one_class(tmp_path):
    sf.register_layout(Affine, "out_in")
    sparse_form(Affine)(SparseAffine)
    torch.manual_seed(0)
    model = nn.Sequential(Affine(8, 8), nn.ReLU(), nn.Linear(8, 4))
    masks, x = sf.sparsify(model, density=0.5), torch.randn(5, 8)
    sparse = sf.to_sparse(model, masks, x, force=True)
    assert isinstance(sparse.get_submodule("0"), SparseAffine)
    assert str(sparse).count("Block()") == 1
    torch.testing.assert_close(sparse(x), model(x))
    back = sf.to_dense(sparse)
    assert type(back[0]) is Affine
    assert torch.equal(back(x), model(x))
    assert [layer.kind for layer in sf.plan(model, masks, x).layers] == ["linear", "linear"]
    sf.save(tmp_path / "m", model, masks, example_input=x)
    assert isinstance(sf.load(tmp_path / "m", execution="sparse").get_submodule("0"), SparseAffine)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("layout", [None, "in_out"])
def test_a_weight_of_another_layout_has_no_sparse_form(layout):
    if layout:
        sf.register_layout(Affine, layout)
    with pytest.raises(MaskError, match=r"Affine must have a weight \(out, \.\.\.\)"):
        sparse_form(Affine)
