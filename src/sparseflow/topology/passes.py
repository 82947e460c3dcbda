"""The dense gradient of the backward passes since the last step, tied to what a step reads.

Hooks tell which passes have filled ``.grad``. What loops do to ``.grad`` meanwhile is seen by
comparing it with what the passes left there: when the next pass arrives, and at the step.
"""

from __future__ import annotations

import weakref
from typing import Any, NoReturn

import torch
from torch import Tensor

from sparseflow.core.errors import TopologyError
from sparseflow.core.functional import Recorded, RowGradient
from sparseflow.core.parallel import Ranks, is_sharded, local, part_like, whole
from sparseflow.core.parameters import SparseWeight
from sparseflow.topology.explain import Relation, relation


class Left:
    """Which ``.grad`` the last backward pass left, and whether it was written to since."""

    def __init__(self) -> None:
        """Know of no pass."""
        self._grad: weakref.ref[Tensor] | None = None
        self._version = 0

    def note(self, grad: Tensor) -> None:
        """Remember this one, as it is."""
        self._grad, self._version = weakref.ref(grad), grad._version

    def is_still(self, grad: Tensor) -> bool:
        """Say whether this is the same tensor."""
        return self._grad is not None and self._grad() is grad

    def is_untouched(self, grad: Tensor) -> bool:
        """Say whether it has not been written to either."""
        return self.is_still(grad) and grad._version == self._version


class Passes:
    """What both executions share: whether passes go on, and how ``.grad`` was scaled.

    Attributes:
        name: of the weight.
        ranks: the processes that train the model; one alone compares at every pass.
        collecting: whether dense gradients are collected.
        lost: whether ``.grad`` holds what no pass collected explains.
        arrived: whether a pass has filled ``.grad`` since the last step.
        left: the ``.grad`` of the last pass.
    """

    def __init__(self, name: str) -> None:
        """Collect nothing so far."""
        self.name = name
        self.ranks = Ranks()
        self.collecting = self.lost = self.arrived = False
        self.left = Left()

    def filled(self, grad: Tensor) -> None:
        """Note that a backward pass has filled ``.grad``."""
        self.arrived = True
        self.left.note(grad)

    def has_left(self, grad: Tensor) -> bool:
        """Say whether this is what a backward pass since the last step has left."""
        return self.arrived and self.left.is_still(grad)

    def gives(self, grad: Tensor | None) -> bool:
        """Say whether a step has a gradient to read: zeros count if a pass has left them."""
        return grad is not None and (self.arrived or bool(grad.any()))

    def follow(
        self, grad: Tensor | None, read: Tensor, collected: Tensor | None, values: Tensor
    ) -> float:
        """The factor by which what was collected counts when another pass arrives.

        Sets :attr:`lost` where ``.grad`` cannot be explained. On several ranks it may be
        a mean over them by now: it is then compared at the step alone.

        Args:
            grad: the parameter's, before the pass.
            read: its values at the active connections.
            collected: what earlier passes gave there.
            values: the active weights.
        """
        self.lost = False
        if grad is None:
            return 0.0
        alone, left = self.ranks.size == 1, bool(read.any())
        if collected is None or not alone:
            self.lost = alone and left
            return float(collected is not None and left)
        if not left and not bool(collected.any()):  # did someone write zeros into it?
            return float(self.left.is_untouched(grad))
        follows = relation(read, collected, values)
        self.lost = follows is None
        return 0.0 if follows is None else follows.factor

    def settle(
        self, grad: Tensor, read: Tensor, collected: Tensor, values: Tensor, how: str
    ) -> Relation | None:
        """How what a step reads follows from what was collected; None if nothing is read.

        Raises:
            TopologyError: if it does not.
        """
        follows = None if self.lost else relation(read, collected, values)
        if follows is None:
            self.refuse(how)
        silent = not bool(read.any()) and not bool(collected.any())
        nothing = not self.left.is_still(grad) if silent else not follows.factor
        return None if nothing else follows

    def refuse(self, how: str) -> NoReturn:
        """Refuse a gradient whose dense form is not known."""
        raise TopologyError(
            f"the .grad of {self.name} is not that of the backward passes since the last step, and "
            f"{how}: growth needs one from loss.backward(), scaled or clipped at most, or a source "
            "of its own, grow_from=sf.probe_gradient(model, loss, batch)"
        )


