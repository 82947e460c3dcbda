"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparseflow.data.cifar import load_cifar10
from sparseflow.data.dataset import Dataset
from sparseflow.data.imagenet import load_imagenet
from sparseflow.data.mnist import load_mnist


@dataclass(frozen=True)
class Source:
    """What is known of a data set before it is loaded.

    Attributes:
        load: loads it, or the first so many examples of each split; the second
            number is the side of the images, where that can be chosen.
        examples: to train on.
        classes: how many there are.
        augmented: whether its examples can be varied.
        resized: whether the side of its images can be chosen.
    """

    load: Callable[[int | None, int], Dataset]
    examples: int
    classes: int
    augmented: bool
    resized: bool = False


DATA: dict[str, Source] = {
    "mnist": Source(lambda limit, _: load_mnist().first(limit), 60_000, 10, augmented=False),
    "cifar10": Source(lambda limit, _: load_cifar10(limit), 50_000, 10, augmented=True),
    "imagenet": Source(load_imagenet, 1_281_167, 1000, augmented=True, resized=True),
}
