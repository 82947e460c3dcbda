"""The pure drop-and-grow: it knows connections and scores, no optimiser and no method.

Connections are sorted flat positions, and growth scores come in blocks of
rows, so that nothing of the weight's size is needed. A bool mask goes through
the same code, as one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparseflow.core.errors import TopologyError
from sparseflow.core.select import mask_at, merged, positions_of, top_k, top_k_of_blocks


def regrown(
    active: Int64[Tensor, " n"],
    drop_score: Float[Tensor, " n"],
    grow_scores: Iterable[Float[Tensor, " ..."]],
    drop: int,
    grow: int | None = None,
) -> Int64[Tensor, " m"]:
    """Drop the active connections of lowest score, then grow those of the highest.

    Growth chooses among all connections that are inactive after the drop, so
    one just dropped may come back at once (it then keeps its value and its
    optimiser state). Equal scores are taken in index order.

    Args:
        active: sorted flat positions of the active connections.
        drop_score: their scores: the lowest go.
        grow_scores: scores of all places of the weight, in consecutive blocks:
            the highest among inactive ones come, others are ignored.
        drop: number of connections to drop, from 0 to that of the active ones.
        grow: number of connections to grow; as many as are dropped by default.

    Returns:
        Sorted flat positions of the new connections.

    Raises:
        TopologyError: if a number is out of range or a score that counts is NaN.

    Example:
        >>> active, grow = torch.tensor([0, 1]), torch.tensor([0.0, 0.0, 1.0, 2.0])
        >>> regrown(active, torch.tensor([0.1, 0.9]), grow.split(2), 1).tolist()
        [1, 3]
    """
    count = drop if grow is None else grow
    if not 0 <= drop <= len(active):
        raise TopologyError(f"cannot drop k={drop} of {len(active)} active connections")
    if count < 0:
        raise TopologyError(f"cannot grow {count} connections")
    if drop == count == 0:
        return active
    try:
        stays = top_k(drop_score, len(active) - drop)
        kept = active[stays]
        if count == 0:
            return kept
        grown, scores = top_k_of_blocks(_outside(kept, grow_scores), count)
    except ValueError as error:
        raise TopologyError(f"cannot update a mask: {error}") from error
    if bool(torch.isneginf(drop_score[stays]).any()) or bool(torch.isneginf(scores).any()):
        raise TopologyError("a score is infinite: drop and growth scores must be finite")
    return merged(kept, grown)


def drop_and_grow(
    mask: Bool[Tensor, "*w"],
    drop_score: Float[Tensor, "*w"],
    grow_score: Float[Tensor, "*w"],
    k: int,
) -> Bool[Tensor, "*w"]:
    """Drop the ``k`` active connections of lowest score, then grow the ``k`` highest.

    :func:`regrown` for a bool mask: its growth may bring back at once what was
    just dropped.

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
    active = positions_of(mask)
    after = regrown(active, drop_score.reshape(-1)[active], [grow_score], k)
    return mask_at(after, mask.shape)


def pruned(
    active: Int64[Tensor, " n"], score: Float[Tensor, " n"], k: int
) -> Int64[Tensor, " kept"]:
    """Keep the ``k`` active connections of highest score, or all if they are fewer.

    Raises:
        TopologyError: if ``k`` is negative or a score is NaN.

    >>> pruned(torch.tensor([2, 5, 7]), torch.tensor([1.0, 3.0, 3.0]), 1).tolist()
    [5]
    """
    if k < 0:
        raise TopologyError(f"cannot keep k={k} connections")
    try:
        return active[top_k(score, min(k, len(active)))]
    except ValueError as error:
        raise TopologyError(f"cannot prune a mask: {error}") from error


def prune_to(mask: Bool[Tensor, "*w"], score: Float[Tensor, "*w"], k: int) -> Bool[Tensor, "*w"]:
    """Keep the ``k`` active connections of highest score; never revive one.

    Raises:
        TopologyError: if ``k`` is negative or a score that counts is NaN.
    """
    active = positions_of(mask)
    return mask_at(pruned(active, score.reshape(-1)[active], k), mask.shape)


def _outside(
    kept: Int64[Tensor, " n"], blocks: Iterable[Float[Tensor, " ..."]]
) -> Iterator[Float[Tensor, " block"]]:
    """Lower the scores of kept connections below all others."""
    start = 0
    for block in blocks:
        scores = block.reshape(-1).clone()
        stop = start + len(scores)
        cuts = torch.searchsorted(kept, torch.tensor([start, stop], device=kept.device)).tolist()
        scores[kept[cuts[0] : cuts[1]] - start] = -torch.inf
        start = stop
        yield scores
