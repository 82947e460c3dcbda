"""The beginning of a random permutation, in memory proportional to that beginning."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

MANY = 1 << 24
"""Length from which on a permutation is not made only for its beginning."""
_OTHER = (2**32 - 1) // 20  # length from which on torch.randperm uses another algorithm
_AT_ONCE = 1 << 22


def first_of_permutation(n: int, k: int, generator: torch.Generator) -> Int64[Tensor, " k"]:
    """The first ``k`` numbers of ``torch.randperm(n)`` with this generator, in memory O(k).

    Torch swaps the numbers 0 to n - 1 with one random number each; here the swaps are
    traced back from the first ``k`` places alone. For small ``n`` or large ``k`` the
    whole permutation is made; otherwise the generator advances by a different number
    of draws than ``torch.randperm`` would.
    """
    if n < MANY or 4 * k > n:
        return torch.randperm(n, generator=generator)[:k]
    return _forward(n, k, generator) if n < _OTHER else _inside_out(n, k, generator)


def _forward(n: int, k: int, generator: torch.Generator) -> Tensor:
    """Step i swaps place i with place i + draw % (n - i), a draw of 32 bits (Fisher-Yates)."""
    pairs = _words(-(-k // 2), generator)
    draws = torch.stack([pairs >> 32, pairs], 1).flatten()[:k] & 0xFFFFFFFF
    step = torch.arange(k)
    with_place = draws % (n - step) + step
    order = with_place.argsort(stable=True)
    before = _step_before(with_place, order)
    # What place i holds at step i: if an earlier step j swapped with place i, what place j
    # held at step j (of several, the last counts); otherwise i. A step may swap with itself.
    places = with_place[order]
    last = torch.searchsorted(places, step, right=True) - 1
    writer = torch.where(
        (last >= 0) & (places[last.clamp(min=0)] == step), order[last.clamp(min=0)], -1
    )
    writer = torch.where(writer == step, before, writer)
    held = _roots(torch.where(writer >= 0, writer, step))
    return torch.where(before >= 0, held[before.clamp(min=0)], with_place)


def _inside_out(n: int, k: int, generator: torch.Generator) -> Tensor:
    """Step i moves what is at draw % (i + 1) to place i and puts i there, 64 bits a draw."""
    step = torch.arange(k)
    source = _remainder(_words(k, generator), step + 1)
    before = _step_before(source, source.argsort(stable=True))
    # What step i moves: the number of the last earlier step that wrote to the same place; if
    # there is none, what that place received at its own step.
    root = _roots(torch.where(before >= 0, step, source))
    moved = torch.where(before[root] >= 0, before[root], root)
    latest = torch.full((k,), -1).scatter_reduce_(0, source, step, "amax")
    for begin in range(k, n, _AT_ONCE):
        steps = torch.arange(begin, min(begin + _AT_ONCE, n))
        to = _remainder(_words(len(steps), generator), steps + 1)
        latest.scatter_reduce_(0, to[to < k], steps[to < k], "amax")
    return torch.where(latest >= 0, latest, moved)


def _words(count: int, generator: torch.Generator) -> Tensor:
    """Draws of 64 bits, the upper half drawn first."""
    return torch.empty(count, dtype=torch.int64).random_(-(2**63), None, generator=generator)


def _remainder(words: Tensor, by: Tensor) -> Tensor:
    """Remainders of words read as unsigned."""
    wrapped = ((2**62 % by) * 4) % by  # of 2 ** 64, which a negative word lacks
    return (words % by + torch.where(words < 0, wrapped, 0)) % by


def _step_before(key: Tensor, order: Tensor) -> Tensor:
    """The last earlier step with the same key, or -1; ``order`` sorts the keys stably."""
    before = torch.full_like(key, -1)
    same = key[order][1:] == key[order][:-1]
    before[order[1:][same]] = order[:-1][same]
    return before


def _roots(pointer: Tensor) -> Tensor:
    """Follow each pointer to its end, by pointer doubling."""
    while True:
        further = pointer[pointer]
        if torch.equal(further, pointer):
            return pointer
        pointer = further
