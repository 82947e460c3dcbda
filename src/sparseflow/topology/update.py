"""The pure drop-and-grow: it knows masks and scores, no optimiser and no method."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseflow.core.errors import TopologyError
from sparseflow.core.select import top_k


def drop_and_grow(
    mask: Bool[Tensor, "*w"],
    drop_score: Float[Tensor, "*w"],
    grow_score: Float[Tensor, "*w"],
    k: int,
) -> Bool[Tensor, "*w"]:
    """Drop the ``k`` active connections of lowest score, then grow the ``k`` highest.

    Growth chooses among all connections that are inactive after the drop, so
    one just dropped may come back at once (it then keeps its value and its
    optimiser state). The number of active connections never changes.

    Args:
        mask: the active connections.
        drop_score: the lowest among active ones go; other entries are ignored.
        grow_score: the highest among inactive ones come; others are ignored.
        k: how many, from 0 to the number of active connections.

    Raises:
        TopologyError: if ``k`` is out of range or a score that counts is NaN.

    Example:
        >>> mask = torch.tensor([True, True, False, False])
        >>> drop = torch.tensor([0.1, 0.9, 0.0, 0.0])
        >>> grow = torch.tensor([0.0, 0.0, 1.0, 2.0])
        >>> drop_and_grow(mask, drop, grow, 1).tolist()
        [False, True, False, True]
    """
    active = int(mask.sum())
    if not 0 <= k <= active:
        raise TopologyError(f"cannot drop k={k} of {active} active connections")
    if k == 0:
        return mask.clone()
    try:
        kept = top_k(drop_score.masked_fill(~mask, -torch.inf), active - k) & mask
        updated = kept | top_k(grow_score.masked_fill(kept, -torch.inf), k)
    except ValueError as error:
        raise TopologyError(f"cannot update a mask: {error}") from error
    if int(updated.sum()) != active:
        raise TopologyError("a score is infinite: drop and growth scores must be finite")
    return updated


def prune_to(mask: Bool[Tensor, "*w"], score: Float[Tensor, "*w"], k: int) -> Bool[Tensor, "*w"]:
    """Keep the ``k`` active connections of highest score; never revive one.

    Raises:
        TopologyError: if ``k`` is negative or a score that counts is NaN.
    """
    if k < 0:
        raise TopologyError(f"cannot keep k={k} connections")
    try:
        return top_k(score.masked_fill(~mask, -torch.inf), min(k, int(mask.sum()))) & mask
    except ValueError as error:
        raise TopologyError(f"cannot prune a mask: {error}") from error
