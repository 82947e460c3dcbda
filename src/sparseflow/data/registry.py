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
    """A data set before it is loaded.

    Attributes:
        load: function of the number of examples of each split (None for all) and of the
            side of the images, which is ignored unless ``resized``.
        examples: number of training examples.
        classes: number of classes.
        augmented: whether its examples can be augmented.
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
