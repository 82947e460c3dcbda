"""How far sets of weights, and their masks, are from each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from sparseflow.core.errors import MeasureError
from sparseflow.core.parameters import SPARSE_STATE
from sparseflow.masks.positions import comparable
from sparseflow.measure.states import State, check_finite, check_same, real

Square = Float64[np.ndarray, "n n"]


@dataclass(frozen=True)
class Distance:
    """Distance between two states over the parameters they share.

    Attributes:
        l2: L2 norm of the difference.
        cosine: 1 minus the cosine of the angle between them; NaN if one is zero.
    """

    l2: float
    cosine: float


@dataclass(frozen=True, eq=False)
class Distances:
    """Distances between every two of ``n`` states: symmetric, the diagonal zero.

    Attributes:
        labels: the states' labels, in the order of rows and columns.
        l2: L2 norm of the difference of the weights, (n, n).
        cosine: 1 minus the cosine of the angle between the weights, in [0, 2];
            NaN where one of the two is all zero.
        hamming: share of the maskable positions where the masks differ; None
            without masks.
        jaccard: 1 - |A ∩ B| / |A ∪ B| over the active positions, 0 for two
            empty masks; None without masks.
    """

    labels: tuple[str, ...]
    l2: Square
    cosine: Square
    hamming: Square | None = None
    jaccard: Square | None = None


def distance(a: State, b: State, *, only: Iterable[str] | None = None) -> Distance:
    """L2 and cosine distance between two states with the same names and shapes.

    Weights of truly sparse models are compared by position, with those of dense
    ones too (:func:`~sparseflow.masks.positions.comparable`).

    Tensors of whole numbers (counters such as ``num_batches_tracked``) are left
    out; complex ones count by both parts. A weight that is not finite makes both
    distances NaN, so that a training that diverged can be recorded.

    Args:
        a: one state: name -> tensor.
        b: the other.
        only: names to compare; all by default.

    Raises:
        MeasureError: if names or shapes differ.

    >>> distance({"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])})
    Distance(l2=5.0, cosine=1.0)
    """
    named = _comparable({"the first": a, "the second": b}, only)
    l2, cosine = _weight_distances(named, _weights(named))
    return Distance(float(l2[0, 1]), float(cosine[0, 1]))


@torch.no_grad()
def distances(
    states: Mapping[str, State] | Sequence[State],
    masks: Mapping[str, State] | Sequence[State] | None = None,
    *,
    only: Iterable[str] | None = None,
) -> Distances:
    """L2, cosine and mask distances between every two states of one architecture.

    Differences are summed in float64, pair by pair, and never taken from dot
    products, in which near states would cancel. Cosine uses
    1 - cos = (‖a - b‖² - (‖a‖ - ‖b‖)²) / (2 ‖a‖ ‖b‖), exact for near states too.

    Tensors of whole numbers are left out. Batch
    norm's running statistics are floating point: pass ``only`` the names of
    ``model.named_parameters()`` to compare weights alone. Those of truly sparse
    models are compared by position.

    Args:
        states: label -> state, or a sequence, labelled "0", "1", ...
        masks: the masks of each state: a mapping with the same labels, or a
            sequence in the same order.
        only: names of the tensors to compare; all by default.

    Raises:
        MeasureError: if there are fewer than two states, if two have different
            architectures (the first tensor that differs is named), if a weight is
            not finite, or the masks do not go with the states.

    Example:
        >>> states = {"a": {"w": torch.zeros(2)}, "b": {"w": torch.tensor([3.0, 4.0])}}
        >>> masks = {"a": {"w": torch.tensor([True, False])}, "b": {"w": torch.ones(2).bool()}}
        >>> result = distances(states, masks)
        >>> result.l2.tolist(), float(result.hamming[0, 1]), float(result.jaccard[0, 1])
        ([[0.0, 5.0], [5.0, 0.0]], 0.5, 0.5)
    """
    named = _labelled(states)
    if len(named) < 2:
        raise MeasureError(f"a distance needs two states or more, not {len(named)}")
    named = _comparable(named, only)
    weights = _weights(named)
    check_finite(named, weights)
    l2, cosine = _weight_distances(named, weights)
    hamming, jaccard = _mask_distances(named, masks) if masks is not None else (None, None)
    return Distances(tuple(named), l2, cosine, hamming, jaccard)


def _comparable(named: dict[str, State], only: Iterable[str] | None) -> dict[str, State]:
    """The states by position, cut down to the names asked for, all of one architecture."""
    named = {**comparable(named)}
    if only is not None:
        named = _restricted(named, list(only))
    check_same(named)
    return named


def _weights(named: Mapping[str, State]) -> list[str]:
    first, *_ = named.values()
    names = [
        name for name, tensor in first.items() if tensor.is_floating_point() or tensor.is_complex()
    ]
    if not names:
        raise MeasureError("the states hold no floating-point or complex tensor to compare")
    return names


@torch.no_grad()
def _weight_distances(named: Mapping[str, State], weights: list[str]) -> tuple[Square, Square]:
    """L2 and cosine distances."""
    first, *_ = named.values()
    n, device = len(named), first[weights[0]].device
    squares = torch.zeros(n, n, dtype=torch.float64, device=device)
    norms = torch.zeros(n, dtype=torch.float64, device=device)
    for name in weights:
        rows = torch.stack([real(s[name]).flatten().to(device) for s in named.values()])
        squares += torch.stack([(rows - row).square().sum(1) for row in rows])
        norms += rows.square().sum(1)
    lengths = norms.sqrt()
    product = lengths[:, None] * lengths
    cosine = (squares - (lengths[:, None] - lengths).square()) / (2 * product)
    cosine = torch.where(product > 0, cosine.clamp(0, 2), float("nan")).fill_diagonal_(0)
    return _array(squares.sqrt()), _array(cosine)


def _labelled(items: Mapping[str, State] | Sequence[State]) -> dict[str, State]:
    if isinstance(items, Mapping):
        return dict(items)
    return {str(i): item for i, item in enumerate(items)}


def _restricted(named: dict[str, State], names: list[str]) -> dict[str, State]:
    values, first = SPARSE_STATE[0], next(iter(named.values()))
    # The values of a sparse layer stand under its weight's name.
    weights = {name: name.removesuffix(values) + "weight" for name in names}
    names = [n if n in first or weights[n] not in first else weights[n] for n in names]
    for label, state in named.items():
        for name in names:
            if name not in state:
                raise MeasureError(f"state {label!r} has no tensor {name!r}")
    return {label: {n: state[n] for n in names} for label, state in named.items()}


def _mask_distances(named: dict[str, State], masks: Any) -> tuple[Square, Square]:
    given = _labelled(masks)
    if isinstance(masks, Mapping) and set(given) != set(named):
        raise MeasureError(
            f"the masks are labelled {', '.join(sorted(given))} "
            f"and the states {', '.join(sorted(named))}"
        )
    if len(given) != len(named):
        raise MeasureError(f"there are {len(named)} states and {len(given)} sets of masks")
    if not isinstance(masks, Mapping):
        given = dict(zip(named, given.values(), strict=True))
    ordered = {f"the masks of {label}": given[label] for label in named}
    check_same(ordered)
    first, *_ = ordered.values()
    differ = torch.zeros(len(named), len(named), dtype=torch.long)
    both = differ.clone()
    for name in first:
        rows = torch.stack([mask[name].flatten().cpu().bool() for mask in ordered.values()])
        differ += torch.stack([(rows ^ row).sum(1) for row in rows])
        both += torch.stack([(rows & row).sum(1) for row in rows])
    size = sum(mask.numel() for mask in first.values())
    differ, both = differ.double(), both.double()
    return _array(differ / max(size, 1)), _array(differ / (differ + both).clamp(min=1))


def _array(tensor: Tensor) -> Square:
    return tensor.double().cpu().numpy()
