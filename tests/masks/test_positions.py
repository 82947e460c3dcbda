"""States of dense and truly sparse models, entry for entry at the same positions."""

import pytest
import torch

import sparseflow as sf
from sparseflow.core.errors import MeasureError
from sparseflow.masks.positions import comparable
from sparseflow.sparse import SparseConv2d, SparseLinear


def linear(weight, mask):
    layer = torch.nn.Linear(*reversed(weight.shape), bias=False)
    layer.weight.data = weight * mask
    return SparseLinear.from_dense(layer, mask)


A = torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 0], [0, 3, 0, 0]])
B = torch.tensor([[0.0, 0, 5, 0], [7, 0, 0, 0], [0, 0, 0, 0]])


def test_two_topologies_meet_at_the_union_of_their_positions():
    a, b = (linear(w, w != 0).state_dict() for w in (A, B))
    full = comparable({"a": a, "b": b})
    assert full["a"]["weight"].tolist() == [1, 2, 0, 3]
    assert full["b"]["weight"].tolist() == [0, 5, 7, 0]
    assert set(full["a"]) == {"weight"}
    assert set(a) == {"values", "row_pointers", "columns"}
    assert sf.distance(a, b).l2 == pytest.approx(float((A - B).norm()), rel=1e-6)


@pytest.mark.parametrize("given", [False, True])
def test_a_dense_state_or_a_given_shape_makes_weights_dense(given):
    states = {"sparse": linear(A, A != 0).state_dict()} | (
        {} if given else {"dense": {"weight": B}}
    )
    full = comparable(states, {"weight": A.shape} if given else None)
    assert torch.equal(full["sparse"]["weight"], A)


def test_empty_layers_and_convolutions():
    none = linear(0 * A, A > 99).state_dict()
    assert comparable({"a": none, "b": none})["a"]["weight"].tolist() == []
    assert sf.distance(none, {"weight": A}).l2 == pytest.approx(float(A.norm()))
    conv = torch.nn.Conv2d(2, 3, (1, 2), bias=False)
    mask = torch.rand(conv.weight.shape) < 0.5
    conv.weight.data *= mask
    state = SparseConv2d.from_dense(conv, mask).state_dict()
    shapes = {"weight": conv.weight.shape}
    assert torch.equal(comparable({"a": state}, shapes)["a"]["weight"], conv.weight)


def test_weights_that_do_not_fit_their_shape():
    state = linear(A, A != 0).state_dict()
    for shape in ((3, 2), (4, 4)):
        with pytest.raises(MeasureError, match=r"'weight' of a has 3 rows and columns up to 2; it"):
            comparable({"a": state, "b": {"weight": torch.ones(shape)}})
    with pytest.raises(MeasureError, match="of the second has 2 rows"):
        sf.distance(state, linear(A[:2], A[:2] != 0).state_dict())
