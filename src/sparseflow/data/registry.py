"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparseflow.data.cifar import load_cifar10
from sparseflow.data.mnist import load_mnist
from sparseflow.data.split import Dataset


@dataclass(frozen=True)
class Source:
    """What is known of a data set before it is loaded.

    Attributes:
        load: loads it, or the first so many examples of each split.
        examples: to train on.
        classes: how many there are.
        augmented: whether its examples can be varied.
    """

    load: Callable[[int | None], Dataset]
    examples: int
    classes: int
    augmented: bool


DATA: dict[str, Source] = {
    "mnist": Source(lambda limit: load_mnist().first(limit), 60_000, 10, augmented=False),
    "cifar10": Source(load_cifar10, 50_000, 10, augmented=True),
}