class DensePasses(Passes):
    """Of a masked dense weight, whose ``.grad`` is dense until it is masked."""

    def __init__(self, name: str) -> None:
        """Collect nothing so far."""
        super().__init__(name)
        self._dense: Tensor | None = None

    def collect(self, on: bool) -> None:
        """Start collecting the coming passes, or stop; forget the last ones."""
        self.collecting, self.lost, self.arrived = on, False, False
        self._dense = None

    @torch.no_grad()
    def arriving(self, grad: Tensor | None, values: Tensor, where: Tensor) -> None:
        """Look at what earlier passes left in ``.grad``, just before the next is added."""
        if not self.collecting or is_sharded(values):
            return
        if grad is not None and self._dense is None and bool(grad[~where].any()):
            self.lost = False  # set by hand, and dense: what comes is added to it
            return
        read = values[where] if grad is None else grad[where]
        dense = None if self._dense is None else self._dense[where]
        r = self.follow(grad, read, dense, values[where])
        if not r:
            self._dense = None
        elif r != 1 and self._dense is not None:
            self._dense.mul_(r)

    @torch.no_grad()
    def add(self, grad: Tensor, where: Tensor) -> None:
        """Add up the dense gradient; active entries of ``.grad`` are already sums."""
        if is_sharded(grad) and not self.left.is_still(grad):
            self._dense = None  # fully_shard adds to .grad by itself: nothing arrives
        if self._dense is None:
            self._dense = grad.detach().clone()
        else:
            local(self._dense).masked_fill_(where, 0).add_(local(grad.detach()))

    @torch.no_grad()
    def read(self, grad: Tensor, values: Tensor, where: Tensor, unit: float) -> Tensor | None:
        """The dense gradient of what a step is about to read; None if that is nothing.

        Args:
            grad: the parameter's, masked here where it was not.
            values: the weight.
            where: its active places; those of the whole weight if that is sharded.
            unit: what the optimiser multiplies ``.grad`` by before it uses it.
        """
        everywhere, by_hand = whole(grad.detach()), "it was masked before it was set or changed"
        if bool(everywhere[~where].any()):
            if self._dense is not None and self.left.is_still(grad):
                self.refuse("it was changed in place at inactive connections")
            self._dense, self.lost = grad.detach().clone(), False
            self.left.note(grad)
            local(grad).masked_fill_(part_like(~where, grad), 0)
        elif self._dense is None and (self.ranks.size == 1 or is_sharded(grad)):
            if bool(everywhere.any()):
                self.refuse(by_hand)
            return None
        if self._dense is None:
            self._dense = torch.zeros_like(grad)
        sample = whole(self._dense)[where]
        sample = sample if is_sharded(grad) else self.ranks.mean(sample)
        weights = whole(values.detach())[where]
        follows = self.settle(grad, everywhere[where], sample, weights, by_hand)
        if follows is None:
            return None
        if follows.factor * unit != 1:
            self._dense.mul_(follows.factor * unit)
        if follows.terms:  # the gradient of active weights is whatever is read
            inside, dense = part_like(where, grad), local(self._dense)
            dense[inside] = local(grad.detach())[inside] * unit
        return self._dense


class Recording(list[Any]):
    """What one backward pass records: an entry of another pass replaces what there was.

    Passes that want other gradients than that of the values never end in a hook of theirs:
    each is told from the next by the number that autograd gives it.
    """

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._task = -1

    def append(self, entry: Any) -> None:
        """Take what a pass hands over."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self.clear()
            self._task = task
        super().append(entry)

    def taken(self) -> list[Any]:
        """Return and forget what the backward pass that runs now has recorded."""
        of_now = self._task == torch._C._current_graph_task_id()
        entries = list(self) if of_now else []
        self.clear()
        return entries


class SparsePasses(Passes):
    """Of a truly sparse layer, which never forms the dense gradient but can say how."""

    _HOW = "its layer is truly sparse, and forms no dense one"

    def __init__(self, name: str, layer: SparseWeight) -> None:
        """Record nothing so far."""
        super().__init__(name)
        self._layer = layer
        self._recording: Recording | None = None
        self._pass: list[Any] = []
        self._parts: list[tuple[float | None, list[Any]]] = []
        self._sum: Tensor | None = None

    def collect(self, on: bool) -> None:
        """Start recording the coming passes, or stop; forget the last ones."""
        self.collecting, self.lost, self.arrived = on, False, False
        self._recording = self._layer.record = Recording() if on else None
        self._pass, self._parts, self._sum = [], [], None

    @torch.no_grad()
    def arriving(self, grad: Tensor | None, values: Tensor) -> None:
        """Take what this backward pass recorded, just before ``.grad`` is filled.

        Under ``torch.autograd.grad`` it is not filled, and that pass does not count.
        """
        if self._recording is None or self._layer.record is not self._recording:
            return
        self._pass = self._recording.taken()
        self._scale(self.follow(grad, values if grad is None else grad, self._sum, values))

    def add(self, grad: Tensor) -> None:
        """Count the backward pass that has just filled ``.grad``."""
        self._parts.append((None, self._pass))
        self._pass, self._sum = [], grad.detach().clone()

    @torch.no_grad()
    def read(self, grad: Tensor, values: Tensor, unit: float) -> RowGradient | None:
        """The dense gradient, by rows, of what a step is about to read; None if nothing."""
        if self._sum is None and self.ranks.size == 1:
            if bool(grad.any()):
                self.refuse(self._HOW)
            return None
        sample = self.ranks.mean(Recorded(self._layer, self._parts).active())
        follows = self.settle(grad, grad, sample, values, self._HOW)
        if follows is None:
            return None
        self._scale(follows.factor * unit)
        recorded = Recorded(self._layer, list(self._parts))
        return recorded.with_active(grad * unit) if follows.terms else recorded

    def _scale(self, r: float) -> None:
        if not r:
            self._parts, self._sum = [], None
        elif r != 1:
            self._parts = [
                (r if share is None else r * share, entries) for share, entries in self._parts
            ]
