"""For tests of files: tampering, and a watch over memory."""

import tracemalloc
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sparseflow as sf
from sparseflow.core.files import load_tensors, save_tensors


def tampered(path, change):
    """Rewrite a file with a checksum that fits."""
    tensors, meta = load_tensors(path)
    change(tensors, meta)
    save_tensors(path, tensors, meta)


class Largest(TorchDispatchMode):
    """Notes the most bytes of memory behind any tensor that an operation of torch returns."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


@contextmanager
def nothing_of_size(limit):
    """No tensor, and all arrays of numpy and objects together, may take so many bytes."""
    with Largest() as largest:
        torch.ones(1)  # the first operation imports much
        tracemalloc.start()
        try:
            yield
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert max(largest.bytes, peak) < limit, f"a tensor of {largest.bytes:,}, {peak:,} in all"


def wide():
    """A layer whose weight would take 36 MB, with 9,000 connections."""
    model = nn.Sequential(nn.Linear(3000, 3000, bias=False))
    masks = sf.make_masks(sf.maskable(model), 0.001)
    masks.apply(model)
    return model, masks
