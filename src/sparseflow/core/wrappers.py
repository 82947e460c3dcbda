"""Modules and optimisers that wrap another one, and copies of modules."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree


def bare(model: nn.Module) -> nn.Module:
    """Return the module inside ``DistributedDataParallel``, ``torch.compile``, ``AveragedModel``.

    Masks use the names of the module inside, so they fit the model with and without
    its wrapper. Any other module is returned unchanged.
    """
    while True:
        if isinstance(model, DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):
            model = inside  # recognised by its attribute: importing its class starts the compiler
        else:
            return model


def bare_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser inside accelerate's wrapper, which skips steps and has no hooks."""
    wraps = any(base.__module__ == "accelerate.optimizer" for base in type(optimizer).__mro__)
    return optimizer.optimizer if wraps else optimizer  # type: ignore[attr-defined]


def copy_of(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a model, also one that holds activations of its last pass, which are copied detached.

    Args:
        model: any module.
        memo: as for :func:`copy.deepcopy`.
    """
    for module in model.modules():
        held = (value for name, value in vars(module).items() if name not in _PARTS)
        for leaf in pytree.tree_leaves([*held, dict(module._buffers)]):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                memo.setdefault(id(leaf), leaf.detach().clone())
    return copy.deepcopy(model, memo)


_PARTS = frozenset({"_parameters", "_buffers", "_modules"})
