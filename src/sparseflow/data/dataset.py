"""Data sets: two splits of examples, and how examples are augmented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sparseflow.core.transfer import sent

Batch = tuple[Tensor, Tensor]
"""Inputs of a model, and classes."""

Where = slice | Int[Tensor, " n"]


@runtime_checkable
class Split(Protocol):
    """Examples by number, returned in batches."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def __getitem__(self, where: Where) -> Batch:
        """Return inputs and classes of these examples, without augmentation."""
        ...

    def varied(self, where: Int[Tensor, " n"], chances: Float[Tensor, "n chances"]) -> Batch:
        """Return the same examples, augmented.

        ``chances`` are uniform numbers in [0, 1), the only source of randomness.
        """
        ...

    def order(self, stream: torch.Generator) -> Int[Tensor, " n"]:
        """Return the order of one epoch, all examples once, drawn from ``stream``."""
        ...

    def to(self, device: torch.device | str) -> Split:
        """Return the split with its batches on a device."""
        ...

    def first(self, count: int | None) -> Split:
        """Return the first ``count`` examples, or all."""
        ...


CHANCES = 6
"""Number of uniform numbers that the augmentation of one example may use."""


@runtime_checkable
class Variation(Protocol):
    """Augmentation as a pure function of inputs and uniform numbers."""

    def __call__(
        self, x: Float[Tensor, " n *shape"], chances: Float[Tensor, "n chances"]
    ) -> Float[Tensor, " n *shape"]:
        """Augment each input."""
        ...


def as_it_is(x: Tensor) -> Tensor:
    """Return the inputs unchanged: the default of :class:`Examples`."""
    return x


@dataclass(frozen=True, eq=False)
class Examples:
    """A split held in memory as tensors.

    Attributes:
        x: stored inputs.
        y: their classes.
        prepare: turns stored inputs into inputs of a model.
        vary: augmentation of prepared inputs, or None.
    """

    x: Shaped[Tensor, " n *shape"]
    y: Int[Tensor, " n"]
    prepare: Callable[[Tensor], Tensor] = as_it_is
    vary: Variation | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.y)

    def __getitem__(self, where: Where) -> Batch:
        """Inputs and classes of these examples."""
        if isinstance(where, Tensor):
            where = sent(where, self.x.device)
        return self.prepare(self.x[where]), self.y[where]

    def varied(self, where: Int[Tensor, " n"], chances: Float[Tensor, "n chances"]) -> Batch:
        """Return the same, augmented."""
        x, y = self[where]
        return (x if self.vary is None else self.vary(x, sent(chances, x.device))), y

    def order(self, stream: torch.Generator) -> Int[Tensor, " n"]:
        """Return a random permutation."""
        return torch.randperm(len(self), generator=stream)

    def to(self, device: torch.device | str) -> Examples:
        """Return the split on a device."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def first(self, count: int | None) -> Examples:
        """Return the first ``count`` examples, or all."""
        return replace(self, x=self.x[:count], y=self.y[:count])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification data set.

    Attributes:
        train: examples to train on; probe batches are cut from their start.
        test: examples to evaluate on.
    """

    train: Split
    test: Split

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set with its batches on a device."""
        return Dataset(self.train.to(device), self.test.to(device))

    def first(self, count: int | None) -> Dataset:
        """Return the first ``count`` examples of each split, or all."""
        return Dataset(self.train.first(count), self.test.first(count))


def in_batches(split: Split, size: int = 250) -> Iterator[Batch]:
    """Yield a split in order; the last batch may be shorter."""
    for start in range(0, len(split), size):
        yield split[start : start + size]
