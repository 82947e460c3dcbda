"""Batches by seeded permutation: batch t depends on t and the seed alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from sparseflow.core.random import generator
from sparseflow.data.dataset import CHANCES, Batch, Split


class Batches:
    """An endless stream of batches, cut from one permutation after another.

    ``batches[step]`` does not depend on which batches were read before, so an
    interrupted run resumes exactly. A batch may span the end of an epoch; all have
    the same size. Augmentation is drawn from a stream of the step, so it depends on
    the step alone too.

    Example:
        >>> from sparseflow.data import Examples
        >>> x = torch.arange(10.0)
        >>> batches = Batches(Examples(x, x.long()), size=4, seed=0)
        >>> inputs = torch.cat([batches[t][0] for t in range(5)])
        >>> sorted(inputs[:10].tolist()) == x.tolist()
        True
    """

    def __init__(
        self,
        split: Split,
        size: int,
        seed: int,
        stream: tuple[str | int, ...] = ("order",),
        *,
        augment: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Draw from the streams ``(*stream, epoch)`` and ``(*stream, "augment", step)``.

        Args:
            split: examples.
            size: number of examples in a batch, over all ranks.
            seed: of order and augmentation.
            stream: name of the random stream.
            augment: whether examples are augmented.
            rank: which share of each batch to return.
            world: number of shares.

        Raises:
            ValueError: if there are fewer examples than ``size``, or ranks cannot share a
                batch equally.
        """
        if not 1 <= size <= len(split):
            raise ValueError(f"batch size {size} is not between 1 and the {len(split)} examples")
        if size % world or not 0 <= rank < world:
            raise ValueError(f"a batch of {size} has no equal share for rank {rank} of {world}")
        self._split, self._size, self._augment = split, size, augment
        self._seed, self._stream = seed, stream
        self._share = slice(rank * size // world, (rank + 1) * size // world)
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: split.order(generator(seed, *stream, epoch))
        )

    def shard(self, rank: int, world: int) -> Batches:
        """Return the stream of one rank's share; together, ranks get the same batches.

        Raises:
            ValueError: if that many ranks cannot share a batch equally.
        """
        return Batches(
            self._split, self._size, self._seed, self._stream,
            augment=self._augment, rank=rank, world=world,
        )  # fmt: skip

    def indices(self, step: int) -> Int[Tensor, " size"]:
        """Return the examples of batch ``step`` (0 is the first), over all ranks."""
        first = step * self._size
        epoch, offset = divmod(first, len(self._split))
        taken = self._permutation(epoch)[offset : offset + self._size]
        missing = self._size - len(taken)
        if missing:
            taken = torch.cat([taken, self._permutation(epoch + 1)[:missing]])
        return taken

    def __getitem__(self, step: int) -> Batch:
        """Return inputs and targets of this rank's share of batch ``step``."""
        where = self.indices(step)[self._share]
        if not self._augment:
            return self._split[where]
        stream = generator(self._seed, *self._stream, "augment", step)
        chances = torch.rand(self._size, CHANCES, generator=stream)
        return self._split.varied(where, chances[self._share])
