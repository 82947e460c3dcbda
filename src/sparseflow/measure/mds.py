"""Distances between solutions drawn as a map (multidimensional scaling)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from sparseflow.core.errors import MeasureError
from sparseflow.core.optional import need
from sparseflow.core.random import generator
from sparseflow.measure.distance import Distances

DEFAULT_STARTS = 16

Points = Float64[np.ndarray, "n dimensions"]


@dataclass(frozen=True, eq=False)
class Map:
    """Points whose distances come as near as they can to the given ones.

    Attributes:
        labels: what each point stands for.
        points: coordinates, (n, dimensions), in the unit of the distances;
            centred, the axes in order of decreasing variance.
        stress: √(Σ (δ - d)² / Σ δ²) over pairs, δ the given distances and d
            those on the map: from 0, a perfect map, to 1.
    """

    labels: tuple[str, ...]
    points: Points
    stress: float


def mds(
    distances: Distances | np.ndarray,
    *,
    dimensions: int = 2,
    seed: int = 0,
    starts: int = DEFAULT_STARTS,
) -> Map:
    """Draw a map of points from the distances between them: metric MDS.

    scikit-learn's SMACOF minimises the raw stress Σ (δ - d)² from the classical
    solution and from random starts; the best is refined. The stress given back
    is Kruskal's stress-1 of the map at its best scale; scikit-learn's normalised
    stress divides by the map's own distances instead and is s / √(1 - s²).
    Equal input gives equal output: axes are principal axes, and on each the
    point farthest from 0 has a positive coordinate.

    Args:
        distances: a :class:`Distances`, of which ``l2`` is taken, or any
            symmetric matrix of distances such as its ``jaccard``.
        dimensions: of the map.
        seed: of the random starts.
        starts: how many solutions to start from, the classical one included.

    Raises:
        MeasureError: if there are fewer than 3 points, or the matrix is not
            square, symmetric, finite, non-negative and zero on its diagonal.
        SparseflowError: if scikit-learn is not installed.

    Example:
        >>> square = np.array([[0, 3, 5], [3, 0, 4], [5, 4, 0.0]])
        >>> drawn = mds(square)
        >>> drawn.points.shape, round(drawn.stress, 6)
        ((3, 2), 0.0)
    """
    labels, given = _matrix(distances)
    if dimensions < 1 or starts < 1:
        raise MeasureError(f"dimensions={dimensions} and starts={starts} must be 1 or more")
    scale = given.max()
    if scale == 0:
        return Map(labels, np.zeros((len(labels), dimensions)), 0.0)
    unit = given / scale
    smacof = need("sklearn.manifold", extra="measure").smacof

    def solve(start: Points, eps: float, steps: int) -> Points:
        points, _ = smacof(
            unit, init=start, n_init=1, max_iter=steps, eps=eps, normalized_stress=False
        )
        return points

    tries = [solve(s, 1e-6, 300) for s in _starts(unit, dimensions, seed, starts)]
    best = min(tries, key=lambda points: _stress(unit, points))
    best = solve(best, 1e-11, 3_000)
    return Map(labels, _canonical(best) * scale, _stress(unit, best))


def _matrix(distances: Distances | np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    if isinstance(distances, Distances):
        labels, given = distances.labels, distances.l2
    else:
        given = np.asarray(distances, dtype=np.float64)
        labels = tuple(str(i) for i in range(len(given)))
    if given.ndim != 2 or given.shape[0] != given.shape[1]:
        raise MeasureError(f"distances form a square matrix; this one has shape {given.shape}")
    if len(given) < 3:
        raise MeasureError(f"a map needs at least 3 points, not {len(given)}")

    def refuse(wrong: Any, what: str) -> None:
        if wrong.any():
            i, j = np.argwhere(wrong)[0]
            raise MeasureError(
                f"the distance from {labels[i]} to {labels[j]} is {given[i, j]:.6g}: {what}"
            )

    refuse(~np.isfinite(given), "it must be finite")
    refuse(given < 0, "it must not be negative")
    refuse(np.diag(np.diag(given)) != 0, "it must be 0")
    refuse(
        np.abs(given - given.T) > 1e-9 * given.max(),
        "it differs from that in the other direction, but distances are symmetric",
    )
    return labels, (given + given.T) / 2


def _starts(unit: np.ndarray, dimensions: int, seed: int, count: int) -> list[Points]:
    stream = generator(seed, "mds")
    shape = (count - 1, len(unit), dimensions)
    drawn = torch.rand(shape, generator=stream, dtype=torch.float64).numpy()
    return [_classical(unit, dimensions), *drawn]


def _classical(unit: np.ndarray, dimensions: int) -> Points:
    """Torgerson's solution: eigenvectors of the doubly centred squared distances."""
    n = len(unit)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-centre @ unit**2 @ centre / 2)
    count = min(dimensions, n)
    top = values[::-1][:count].clip(min=0)
    points = np.zeros((n, dimensions))
    points[:, :count] = vectors[:, ::-1][:, :count] * np.sqrt(top)
    return points


def _stress(given: np.ndarray, points: Points) -> float:
    between = np.linalg.norm(points[:, None] - points, axis=-1)
    return float(np.sqrt(((given - between) ** 2).sum() / (given**2).sum()))


def _canonical(points: Points) -> Points:
    centred = points - points.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    turned = np.zeros_like(centred)
    turned[:, : len(axes)] = centred @ axes.T
    # Rounded, so that of two points equally far out the first decides.
    far = np.abs(turned).round(9).argmax(0)
    signs = np.where(turned[far, np.arange(turned.shape[1])] < 0, -1.0, 1.0)
    return turned * signs
