"""How many weights each layer keeps, so that the total is met exactly.

Densities are real numbers, counts are integers whose sum is the rounded total.
Fractions are rounded by largest remainder, so no layer is off by more than one
weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import torch

from sparseflow.core.errors import MaskError, unknown
from sparseflow.core.parameters import Layer
from sparseflow.core.select import top_k

ALLOCATIONS = ("uniform", "er", "erk", "magnitude")


def allocate(
    layers: Mapping[str, Layer], density: float | Mapping[str, float], allocation: str = "erk"
) -> dict[str, int]:
    """Compute the number of active weights of each layer.

    Args:
        layers: the layers from :func:`sparseflow.maskable`.
        density: share of weights to keep over all layers, or one for each layer
            by name (``allocation`` is then ignored).
        allocation: ``uniform`` (the same density everywhere); ``er``,
            Erdős–Rényi (density of a layer proportional to (in + out) / (in · out),
            Mocanu et al. 2018); ``erk``, with kernel sizes (Evci et al. 2020,
            section 3); ``magnitude`` (the largest weights over all layers).

    Raises:
        MaskError: if a density is outside [0, 1] or the allocation is unknown.

    Example:
        >>> from torch import nn
        >>> from sparseflow import maskable
        >>> net = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 10))
        >>> allocate(maskable(net), 0.1, "uniform")
        {'0.weight': 500, '1.weight': 50}
        >>> allocate(maskable(net), 0.1, "erk")
        {'0.weight': 393, '1.weight': 157}
    """
    if isinstance(density, Mapping):
        return _explicit(layers, density)
    check_density(density)
    total = round(density * sum(layer.size for layer in layers.values()))
    if allocation == "uniform":
        wanted = {n: density * layer.size for n, layer in layers.items()}
    elif allocation in ("er", "erk"):
        scores = {n: _erdos_renyi(layer, allocation == "erk") for n, layer in layers.items()}
        wanted = _solve(layers, scores, density)
    elif allocation == "magnitude":
        return _by_magnitude(layers, total)
    else:
        raise MaskError(unknown("allocation", allocation, ALLOCATIONS))
    return _round(wanted, {n: layer.capacity for n, layer in layers.items()}, total)


def check_density(density: float, name: str = "density") -> None:
    """Raise a MaskError unless ``density`` is a number in [0, 1]."""
    if not isinstance(density, Real) or math.isnan(density) or not 0 <= density <= 1:
        raise MaskError(f"{name}={density!r} is not between 0 and 1")


def _explicit(layers: Mapping[str, Layer], density: Mapping[str, float]) -> dict[str, int]:
    if set(density) != set(layers):
        unmatched = sorted(set(density) ^ set(layers))
        raise MaskError(f"explicit densities and layers differ in: {', '.join(unmatched)}")
    for name, value in density.items():
        check_density(value, f"density of {name}")
    return {
        name: min(round(density[name] * layer.size), layer.capacity)
        for name, layer in layers.items()
    }


def _erdos_renyi(layer: Layer, kernel: bool) -> float:
    rows, columns, *window = layer.shape
    if kernel:
        return (rows + columns + sum(window)) / (rows * columns * math.prod(window))
    return (rows + columns) / (rows * columns)


def _solve(
    layers: Mapping[str, Layer], scores: Mapping[str, float], density: float
) -> dict[str, float]:
    """Counts for densities proportional to scores.

    Layers whose density would pass 1 become dense, and the others share what remains:
    repeated, since that raises the others' densities.
    """
    sizes = {n: layer.size for n, layer in layers.items()}
    most = {n: layer.capacity for n, layer in layers.items()}
    full: set[str] = set()
    while True:
        budget = density * sum(sizes.values()) - sum(most[n] for n in full)
        weight = sum(scores[n] * sizes[n] for n in sizes if n not in full)
        factor = budget / weight if weight else 0.0
        over = {n for n in sizes if n not in full and factor * scores[n] * sizes[n] > most[n]}
        if not over:
            break
        full |= over
    return {n: float(most[n]) if n in full else factor * scores[n] * sizes[n] for n in sizes}


def _by_magnitude(layers: Mapping[str, Layer], total: int) -> dict[str, int]:
    flats = [x.without_padding(x.values().abs(), -1.0).flatten() for x in layers.values()]
    flat, total = torch.cat(flats), min(total, sum(x.capacity for x in layers.values()))
    chosen = top_k(flat, total).split([layer.size for layer in layers.values()])
    return {name: int(c.sum()) for name, c in zip(layers, chosen, strict=True)}


def _round(wanted: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    total -= round(sum(max(w - sizes[n], 0.0) for n, w in wanted.items()))
    # A count that is an integer up to rounding must not lose a weight to floor.
    counts = {n: min(math.floor(w + 1e-9), sizes[n]) for n, w in wanted.items()}
    by_remainder = sorted(wanted, key=lambda n: counts[n] - wanted[n])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] = min(counts[name] + 1, sizes[name])
    return counts
