"""What users of such libraries have reported of training loops, restated."""

import pytest
import torch
from helpers.small import batch, loss, network

import sparseflow as sf
from sparseflow.core.errors import MaskError
from sparseflow.masks.state import State


class ScheduleFree(torch.optim.Optimizer):
    """SGD whose weights are exchanged for evaluation (facebookresearch/schedule_free#15).

    The model holds y while it is trained and x when it is evaluated; z is state.
    """

    def __init__(self, parameters, lr=0.1, beta=0.9):
        super().__init__(parameters, {"lr": lr, "beta": beta, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            share = 1 / group["k"]
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                rate = group["lr"] * (group["beta"] * (1 - share) - 1)
                p.lerp_(z, share).add_(p.grad, alpha=rate)
                z.sub_(p.grad, alpha=group["lr"])

    @torch.no_grad()
    def exchange(self, weight):
        for group in self.param_groups:
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], weight(group["beta"]))

    def train(self):
        self.exchange(lambda beta: 1 - beta)

    def eval(self):
        self.exchange(lambda beta: 1 - 1 / beta)


def test_weights_that_are_exchanged_for_evaluation():
    results = []
    for sparse in (False, True):
        model = network()
        masks = sf.sparsify(model, 0.4, pattern="constant_fan_in")
        if sparse:
            model = sf.to_sparse(model, masks, batch(0)[0], force=True)
        optimizer = ScheduleFree(model.parameters())
        method = sf.RigL(sf.every(3), sf.constant(0.5))
        topology = sf.attach(model, optimizer, masks, method, fresh_steps=False)
        optimizer.eval()
        for step in range(9):
            optimizer.train()
            optimizer.zero_grad()
            loss(model, batch(step)).backward()
            optimizer.step()
            optimizer.eval()
            dense = sf.to_dense(model) if sparse else model
            for name, mask in topology.masks.items():
                assert not dense.get_parameter(name)[~mask].any()
        results.append((topology.masks, dense(batch(99)[0])))
    (ours, our_output), (theirs, their_output) = results
    assert ours == theirs
    assert ours != masks
    torch.testing.assert_close(our_output, their_output, atol=1e-4, rtol=1e-3)


def test_adapters_merged_into_sparse_weights_do_not_go_unnoticed():
    """W + BA is dense (locuslab/wanda#83): not stored so, and masked at the next step."""
    model = network()
    masks = sf.sparsify(model, 0.4, pattern="constant_fan_in")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = sf.attach(model, optimizer, masks, sf.Static())
    with torch.no_grad():
        model[0].weight += torch.randn(10, 2) @ torch.randn(2, 6)
    with pytest.raises(MaskError, match=r"'0.weight' has \d+ inactive weights that are not zero"):
        State.of(model, topology.masks)
    loss(model, batch(0)).backward()
    optimizer.step()
    assert not model[0].weight[~masks["0.weight"]].any()


def test_masks_made_again_at_one_density_do_not_shrink():
    """Masks multiplied into masks end at zero (pytorch/pytorch#65293)."""
    model = network()
    counts = [sf.sparsify(model, 0.5, pattern="magnitude").counts for _ in range(4)]
    assert counts == counts[:1] * 4


def test_a_pruned_model_is_trained_on_with_the_zeros_that_it_has():
    """(huggingface/transformers#29227)"""
    model = network()
    sf.sparsify(model, 0.4, pattern="constant_fan_in")
    masks = {name: p != 0 for name, p in model.named_parameters() if p.ndim > 1}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sf.attach(model, optimizer, masks, sf.Static())
    for step in range(3):
        optimizer.zero_grad()
        loss(model, batch(step)).backward()
        optimizer.step()
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
