"""How far one set of weights is from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """Distance between two states over the parameters they share.

    Attributes:
        l2: L2 norm of the difference.
        cosine: 1 minus the cosine of the angle between them; NaN if one is zero.
    """

    l2: float
    cosine: float


@torch.no_grad()
def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Distance:
    """L2 and cosine distance between two states with the same names and shapes.

    Raises:
        ValueError: if names or shapes differ.

    >>> distance({"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])})
    Distance(l2=5.0, cosine=1.0)
    """
    if set(a) != set(b):
        raise ValueError(f"the states differ in: {', '.join(sorted(set(a) ^ set(b)))}")
    if any(a[n].shape != b[n].shape for n in a):
        raise ValueError("the states hold tensors of different shapes under one name")
    x = torch.cat([a[n].detach().flatten() for n in a]).double()
    y = torch.cat([b[n].detach().flatten().to(x.device) for n in a]).double()
    norms = float(x.norm() * y.norm())
    cosine = 1 - float(x @ y) / norms if norms else float("nan")
    return Distance(float((x - y).norm()), cosine)
