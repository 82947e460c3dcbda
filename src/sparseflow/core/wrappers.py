"""Modules that stand for another one."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def bare(model: nn.Module) -> nn.Module:
    """Return the module inside ``DistributedDataParallel``, ``torch.compile``, ``AveragedModel``.

    Masks go by its names, so that those of one fit the other. Any other module is
    returned as it is.
    """
    while True:
        if isinstance(model, DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):
            model = inside  # known by its attribute: importing its class starts the compiler
        else:
            return model
