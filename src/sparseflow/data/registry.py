"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from sparseflow.core.registry import Registry
from sparseflow.data.cifar import load_cifar10
from sparseflow.data.dataset import Dataset
from sparseflow.data.imagenet import load_imagenet
from sparseflow.data.mnist import load_mnist


@dataclass(frozen=True)
class DataSource:
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


DATA: Registry[DataSource] = Registry("data set", "register one with sf.register_data")


def register_data(
    name: str, *, examples: int, classes: int
) -> Callable[[Callable[[], Dataset]], Callable[[], Dataset]]:
    """Make a data set known by name, for ``data.name`` of a run.

    The decorated function takes nothing and returns a
    :class:`sparseflow.data.Dataset`; it is called once a process.

    Args:
        name: its name.
        examples: of the training split.
        classes: how many there are.

    Raises:
        SpecError: if the name is taken.

    Example:
        >>> import torch
        >>> from sparseflow.data import Dataset, Examples
        >>> @register_data("noise", examples=64, classes=2)
        ... def noise():
        ...     part = Examples(torch.randn(64, 3), torch.arange(64) % 2)
        ...     return Dataset(part, part)
        >>> len(DATA["noise"].load(None, 0).train)
        64
    """

    def add(make: Callable[[], Dataset]) -> Callable[[], Dataset]:
        once = lru_cache(maxsize=1)(make)
        source = DataSource(
            lambda limit, _: once().first(limit), examples, classes, augmented=False
        )
        DATA.add(name, source, make)
        return make

    return add


register_data("mnist", examples=60_000, classes=10)(load_mnist)
DATA.add(
    "cifar10",
    DataSource(lambda limit, _: load_cifar10(limit), 50_000, 10, augmented=True),
    load_cifar10,
)
DATA.add(
    "imagenet",
    DataSource(load_imagenet, 1_281_167, 1000, augmented=True, resized=True),
    load_imagenet,
)
