"""The two representations of one mask: a bool tensor, or the positions of its ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sparseflow.core.errors import MaskError
from sparseflow.core.select import find, mask_at, positions_of

BLOCK = 1 << 22
"""Entries of the bool tensor that are made at a time from positions."""


@dataclass(frozen=True, eq=False)
class Bits:
    """One bool for each weight, as masked dense execution needs."""

    bits: Bool[Tensor, "*w"]

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.bits.shape

    @property
    def count(self) -> int:
        """Number of active weights."""
        return int(self.bits.sum())

    def mask(self) -> Bool[Tensor, "*w"]:
        """Return the bool tensor."""
        return self.bits

    def indices(self) -> Int64[Tensor, " k"]:
        """Return the sorted flat positions of active weights."""
        return positions_of(self.bits)

    def to(self, device: torch.device | str) -> Bits:
        """Return the same on a device."""
        return Bits(self.bits.to(device))

    def blocks(self) -> Iterator[bytes]:
        """Yield the mask as bytes, one for each weight."""
        yield self.bits.detach().cpu().contiguous().numpy().tobytes()


@dataclass(frozen=True, eq=False)
class Places:
    """The sorted flat positions of active weights, as truly sparse execution needs.

    Raises:
        MaskError: if they are not a strictly ascending int64 vector within the shape.
    """

    positions: Tensor
    shape: torch.Size

    def __post_init__(self) -> None:
        """Check the positions."""
        given, size = self.positions, self.shape.numel()
        if given.dtype != torch.int64 or given.ndim != 1:
            raise MaskError(
                f"positions are {given.dtype} of shape {tuple(given.shape)}, not an int64 vector"
            )
        object.__setattr__(self, "positions", given.contiguous())
        if not len(given):
            return
        if not bool((given[1:] > given[:-1]).all()):
            raise MaskError("positions are not strictly ascending")
        for end in (int(given[0]), int(given[-1])):
            if not 0 <= end < size:
                raise MaskError(f"position {end} is not in a weight of shape {tuple(self.shape)}")

    @property
    def count(self) -> int:
        """Number of active weights."""
        return len(self.positions)

    def mask(self) -> Bool[Tensor, "*w"]:
        """Make the bool tensor."""
        return mask_at(self.positions, self.shape)

    def indices(self) -> Int64[Tensor, " k"]:
        """Return the sorted flat positions of active weights."""
        return self.positions

    def to(self, device: torch.device | str) -> Places:
        """Return the same on a device."""
        return Places(self.positions.to(device), self.shape)

    def blocks(self) -> Iterator[bytes]:
        """Yield the mask as bytes, one for each weight, block by block."""
        positions, size = self.positions.cpu(), self.shape.numel()
        edges = torch.arange(0, size + BLOCK, BLOCK).clamp_(max=size)
        cuts = torch.searchsorted(positions, edges).tolist()
        for i, start in enumerate(edges[:-1].tolist()):
            inside = positions[cuts[i] : cuts[i + 1]] - start
            yield mask_at(inside, (int(edges[i + 1]) - start,)).numpy().tobytes()


Entry = Bits | Places


def as_tensor(entry: Entry) -> Tensor:
    """The representation itself: a bool tensor, or positions."""
    return entry.positions if isinstance(entry, Places) else entry.mask()


def same(a: Entry, b: Entry) -> bool:
    """Whether two entries are the same mask, whatever their representation."""
    if isinstance(a, Bits) and isinstance(b, Bits):
        return torch.equal(a.bits, b.bits)
    return a.shape == b.shape and torch.equal(a.indices(), b.indices())


def lost(before: Entry, after: Entry) -> int:
    """Count the connections of ``before`` that ``after`` lacks."""
    if isinstance(before, Bits) and isinstance(after, Bits):
        return int((before.bits & ~after.bits).sum())
    return int((~find(before.indices(), after.indices())[1]).sum())
