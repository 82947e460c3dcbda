"""The wrapper that Hugging Face's accelerate puts around optimisers."""

import pytest
import torch
from helpers.small import batch, loss, network

import sparseflow as sf

accelerate = pytest.importorskip("accelerate")


def test_steps_that_its_wrapper_skips_while_gradients_accumulate_do_not_count():
    """(huggingface/accelerate#2828, microsoft/dp-transformers#23)"""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    ends = []
    for wrapped in (True, False):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        masks = sf.sparsify(model, 0.4, pattern="constant_fan_in")
        if wrapped:
            model, optimizer = accelerator.prepare(model, optimizer)
        topology = sf.attach(model, optimizer, masks, sf.RigL(sf.every(1), sf.constant(0.5)))
        for step in range(6):
            if wrapped:
                with accelerator.accumulate(model):
                    accelerator.backward(loss(model, batch(step)))
                    optimizer.step()
                    optimizer.zero_grad()
                continue
            (loss(model, batch(step)) / 2).backward()
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()
        ends.append(topology)
    ours, theirs = ends
    assert (ours.step, ours.updates) == (theirs.step, theirs.updates) == (3, 3)
    assert ours.masks == theirs.masks
