"""Copies of truly sparse models: what they keep, and averages of weights in them."""

import copy
import pickle
import warnings

import pytest
import torch
from helpers.small import batch, loss, network
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparseflow as sf
from sparseflow.core.errors import KernelError

DIFFERENT = "belong to different positions"


def sparse_model(density=0.4):
    net = network()
    masks = sf.sparsify(net, density, pattern="constant_fan_in")
    return sf.to_sparse(net, masks, batch(0)[0], force=True), masks


def trained(model, masks, method, steps, after=lambda model: None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = sf.attach(model, optimizer, masks, method, seed=3)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, batch(step)).backward()
        optimizer.step()
        after(model)
    return topology


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, sf.SparseLinear)]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301
def test_a_copy_records_nothing(copied):
    model, masks = sparse_model()
    trained(model, masks, sf.RigL(sf.every(1)), 2)
    assert all(layer.record is not None for layer in layers_of(model))
    twin = copied(model)
    for step in range(3):
        loss(twin, batch(step)).backward()
    assert all(layer.record is None for layer in layers_of(twin))
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in twin.parameters())


def test_averages_under_fixed_masks_are_those_of_the_dense_model():
    net = network()
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    found = []
    for model in (net, sf.to_sparse(net, masks, batch(0)[0], force=True)):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        trained(model, masks, sf.Static(), 8, average.update_parameters)
        found.append(average)
    dense, sparse = found
    x = batch(9)[0]
    torch.testing.assert_close(sparse(x), dense(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(sf.to_dense(sparse.module)(x), dense(x), atol=1e-6, rtol=1e-5)


def by_parameters(average, model):
    for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
        ours.detach().lerp_(theirs.detach(), 0.1)


def through_data(average, model):
    for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
        ours.data.mul_(0.9).add_(theirs.data, alpha=0.1)


AVERAGES = {
    "own": (copy.deepcopy, by_parameters),
    "own, through .data": (copy.deepcopy, through_data),
    "torch": (
        lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
        lambda a, m: a.update_parameters(m),
    ),
    "torch, equal shares": (AveragedModel, lambda a, m: a.update_parameters(m)),
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_averages_while_masks_change_are_refused_in_training(kind):
    model, masks = sparse_model()
    make, update = AVERAGES[kind]
    average, steps = make(model), []

    def after(model):
        update(average, model)
        steps.append(1)

    with pytest.raises(KernelError, match=rf"{DIFFERENT}.*AveragedModel\(sf.to_dense"):
        trained(model, masks, sf.RigL(sf.every(2), sf.constant(0.5)), 6, after)
    assert len(steps) == 3  # right up to the update of step 2, and wrong after it


@pytest.mark.parametrize("kind", AVERAGES)
def test_averages_that_start_after_masks_changed_are_refused_when_used(kind):
    """Of a copy that was made before the last update."""
    model, masks = sparse_model()
    make, update = AVERAGES[kind]
    average, step = make(model), iter(range(20))
    method = sf.RigL(sf.every(2, stop=6), sf.constant(0.5))
    trained(model, masks, method, 10, lambda m: next(step) >= 7 and update(average, m))
    for use in (average, copy.deepcopy, lambda _: average.state_dict()):
        with pytest.raises(KernelError, match=rf"{DIFFERENT}.*AveragedModel\(sf.to_dense"):
            use(batch(0)[0] if use is average else average)
    with pytest.raises(KernelError, match=DIFFERENT):
        sf.to_dense(getattr(average, "module", average))
    model(batch(0)[0])  # the model itself is as it was


def test_what_to_use_is_by_position():
    net = network()
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    x, found = batch(9)[0], []
    for model in (net, sf.to_sparse(net, masks, x, force=True)):
        dense = sf.to_dense if model is not net else lambda m: m
        average = AveragedModel(dense(model), multi_avg_fn=get_ema_multi_avg_fn(0.9))
        method = sf.RigL(sf.every(2), sf.constant(0.5))
        trained(model, masks, method, 10, lambda m, a=average, d=dense: a.update_parameters(d(m)))
        found.append(average(x))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_other_copies_are_left_alone():
    """Snapshots, twins that train, loaded ones, and what is changed before the original moves."""
    model, masks = sparse_model()
    snapshot, twin, loaded, noisy = (copy.deepcopy(model) for _ in range(4))
    with torch.no_grad():
        for layer in layers_of(noisy):
            layer.values.mul_(1.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        topology = trained(model, masks, sf.RigL(sf.every(1), sf.constant(0.5)), 3)
        trained(twin, masks, sf.Static(), 3)
        loaded.load_state_dict(model.state_dict())
        topology.detach()
        trained(model, topology.masks, sf.SET(sf.every(1), sf.constant(0.5)), 3)
    for other in (snapshot, twin, loaded, noisy, noisy.to(torch.bfloat16)):
        other(batch(0)[0])
        sf.to_dense(other)


def test_a_topology_that_was_averaged_as_a_buffer_is_refused():
    model, _ = sparse_model()
    average = AveragedModel(model, avg_fn=lambda a, m, n: m + 1, use_buffers=True)
    for _ in range(2):
        average.update_parameters(model)
    layer = layers_of(average)[0]
    for use in (layer.indices, layer.dense_weight, average.state_dict):
        with pytest.raises(KernelError, match="row_pointers and columns were written into"):
            use()
