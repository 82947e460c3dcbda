"""What a method sees of the weights when their connections change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
        remembered: gives what the method keeps of these connections, by name.

    Example:
        >>> mask = torch.tensor([True, False])
        >>> view = View("weight", torch.tensor([0.5, 0.0]), mask, Moment(1), torch.Generator())
        >>> view.weight[view.mask].tolist()
        [0.5]
    """

    name: str
    weight: Float[Tensor, "*w"]
    mask: Bool[Tensor, "*w"]
    moment: Moment
    generator: torch.Generator
    source: Callable[[], Tensor] | None = None
    remembered: Callable[[str], Tensor] | None = None

    def state(self, key: str) -> Float[Tensor, "*w"]:
        """What the method keeps under a key, of these connections; 0 where it keeps nothing.

        Raises:
            TopologyError: if nothing is kept under that key.
        """
        if self.remembered is None:
            raise TopologyError(f"no state {key!r} for {self.name}")
        return self.remembered(key)

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
        moment: step and learning-rate ratio.
        generator: the random stream of this weight and update (on the CPU).
        read: reads the weight: the values of the active connections, and weight and
            mask as dense tensors, or None where there are none.
        is_dense: whether there are: they are then the only block.
        rows_gradient: the dense gradient by rows, if the method asks for it.
        state: what the method keeps of each connection, one number for each in the
            order of ``indices``. It moves with the connections; new ones have 0.
        dense: what the method keeps of each place, active or not, tensors of
            ``shape``. Refused where the layer is truly sparse.
        padding: row of an embedding that stands for padding, and has no connections.

    Example:
        >>> weight, active = torch.tensor([[0.5, 0.0], [0.0, -2.0]]), torch.tensor([0, 3])
        >>> def read(): return weight.flatten()[active], (weight, weight != 0)
        >>> layer = Connections("weight", weight.shape, active, Moment(1), torch.Generator(), read)
        >>> layer.size, layer.values.tolist()
        (4, [0.5, -2.0])
    """

    name: str
    shape: torch.Size
    indices: Int64[Tensor, " nnz"]
    moment: Moment
    generator: torch.Generator
    read: Callable[[], tuple[Tensor, tuple[Tensor, Tensor] | None]]
    is_dense: bool = True
    rows_gradient: RowGradient | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    padding: int | None = None
    _read: set[int] = field(default_factory=set, init=False)
    _whole: list[Tensor] = field(default_factory=list, init=False)

    @cached_property
    def _weight(self) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        return self.read()

    @property
    def values(self) -> Float[Tensor, " nnz"]:
        """Weights of the active connections."""
        return self._weight[0]

    def release(self) -> None:
        """Let go of weight and gradient, which are read again when asked for."""
        self.__dict__.pop("_weight", None)
        self._whole.clear()

    @property
    def size(self) -> int:
        """Number of places, active or not."""
        return self.shape.numel()

    @property
    def active(self) -> View:
        """The active connections, in index order."""
        mask = torch.ones_like(self.values, dtype=torch.bool)
        source = None if self.rows_gradient is None else self._active_gradient
        return View(
            self.name, self.values, mask, self.moment, self.generator, source, self._of_active
        )

    @property
    def gradient(self) -> Float[Tensor, " ..."]:
        """The whole dense gradient, of the weight's shape.

        Raises:
            TopologyError: if the method names no source for it.
        """
        if self.rows_gradient is None:
            raise TopologyError(
                f"no gradient for {self.name}: the method's growth_gradient is None"
            )
        blocks = [self._gradient(rows) for rows in self._rows()]
        return blocks[0] if self.is_dense and blocks else torch.cat(blocks)

    def blocks(self) -> Iterator[View]:
        """All places, in consecutive blocks of rows."""
        for rows in self._rows():
            source = None if self.rows_gradient is None else partial(self._gradient, rows)
            weight, mask = self._block(rows)
            of_rows = partial(self._of_rows, rows)
            yield View(self.name, weight, mask, self.moment, self.generator, source, of_rows)

    def growable(self, score: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """A block's growth scores, with those of the padding row below all others."""
        if self.padding is None:
            return score
        score = score.clone()  # the whole weight, since embeddings are never truly sparse
        score[self.padding] = -torch.inf
        return score

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
        step = count if self.is_dense else max(1, BLOCK // max(width, 1))
        for start in range(0, count, max(step, 1)):
            yield slice(start, min(start + step, count))

    def _span(self, rows: slice) -> tuple[int, slice]:
        """First place of these rows, and where their active connections stand."""
        width = self.shape[1:].numel()
        ends = torch.tensor([rows.start * width, rows.stop * width], device=self.indices.device)
        first, last = torch.searchsorted(self.indices, ends).tolist()
        return rows.start * width, slice(first, last)

    def _block(self, rows: slice) -> tuple[Tensor, Tensor]:
        if (whole := self._weight[1]) is not None:
            return whole
        start, inside = self._span(rows)
        places = self.indices[inside] - start
        weight = self.values.new_zeros((rows.stop - rows.start, *self.shape[1:]))
        mask = torch.zeros_like(weight, dtype=torch.bool)
        weight.view(-1)[places] = self.values[inside]
        mask.view(-1)[places] = True
        return weight, mask

    def _gradient(self, rows: slice) -> Tensor:
        assert self.rows_gradient is not None
        if self._whole:
            return self._whole[0]
        block = self.rows_gradient(rows)
        if not bool(torch.isfinite(block).all()):
            raise NotFiniteError(f"the growth gradient of {self.name} is not finite")
        self._read.add(rows.start)
        if self.is_dense:  # its one block: on several ranks each reading is a collective
            self._whole.append(block)
        return block

    def _active_gradient(self) -> Tensor:
        parts = []
        for rows in self._rows():
            start, inside = self._span(rows)
            parts.append(self._gradient(rows).reshape(-1)[self.indices[inside] - start])
        return torch.cat(parts)

    def _of_active(self, key: str) -> Tensor:
        if key in self.state:
            return self.state[key]
        return self._dense(key).reshape(-1)[self.indices]

    def _of_rows(self, rows: slice, key: str) -> Tensor:
        if key not in self.state:
            return self._dense(key)[rows]
        start, inside = self._span(rows)
        block = self.state[key].new_zeros((rows.stop - rows.start, *self.shape[1:]))
        block.view(-1)[self.indices[inside] - start] = self.state[key][inside]
        return block

    def _dense(self, key: str) -> Tensor:
        if key not in self.dense:
            raise TopologyError(f"the method keeps no {key!r} of {self.name}")
        return self.dense[key]


class Layers(dict[str, Connections]):
    """All weights at one moment, by parameter name.

    Attributes:
        moment: step and learning-rate ratio.
        generator: a random stream of this moment, for what is drawn over all layers.
        state: what the method keeps of the training as a whole: tensors on the CPU.

    Example:
        >>> import sparseflow as sf
        >>> class Counting(sf.SET):
        ...     def update(self, layers):
        ...         print(sum(len(layer.indices) for layer in layers.values()), "connections")
        ...         return super().update(layers)
        >>> net = torch.nn.Linear(4, 4)
        >>> masks = sf.sparsify(net, 0.5, pattern="constant_fan_in")
        >>> _ = sf.propose(Counting(), net, masks, Moment(100))
        8 connections
    """

    def __init__(
        self,
        layers: Iterable[Connections],
        moment: Moment,
        generator: torch.Generator,
        state: dict[str, Tensor],
    ) -> None:
        """Take the weights in the order of the masks."""
        super().__init__((connections.name, connections) for connections in layers)
        self.moment: Moment = moment
        self.generator: torch.Generator = generator
        self.state: dict[str, Tensor] = state
