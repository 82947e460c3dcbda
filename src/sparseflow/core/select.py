"""Exact selection: k means exactly k, and ties are resolved alike on every machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor


def top_k(scores: Shaped[Tensor, "*shape"], k: int) -> Bool[Tensor, "*shape"]:
    """Mark the ``k`` largest scores; of equal scores the first in index order.

    Takes linear time: a selection finds the threshold, and only ties at the
    threshold are resolved by index. (``torch.topk`` alone leaves their order open.)

    Args:
        scores: of any shape, without NaN; ``-inf`` is allowed and comes last.
        k: number to mark, from 0 to ``scores.numel()``.

    Raises:
        ValueError: if ``k`` is out of range or a score is NaN.

    >>> top_k(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2).tolist()
    [False, True, True, False]
    """
    flat = scores.reshape(-1)
    _check_count(k, flat.numel())
    _refuse_nan(flat)
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if k == flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = torch.topk(flat, k, sorted=False).values.min()
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    chosen[ties[: k - int(chosen.sum())]] = True
    return chosen.reshape(scores.shape)


def top_k_of_blocks(
    blocks: Iterable[Float[Tensor, " ..."]], k: int
) -> tuple[Int64[Tensor, " k"], Float[Tensor, " k"]]:
    """Find the ``k`` largest scores of a long vector that arrives in blocks.

    Chooses what :func:`top_k` chooses from the whole vector, but holds no more than
    one block and ``2 k`` scores in memory.

    Args:
        blocks: consecutive parts, of any shape, without NaN.
        k: number to find, from 1 to the number of all scores.

    Returns:
        Sorted flat positions in the whole vector, and their scores.

    Raises:
        ValueError: if ``k`` is out of range or a score is NaN.

    >>> blocks = torch.tensor([1.0, 3.0, 3.0, 0.0, 3.0]).split(2)
    >>> top_k_of_blocks(blocks, 2)[0].tolist()
    [1, 2]
    """
    places: list[Tensor] = []
    scores: list[Tensor] = []
    start, held, floor = 0, 0, None
    for block in blocks:
        flat = block.reshape(-1)
        if floor is None:
            better = top_k(flat, min(k, flat.numel()))
        else:
            _refuse_nan(flat)
            better = flat > floor  # strictly: the earlier of two equal scores wins
        new = better.nonzero().squeeze(1)
        places.append(new + start)
        scores.append(flat[new])
        start, held = start + flat.numel(), held + len(new)
        # Selecting only once 2 k candidates are held keeps the total cost linear.
        if held >= (k if floor is None else 2 * k):
            places, scores = _best(places, scores, k)
            held, floor = k, scores[0].min()
    _check_count(k, start)
    (positions,), (best,) = _best(places, scores, k)
    return positions, best


def positions_of(mask: Bool[Tensor, "*shape"]) -> Int64[Tensor, " k"]:
    """Return the sorted flat positions of the True entries.

    >>> positions_of(torch.eye(2, dtype=torch.bool)).tolist()
    [0, 3]
    """
    return mask.reshape(-1).nonzero().squeeze(1)


def mask_at(positions: Int64[Tensor, " k"], shape: Sequence[int]) -> Bool[Tensor, "*shape"]:
    """Return the mask with True at these flat positions: the inverse of :func:`positions_of`."""
    mask = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool, device=positions.device)
    mask[positions] = True
    return mask.reshape(tuple(shape))


def merged(a: Int64[Tensor, " n"], b: Int64[Tensor, " m"]) -> Int64[Tensor, " both"]:
    """Merge two sorted vectors of positions.

    NumPy's stable sort takes linear time for two ascending runs.

    >>> merged(torch.tensor([1, 5]), torch.tensor([0, 7])).tolist()
    [0, 1, 5, 7]
    """
    both = np.sort(torch.cat([a, b]).cpu().numpy(), kind="stable")
    return torch.from_numpy(both).to(a.device)


def find(
    wanted: Int64[Tensor, " k"], among: Int64[Tensor, " n"]
) -> tuple[Int64[Tensor, " k"], Bool[Tensor, " k"]]:
    """Look up sorted positions among others: the index of each, and whether it is there.

    >>> find(torch.tensor([1, 4, 9]), torch.tensor([1, 2, 9]))
    (tensor([0, 2, 2]), tensor([ True, False,  True]))
    """
    if not len(among):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    where = torch.searchsorted(among, wanted).clamp_(max=len(among) - 1)
    return where, among[where] == wanted


def _check_count(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"k={k} is not between 0 and the {n} scores")


def _best(places: list[Tensor], scores: list[Tensor], k: int) -> tuple[list[Tensor], list[Tensor]]:
    positions, values = torch.cat(places), torch.cat(scores)
    if len(values) > k:
        chosen = top_k(values, k)
        positions, values = positions[chosen], values[chosen]
    return [positions], [values]


def _refuse_nan(flat: Tensor) -> None:
    if flat.is_floating_point() and torch.isnan(flat).any():
        raise ValueError("a score is NaN: scores must be ordered")
