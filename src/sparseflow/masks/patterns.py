"""Patterns: how the active weights of one layer are chosen. Every count is exact."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from sparseflow.core.errors import MaskError, unknown
from sparseflow.core.parameters import Layer
from sparseflow.core.select import top_k
from sparseflow.masks.permutation import first_of_permutation

Pattern = Callable[[Layer, int, torch.Generator], Tensor]


def random(layer: Layer, k: int, generator: torch.Generator) -> Bool[Tensor, "*w"]:
    """Exactly ``k`` active weights, every subset equally likely."""
    places = first_of_permutation(layer.capacity, k, generator)
    if layer.padding is not None:  # drawn among the other rows: step over it
        width = layer.shape[1:].numel()
        places = places + width * (places >= layer.padding * width)
    return _scatter(places, layer)


def magnitude(layer: Layer, k: int, generator: torch.Generator) -> Bool[Tensor, "*w"]:
    """The ``k`` weights of largest magnitude."""
    del generator
    return top_k(layer.without_padding(layer.values().abs(), -1.0), k)


def uneven(spread: float = 1.5) -> Pattern:
    """Deliberately uneven over output neurons, for the paper's figure 1.

    Each neuron has odds exp(spread · z) with z standard normal, and the ``k``
    connections are drawn without replacement with these odds (Gumbel top-k:
    the largest of log-odds plus Gumbel noise). ``spread=0`` has the distribution of
    :func:`random`.
    """

    def pattern(layer: Layer, k: int, generator: torch.Generator) -> Bool[Tensor, "*w"]:
        rows = layer.neurons(torch.empty(layer.shape))
        odds = spread * torch.randn(len(rows), 1, generator=generator)
        gumbel = -torch.log(torch.empty_like(rows).exponential_(generator=generator))
        return layer.from_neurons(top_k(_apart(layer, odds + gumbel, -math.inf), k))

    return pattern


def constant_fan_in(layer: Layer, k: int, generator: torch.Generator) -> Bool[Tensor, "*w"]:
    """The same number of inputs for every neuron, up to one: ``k`` in all.

    The neurons with one more are chosen at random.
    """
    shape = layer.neurons(torch.empty(layer.shape, device="meta")).shape
    keys = torch.rand(shape, generator=generator)
    fan, rest = divmod(k, len(keys))
    fans = torch.full((len(keys), 1), fan)
    fans[torch.randperm(len(keys), generator=generator)[:rest]] += 1
    # Of each key within its neuron: a random permutation.
    rank = _apart(layer, keys, math.inf).argsort(1).argsort(1)
    return layer.from_neurons(rank < fans)


def shuffled(
    mask: Bool[Tensor, "*w"], generator: torch.Generator, padding: int | None = None
) -> Bool[Tensor, "*w"]:
    """The same number of active weights at random positions, outside of a padding row."""
    if padding is not None:
        rows = torch.arange(len(mask)) != padding
        moved = torch.zeros_like(mask)
        moved[rows] = shuffled(mask[rows], generator)
        return moved
    order = torch.randperm(mask.numel(), generator=generator)
    return mask.flatten().cpu()[order].reshape(mask.shape).to(mask.device)


def _apart(layer: Layer, rows: Tensor, fill: float) -> Tensor:
    """Scores of :meth:`Layer.neurons` with the padding row's put aside."""
    if layer.padding is None:
        return rows
    return layer.neurons(layer.without_padding(layer.from_neurons(rows), fill))


def _scatter(indices: Tensor, layer: Layer) -> Tensor:
    mask = torch.zeros(layer.size, dtype=torch.bool)
    mask[indices] = True
    return mask.reshape(layer.shape)


PATTERNS: dict[str, Pattern] = {
    "random": random,
    "magnitude": magnitude,
    "uneven": uneven(),
    "constant_fan_in": constant_fan_in,
}


def find_pattern(pattern: str | Pattern) -> Pattern:
    """Return the pattern of this name, or the function itself.

    Raises:
        MaskError: if the name is unknown.
    """
    if not isinstance(pattern, str):
        return pattern
    if pattern not in PATTERNS:
        raise MaskError(unknown("mask pattern", pattern, PATTERNS))
    return PATTERNS[pattern]
