"""Positions of connections: flat in the dense weight, and as rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseflow.core.errors import KernelError, MaskError


def active(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted flat positions and values of a dense weight's active entries.

    Raises:
        MaskError: if the mask has another shape than the weight.
    """
    if mask.shape != weight.shape:
        raise MaskError(
            f"a mask must match the weight's shape {tuple(weight.shape)}, has {tuple(mask.shape)}"
        )
    indices = mask.reshape(-1).nonzero().squeeze(1)
    return indices, weight.detach().reshape(-1)[indices]


def rows_and_columns(indices: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Row pointers and columns (int32) of sorted flat positions."""
    if indices.ndim != 1 or indices.dtype != torch.long:
        raise KernelError(
            f"indices must be a vector of int64, are {indices.dtype} with {indices.ndim} axes"
        )
    if indices.numel() and (int(indices[0]) < 0 or int(indices[-1]) >= shape.numel()):
        raise KernelError(
            f"indices must lie in 0 to {shape.numel() - 1} for a weight {tuple(shape)}, run from "
            f"{int(indices[0])} to {int(indices[-1])}"
        )
    if bool((indices[1:] <= indices[:-1]).any()):
        raise KernelError("indices must be strictly ascending: sorted, no connection twice")
    width = max(shape[1:].numel(), 1)
    edges = torch.arange(shape[0] + 1, device=indices.device) * width
    pointers = torch.searchsorted(indices, edges).to(torch.int32)
    return pointers, (indices % width).to(torch.int32)


def no_connections() -> tuple[Tensor, Tensor]:
    """Positions and values of a weight without connections."""
    return torch.empty(0, dtype=torch.int64), torch.empty(0)
