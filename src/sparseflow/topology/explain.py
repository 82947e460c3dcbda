"""How the gradient that an optimiser reads follows from the backward passes that were collected."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

CHANGE = 2.0**-8
"""Part of a gradient's norm that may stay unexplained: communication in 16 bits rounds by less."""

FEW = 4
"""Connections that four unknowns explain whatever their gradient is."""


class Relation(NamedTuple):
    """How the gradient read follows from the gradient collected.

    Attributes:
        factor: by which the collected one counts; 0 if nothing of it is read.
        terms: whether terms of the weights themselves come on top.
    """

    factor: float
    terms: bool = False


def relation(
    read: Float[Tensor, " n"], collected: Float[Tensor, " n"], values: Float[Tensor, " n"]
) -> Relation | None:
    """Explain the gradient that is read by the one that was collected.

    What may happen to ``.grad`` between backward pass and step, and leaves the gradient of
    inactive connections known:

    - a factor r, or none: unscaling, averaging, clipping by norm;
    - clipping by value, read = clamp(r · collected, -m, m), where r is that of the rest;
    - terms that vanish where weights are zero, read = r · collected + a · w + b · sign(w):
      weight decay by hand, and penalties on weights where ``collected`` lacks them.

    Args:
        read: ``.grad`` at the active connections.
        collected: what the backward passes gave there.
        values: the active weights w.

    Returns:
        The relation, or None if none of these holds.

    Example:
        >>> passes = torch.tensor([3.0, -1.0, 2.0, 0.5, 1.0])
        >>> relation(passes / 2, passes, torch.ones(5))
        Relation(factor=0.5, terms=False)
        >>> relation(passes.flip(0), passes, torch.ones(5))
    """
    if torch.equal(read, collected):
        return Relation(1.0)
    g, d, w = (t.detach().reshape(-1).double() for t in (read, collected, values))
    if not bool(torch.isfinite(g + d).all()):  # said where the gradient is looked at
        return Relation(1.0)
    if not (size := float(g.norm())):
        return Relation(0.0)
    r: float | None = float(g @ d) / (float(d @ d) or 1.0)
    r = r if _explains(g, r * d, size) else _clipped(g, d)
    return _with_terms(g, d, w) if r is None else Relation(_plain(r))


def _with_terms(g: Tensor, d: Tensor, w: Tensor) -> Relation | None:
    if len(g) <= FEW:
        return None
    terms, size = torch.stack([d, w, w.sign()], 1), float(g.norm())
    scales = terms.norm(dim=0)
    scales[scales == 0] = 1  # such a term takes no part
    shares = torch.linalg.pinv(terms / scales) @ g / scales
    if not _explains(g, terms @ shares, size):
        return None
    r = float(shares[0])
    return Relation(0.0 if abs(r) * float(d.norm()) <= CHANGE * size else _plain(r), terms=True)


def _clipped(g: Tensor, d: Tensor) -> float | None:
    """The factor under clipping by value; 1 if all entries are at the limit."""
    limit = float(g.abs().max())
    below = g.abs() < limit * (1 - 1e-6)
    inner = d[below]
    r = float(g[below] @ inner) / float(inner @ inner) if bool(inner.any()) else 1.0
    if r == 0:
        return None
    return r if _explains(g, (r * d).clamp(-limit, limit), float(g.norm())) else None


def _explains(g: Tensor, model: Tensor, size: float) -> bool:
    return float((g - model).norm()) <= CHANGE * size


def _plain(r: float) -> float:
    """A factor of 1 as it is: what is not scaled shall not be rounded."""
    return 1.0 if abs(r - 1) <= 1e-6 else r
