"""What a method sees of one weight when its connections change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparseflow.core.errors import SparseflowError, TopologyError
from sparseflow.core.functional import RowGradient
from sparseflow.core.schedules import Moment

BLOCK = 1 << 20
"""Places of a truly sparse weight that are looked at together, at most (one row at least)."""


class NotFiniteError(SparseflowError):
    """A growth gradient that is not finite; caught where updates are made."""


@dataclass(frozen=True, eq=False)
class View:
    """Some connections of one weight: the active ones, or all places of a block of rows.

    Attributes:
        name: the parameter's name.
        weight: values of these connections, zero where inactive.
        mask: which of them are active.
        moment: step and learning-rate ratio.
        generator: the random stream of this weight and update (on the CPU).
        source: makes :attr:`gradient`, if the method asks for one.
    """

    name: str
    weight: Float[Tensor, "*w"]
    mask: Bool[Tensor, "*w"]
    moment: Moment
    generator: torch.Generator
    source: Callable[[], Tensor] | None = None

    @cached_property
    def gradient(self) -> Float[Tensor, " ..."]:
        """The dense gradient of these connections.

        Raises:
            TopologyError: if the method names no source for it.
        """
        if self.source is None:
            raise TopologyError(
                f"no gradient for {self.name}: the method's growth_gradient is None"
            )
        return self.source()


@dataclass(frozen=True, eq=False)
class Connections:
    """One weight at an update: its active connections, and all its places block by block.

    Attributes:
        name: the parameter's name.
        shape: shape of the dense weight.
        indices: sorted flat positions of the active connections.
        values: their weights.
        moment: step and learning-rate ratio.
        generator: the random stream of this weight and update (on the CPU).
        whole: weight and mask as dense tensors, which are then the only block;
            None where there are none.
        rows_gradient: the dense gradient by rows, if the method asks for it.
    """

    name: str
    shape: torch.Size
    indices: Int64[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]
    moment: Moment
    generator: torch.Generator
    whole: tuple[Tensor, Tensor] | None = None
    rows_gradient: RowGradient | None = None
    _read: set[int] = field(default_factory=set, init=False)

    @property
    def size(self) -> int:
        """Number of places, active or not."""
        return self.shape.numel()

    @property
    def active(self) -> View:
        """The active connections, in index order."""
        mask = torch.ones_like(self.values, dtype=torch.bool)
        source = None if self.rows_gradient is None else self._active_gradient
        return View(self.name, self.values, mask, self.moment, self.generator, source)

    def blocks(self) -> Iterator[View]:
        """All places, in consecutive blocks of rows."""
        for rows in self._rows():
            source = None if self.rows_gradient is None else partial(self._gradient, rows)
            weight, mask = self._block(rows)
            yield View(self.name, weight, mask, self.moment, self.generator, source)

    def check_gradient(self) -> None:
        """Look at what the method did not read of the gradient.

        Raises:
            NotFiniteError: if it is not finite.
        """
        if self.rows_gradient is not None:
            for rows in self._rows():
                if rows.start not in self._read:
                    self._gradient(rows)

    def _rows(self) -> Iterator[slice]:
        count, width = self.shape[0], self.shape[1:].numel()
        step = count if self.whole is not None else max(1, BLOCK // max(width, 1))
        for start in range(0, count, max(step, 1)):
            yield slice(start, min(start + step, count))

    def _span(self, rows: slice) -> tuple[int, slice]:
        """First place of these rows, and where their active connections stand."""
        width = self.shape[1:].numel()
        ends = torch.tensor([rows.start * width, rows.stop * width], device=self.indices.device)
        first, last = torch.searchsorted(self.indices, ends).tolist()
        return rows.start * width, slice(first, last)

    def _block(self, rows: slice) -> tuple[Tensor, Tensor]:
        if self.whole is not None:
            return self.whole
        start, inside = self._span(rows)
        places = self.indices[inside] - start
        weight = self.values.new_zeros((rows.stop - rows.start, *self.shape[1:]))
        mask = torch.zeros_like(weight, dtype=torch.bool)
        weight.view(-1)[places] = self.values[inside]
        mask.view(-1)[places] = True
        return weight, mask

    def _gradient(self, rows: slice) -> Tensor:
        assert self.rows_gradient is not None
        block = self.rows_gradient(rows)
        if not bool(torch.isfinite(block).all()):
            raise NotFiniteError(f"the growth gradient of {self.name} is not finite")
        self._read.add(rows.start)
        return block

    def _active_gradient(self) -> Tensor:
        parts = []
        for rows in self._rows():
            start, inside = self._span(rows)
            parts.append(self._gradient(rows).reshape(-1)[self.indices[inside] - start])
        return torch.cat(parts)
