"""Batches as trees of tensors: how many examples they hold, and how they are cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, IterableDataset

from sparseflow.core.errors import MeasureError


class Part(NamedTuple):
    """Some examples, and how much their loss counts."""

    batch: Any
    weight: float


def mapped(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to every tensor of a batch, in a fixed order; the rest is as it was.

    A batch is any pytree. Mappings that are none, as a tokenizer returns, keep their type.

    >>> mapped({"x": torch.ones(2), "name": "probe"}, len)
    {'x': 2, 'name': 'probe'}
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if isinstance(leaf, MutableMapping):
            changed = copy.copy(leaf)
            changed.update({key: mapped(value, function) for key, value in leaf.items()})
            return changed
        return leaf

    return pytree.tree_map(one, batch)


def tensors_of(batch: Any) -> list[Tensor]:
    """List the tensors of a batch, in the order of :func:`mapped`."""
    tensors: list[Tensor] = []
    mapped(batch, tensors.append)
    return tensors


def batch_size(batch: Any, axis: int = 0) -> int:
    """Return how many examples a batch holds: the length of its first tensor along the axis.

    Raises:
        MeasureError: if no tensor has that axis.
    """
    for tensor in tensors_of(batch):
        if tensor.ndim > axis:
            return tensor.shape[axis]
    raise MeasureError(
        "a batch must hold at least one tensor with a first dimension"
        if not axis
        else f"a batch must hold at least one tensor with an axis {axis}"
    )


def batches(data: Any) -> list[Any]:
    """List the batches of ``data``: one batch, or an iterable of batches.

    A tensor, a tuple, a mapping or any other registered pytree is one batch;
    a list, a generator, a ``DataLoader`` are many. A list of two tensors of
    equal length is refused: it may be meant as one batch of inputs and targets.

    Raises:
        MeasureError: if there is none, or for such a list, or a data set.

    >>> len(batches((torch.ones(4, 2), torch.ones(4)))), len(batches([torch.ones(4, 2)] * 3))
    (1, 3)
    """
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise MeasureError(
            f"the data are a {type(data).__name__}, not a batch: pass one batch, or a DataLoader"
        )
    single = isinstance(data, Tensor | tuple | Mapping) or not isinstance(data, Iterable)
    listed = [data] if single else list(data)
    if isinstance(data, list) and _looks_like_inputs_and_targets(data):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in data)
        raise MeasureError(
            f"the data are a list of two tensors of shapes {shapes}: pass a tuple (x, y) for one "
            "batch of inputs and targets, or iter([...]) for two batches of inputs alone"
        )
    if not listed:
        raise MeasureError("the data hold no batch")
    return listed


def _looks_like_inputs_and_targets(items: list[Any]) -> bool:
    lengths = [item.shape[:1] for item in items if isinstance(item, Tensor)]
    return len(items) == len(lengths) == 2 and lengths[0] == lengths[1]


def split(batch: Any, size: int, axis: int = 0) -> list[Any]:
    """Cut a batch into chunks of ``size`` examples, the last one shorter.

    Smaller chunks keep activations in cache: on a CPU 1,000 MNIST images take
    half the time in chunks of 250. Tensors without the axis, or of another
    length along it, are not per example and go whole into every chunk.
    """
    count = batch_size(batch, axis)
    return [
        _each(batch, axis, lambda t, start=start: t.narrow(axis, start, min(size, count - start)))
        for start in range(0, count, size)
    ]


def spread(batch: Any, count: int, axis: int = 0) -> Any:
    """Take ``count`` examples of a batch, evenly spaced from the first to the last."""
    places = torch.linspace(0, batch_size(batch, axis) - 1, count).long()
    return _each(batch, axis, lambda tensor: tensor.index_select(axis, places.to(tensor.device)))


def _each(batch: Any, axis: int, cut: Callable[[Tensor], Tensor]) -> Any:
    """Cut the tensors that have an entry for every example."""
    count = batch_size(batch, axis)
    return mapped(batch, lambda t: cut(t) if t.ndim > axis and t.shape[axis] == count else t)
