"""Batches by seeded permutation: batch t is a function of t alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from sparseflow.core.random import generator


class Batches:
    """An endless stream of batches, cut from one permutation after another.

    ``batches[step]`` is the same whether or not earlier ones were asked for, so
    an interrupted run goes on exactly where it was. Batches run across the end
    of an epoch; none is short.

    Example:
        >>> x = torch.arange(10.0)
        >>> batches = Batches(x, x.long(), size=4, seed=0)
        >>> seen = torch.cat([batches[t][0] for t in range(5)])
        >>> sorted(seen[:10].tolist()) == x.tolist()
        True
    """

    def __init__(
        self, x: Tensor, y: Tensor, size: int, seed: int, stream: tuple[str | int, ...] = ("order",)
    ) -> None:
        """Draw from the stream ``(*stream, epoch)`` under ``seed``."""
        if not 1 <= size <= len(x):
            raise ValueError(f"batch size {size} is not between 1 and the {len(x)} examples")
        self._x, self._y, self._size = x, y, size
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: torch.randperm(len(x), generator=generator(seed, *stream, epoch))
        )

    def indices(self, step: int) -> Int[Tensor, " size"]:
        """Examples of batch ``step`` (0 is the first)."""
        first = step * self._size
        epoch, offset = divmod(first, len(self._x))
        taken = self._permutation(epoch)[offset : offset + self._size]
        missing = self._size - len(taken)
        if missing:
            taken = torch.cat([taken, self._permutation(epoch + 1)[:missing]])
        return taken

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of batch ``step``."""
        chosen = self.indices(step).to(self._x.device)
        return self._x.index_select(0, chosen), self._y.index_select(0, chosen)
