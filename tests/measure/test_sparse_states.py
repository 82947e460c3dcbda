"""Truly sparse models are measured as the masked dense ones that they stand for."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import MeasureError

X = torch.randn(60, 16, generator=torch.Generator().manual_seed(9))
Y = torch.arange(60) % 4


def solution(seed, density=0.3):
    """A masked dense network, its masks and its truly sparse form."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)).eval()
    masks = sf.sparsify(net, density, pattern="constant_fan_in", seed=seed)
    return net, masks, sf.to_sparse(net, masks, X, force=True)


@pytest.fixture(scope="module")
def three():
    return [solution(seed, density) for seed, density in enumerate((0.3, 0.3, 0.1))]


@pytest.fixture(params=["both sparse", "sparse and dense", "dense and sparse"])
def pairs(request, three):
    """States of three solutions, each dense or sparse, and the dense ones."""
    dense = [net.state_dict() for net, _, _ in three]
    sparse = [net.state_dict() for _, _, net in three]
    first, second = {"both sparse": (1, 1), "sparse and dense": (1, 0)}.get(request.param, (0, 1))
    return [(dense, sparse)[k][i] for i, k in enumerate((first, second, first))], dense


def test_distances_are_those_of_the_dense_states(pairs):
    ours, theirs = sf.distances(pairs[0]), sf.distances(pairs[1])
    np.testing.assert_allclose(ours.l2, theirs.l2, rtol=1e-12)
    np.testing.assert_allclose(ours.cosine, theirs.cosine, rtol=1e-12)
    one, two = sf.distance(*pairs[0][:2]), sf.distance(*pairs[1][:2])
    assert (one.l2, one.cosine) == pytest.approx((two.l2, two.cosine), rel=1e-12)
    np.testing.assert_allclose(sf.mds(ours).points, sf.mds(theirs).points, atol=1e-6)


def test_distances_of_chosen_names_of_either_execution(three):
    dense, sparse = ([s[k].state_dict() for s in three] for k in (0, 2))
    expected = sf.distances(dense, only=[n for n, _ in three[0][0].named_parameters()])
    for names in ([n for n, _ in three[0][k].named_parameters()] for k in (0, 2)):
        np.testing.assert_allclose(sf.distances(sparse, only=names).l2, expected.l2, rtol=1e-12)
    with pytest.raises(MeasureError, match=r"has no tensor '9\.weight'"):
        sf.distances(sparse, only=["9.weight"])


@pytest.mark.parametrize("execution", [0, 2], ids=["dense", "truly sparse"])
def test_paths_and_planes_are_those_of_the_dense_states(three, pairs, execution):
    model = three[0][execution]
    before = copy.deepcopy(model.state_dict())
    given, dense = pairs
    arguments = sf.loss_and_accuracy, (X, Y)
    path = sf.interpolate(model, *given[:2], *arguments, 5, span=(0.0, 1.0))
    expected = sf.interpolate(three[0][0], *dense[:2], *arguments, 5, span=(0.0, 1.0))
    np.testing.assert_allclose(path.losses, expected.losses, rtol=1e-6)
    np.testing.assert_array_equal(path.accuracies, expected.accuracies)
    plane = sf.plane(model, *given, *arguments, points=(3, 3))
    other = sf.plane(three[0][0], *dense, *arguments, points=(3, 3))
    np.testing.assert_allclose(plane.losses, other.losses, rtol=1e-6)
    np.testing.assert_allclose(plane.positions, other.positions, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("execution", [0, 2], ids=["dense", "truly sparse"])
def test_alignment_is_that_of_the_dense_states(three, pairs, execution):
    (a, b, _), (dense_a, dense_b, _) = pairs
    ours = sf.align(three[0][execution], a, b, starts=2)
    theirs = sf.align(three[0][0], dense_a, dense_b, starts=2)
    assert (ours.distance_before, ours.distance_after) == pytest.approx(
        (theirs.distance_before, theirs.distance_after), rel=1e-12
    )
    assert all(torch.equal(tensor, ours.state[name]) for name, tensor in theirs.state.items())
    assert ours.apply(three[1][1]) == theirs.apply(three[1][1])


def test_predictions_and_ensembles(three):
    ours, theirs = ([sf.predict(s[k], X) for s in three] for k in (2, 0))
    torch.testing.assert_close(sf.ensemble(ours), sf.ensemble(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [sf.hessian, sf.gauss_newton])
def test_curvature_is_over_the_connections(three, make):
    net, masks, sparse = three[0]
    ours, theirs = (
        make(sparse, sf.cross_entropy, (X, Y)),
        make(net, sf.cross_entropy, (X, Y), masks),
    )
    assert ours.names == theirs.names
    torch.testing.assert_close(ours.dense(), theirs.dense(), rtol=1e-5, atol=1e-6)
    fewer = sf.Masks({"0.weight": masks["0.weight"] & (torch.arange(16) < 8)})
    assert make(sparse, sf.cross_entropy, (X, Y), fewer).shape[0] == (
        fewer.nnz + masks.counts["3.weight"] + 32 + 4 + 64
    )


def test_operations_are_counted_by_the_topology(three):
    net, masks, sparse = three[0]
    assert sf.flops(sparse, X) == sf.flops(net, X, masks)


def test_states_of_another_model_are_refused(three):
    other = sf.to_sparse(
        net := nn.Sequential(nn.Linear(16, 30)), sf.sparsify(net, 0.3), X, force=True
    )
    with pytest.raises(MeasureError, match=r"'0.weight' of b has 30 rows"):
        sf.interpolate(
            three[0][0], three[0][2].state_dict(), other.state_dict(), sf.cross_entropy, (X, Y)
        )


def test_values_of_a_published_case():
    """Two random networks, measured dense when this was reported as wrong for truly sparse ones."""

    def made(seed):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        masks = sf.sparsify(net, 0.3, pattern="constant_fan_in", seed=seed)
        return sf.to_sparse(net, masks, X, force=True)

    model, a, b = made(0), made(0).state_dict(), made(1).state_dict()
    assert sf.distance(a, b).l2 == pytest.approx(12.5530, abs=1e-4)
    path = sf.interpolate(model, a, b, sf.cross_entropy, (X, Y), 3, span=(0.0, 1.0))
    np.testing.assert_allclose(path.losses, [1.8214, 1.5442, 1.8331], atol=1e-4)
