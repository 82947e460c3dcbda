"""What planning and conversion share: one trace, and what becomes of the parts of a layer."""

import pytest
import torch
from torch import nn

import sparseflow as sf
from sparseflow.sparse.convert import conversion
from sparseflow.sparse.plan import predict
from sparseflow.sparse.plan.cost import Costs, Line


@pytest.fixture
def traces(monkeypatch):
    """The models that are traced, where sparse layers always gain."""
    models, trace = [], conversion.trace

    def spy(model, example):
        models.append(model)
        return trace(model, example)

    steps = ("forward", "first", "inner")
    free, dear = Line(0.0, 0.0, 0.0, 0.0), Line(1.0, 0.0, 0.0, 0.0)
    lines = {("sparse", "linear", step): free for step in steps}
    lines |= {("dense", "linear", step): dear for step in steps}
    lines |= {("dense", "layout", step): free for step in steps}
    monkeypatch.setattr(predict, "calibrated", lambda: Costs(lines))
    monkeypatch.setattr(conversion, "trace", spy)
    return models


def network():
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    return model, sf.sparsify(model, density=0.05, pattern="constant_fan_in"), torch.randn(64, 256)


def test_a_model_is_traced_once(traces, tmp_path):
    model, masks, x = network()
    sf.to_sparse(model, masks, x)
    assert len(traces) == 1
    sf.plan(model, masks, x, measure=True)
    assert len(traces) == 2
    sf.save(tmp_path / "m", model, masks, example_input=x)
    sf.load(tmp_path / "m")
    assert len(traces) == 3


def test_a_layer_alone_is_not_traced(traces):
    model = nn.Linear(8, 8)
    sf.to_sparse(model, sf.sparsify(model, density=0.5), torch.randn(2, 8), force=True)
    assert traces == []


def test_what_is_frozen_stays_frozen():
    model, masks, x = network()
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    sparse = sf.to_sparse(model, masks, x, force=True)
    first, last = sparse.get_submodule("0"), sparse.get_submodule("2")
    flags = [p.requires_grad for p in (first.values, first.bias, last.values, last.bias)]
    assert flags == [False, True, True, False]


@pytest.mark.filterwarnings("ignore:(?s).*changes the layout alone")
def test_what_is_sparse_already_is_named():
    model, masks, x = network()
    mixed = nn.Sequential(sf.to_sparse(model[0], {"weight": masks["0.weight"]}, x, force=True))
    mixed.append(model[2])
    names = {"0.weight": masks["0.weight"], "1.weight": masks["2.weight"]}
    with pytest.warns(UserWarning, match=r"0\.weight \(sparse already\)"):
        again = sf.to_sparse(mixed, names, x, force=True)
    torch.testing.assert_close(again(x), model[2](model[0](x)), atol=1e-5, rtol=1e-4)
