"""Exact selection: k ones means k ones, and ties fall the same way everywhere."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor


def top_k(scores: Shaped[Tensor, "*shape"], k: int) -> Bool[Tensor, "*shape"]:
    """Mark the ``k`` largest scores; equal scores are taken in index order.

    Runs in linear time: a selection finds the threshold and only ties
    at the threshold are resolved one by one.

    Args:
        scores: any shape, no NaN; ``-inf`` is allowed and comes last.
        k: how many to mark, from 0 to ``scores.numel()``.

    Raises:
        ValueError: if ``k`` is out of range or a score is NaN.

    >>> top_k(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2).tolist()
    [False, True, True, False]
    """
    flat = scores.reshape(-1)
    if not 0 <= k <= flat.numel():
        raise ValueError(f"k={k} is not between 0 and the {flat.numel()} scores")
    if flat.is_floating_point() and torch.isnan(flat).any():
        raise ValueError("a score is NaN: there is no order to select by")
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if k == flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = torch.topk(flat, k, sorted=False).values.min()
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    chosen[ties[: k - int(chosen.sum())]] = True
    return chosen.reshape(scores.shape)
