"""Modules that wrap another one."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


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
