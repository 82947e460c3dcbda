"""A weight under a topology: masked dense, or a truly sparse layer; one interface for both."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.errors import TopologyError
from sparseflow.core.functional import Recorded, RowGradient
from sparseflow.core.layouts import padding_rows
from sparseflow.core.parallel import Ranks, is_sharded, local, part_like, whole
from sparseflow.core.parameters import SparseWeight, named_weights, sparse_weights
from sparseflow.core.select import find
from sparseflow.masks import Masks
from sparseflow.masks.entries import Bits, Entry, Places

Slots = MutableMapping[str, Any]
"""What an optimiser keeps for one parameter."""


class LastGrad:
    """Remembers which ``.grad`` the last backward pass left behind.

    A ``.grad`` that is another tensor does not continue it: the pass
    was thrown away (by ``zero_grad`` after a step that GradScaler skipped,
    say), and its gradient with it. ``DistributedDataParallel`` may put a view
    of a bucket in its place after the pass; so what is there when the next
    gradient arrives is what counts. For a sharded weight nothing arrives:
    ``fully_shard`` adds to ``.grad`` in place, by itself. A ``.grad`` of zeros
    was thrown away too, by ``zero_grad(set_to_none=False)``.
    """

    def __init__(self) -> None:
        """Know of no pass."""
        self._grad: weakref.ref[Tensor] | None = None

    def note(self, grad: Tensor | None) -> None:
        """Remember this one."""
        self._grad = None if grad is None else weakref.ref(grad)

    def goes_on(self, grad: Tensor) -> bool:
        """Say whether this is the tensor remembered."""
        return self._grad is not None and self._grad() is grad


class MaskedWeight:
    """A dense parameter whose inactive entries are held at zero.

    One that is sharded is masked where it lies, each rank its part; for an
    update weight and gradient are gathered, layer by layer.

    Attributes:
        name: the parameter's name.
        parameter: the weight itself.
        collecting: whether dense gradients of backward passes are added up.
        aside: values that live on though the forward pass leaves them out; None where
            the parameter holds all there is.
        padding: row of an embedding that stands for padding, and has no connections.
    """

    def __init__(self, name: str, parameter: nn.Parameter, padding: int | None = None) -> None:
        """Look after a parameter, without a mask so far."""
        self.name, self.parameter, self.padding = name, parameter, padding
        self.collecting = False
        self._kept: Tensor
        self._beyond: Tensor | None = None
        self._dense: Tensor | None = None
        self.aside: Tensor | None = None
        self._last = LastGrad()

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.parameter.shape

    def held(self, mask: Entry) -> Bits:
        """Return a mask as this weight needs it."""
        return Bits(mask.mask().to(self.parameter.device))

    def install(self, mask: Entry, state: Slots, stored: Entry | None = None) -> None:
        """Take a new mask; :meth:`products` then make it true of weight and state.

        Args:
            mask: of the forward pass.
            state: what the optimiser keeps.
            stored: where weights, gradients and state live on; by default in the mask.
        """
        del state
        forward = part_like(mask.mask(), self.parameter)
        self._kept = forward if stored is None else part_like(stored.mask(), self.parameter)
        self._beyond = None if stored is None else self._kept & ~forward
        self._inactive = ~self._kept
        self._multiplier = self._kept.to(self.parameter.dtype)
        if self.parameter.grad is not None:
            local(self.parameter.grad).masked_fill_(self._inactive, 0)

    def products(self, state: Slots) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield weight and state, each with its multiplier after a step."""
        for tensor in (self.parameter, *state.values()):
            if isinstance(tensor, Tensor) and tensor.shape == self.shape:
                yield local(tensor), self._multiplier.to(tensor.dtype)

    def set_aside(self) -> None:
        """Leave in the parameter what the forward pass uses, and keep the rest."""
        if self._beyond is not None and self.aside is None:
            values = local(self.parameter.detach())
            self.aside = torch.where(self._beyond, values, 0)
            values.masked_fill_(self._beyond, 0)

    def bring_back(self) -> None:
        """Put back into the parameter what was set aside."""
        if self.aside is not None:
            local(self.parameter.detach()).add_(self.aside)
            self.aside = None

    def collect(self, on: bool) -> None:
        """Start collecting the gradients of the coming passes, or stop; forget the last ones."""
        self.collecting, self._dense = on, None

    def arriving(self, gradient: Tensor) -> None:
        """Note which ``.grad`` the coming gradient is added to."""
        del gradient
        self._last.note(_left(self.parameter.grad) if self.collecting else None)

    def accumulated(self, parameter: Tensor) -> None:
        """Mask ``.grad``, which a backward pass has just filled."""
        grad = parameter.grad
        if grad is None:
            return
        if grad.layout != torch.strided:
            raise TopologyError(f"{self.name} has a {grad.layout} gradient; masks need a dense one")
        if self.collecting:
            self._add(grad)
        local(grad).masked_fill_(self._inactive, 0)

    def _add(self, grad: Tensor) -> None:
        """Add up the dense gradient; active entries of ``.grad`` are already sums."""
        if self._dense is not None and self._last.goes_on(grad):
            local(self._dense).masked_fill_(self._kept, 0).add_(local(grad))
        else:
            self._dense = grad.detach().clone()
        self._last.note(grad)

    def collected(self) -> Tensor | None:
        """The dense gradient of the passes collected, or None if there were none."""
        return self._dense

    is_dense = True

    def read(self, mask: Entry) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Values of the active connections, and weight and mask as dense tensors."""
        weight = whole(self.parameter.detach())
        return weight.reshape(-1)[mask.indices()], (weight, mask.mask())


class SparseValues:
    """The values of a truly sparse layer, which move with their connections.

    Attributes:
        name: name of the weight in the dense model.
        parameter: the layer's values.
    """

    padding = None  # embeddings have no sparse form

    def __init__(self, name: str, layer: SparseWeight) -> None:
        """Look after a layer."""
        self.name, self.parameter = name, layer.values
        self._layer = layer
        self._recording: list[Any] | None = None
        self._pass: list[Any] = []
        self._passes: list[Any] = []
        self._last = LastGrad()

    @property
    def shape(self) -> torch.Size:
        """Shape of the dense weight."""
        return self._layer.shape

    def indices(self) -> Tensor:
        """Sorted flat positions of the values that there are."""
        return self._layer.indices()

    def held(self, mask: Entry) -> Places:
        """Return a mask as this weight needs it."""
        return Places(mask.indices().to(self.parameter.device), self.shape)

    def install(self, mask: Entry, state: Slots, stored: Entry | None = None) -> None:
        """Take a new topology: values, gradient and state move with their connections.

        Connections that are new start at zero, with clean state.
        """
        del stored  # refused when attached
        old, new = self.indices(), mask.indices()
        if torch.equal(old, new):
            return
        where, stays = find(old, new)

        def moved(tensor: Tensor) -> Tensor:
            after = tensor.new_zeros(len(new))
            after[where[stays]] = tensor[stays]
            return after

        grad, values = self.parameter.grad, moved(self.parameter.detach())
        for key, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.shape == old.shape:
                state[key] = moved(tensor)
        self._layer.set_topology(new, values)
        self.parameter.grad = None if grad is None else moved(grad)

    def products(self, state: Slots) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield nothing: there are no inactive values."""
        del state
        return iter(())

    def collect(self, on: bool) -> None:
        """Start recording the coming passes, or stop; forget the last ones."""
        self._recording = self._layer.record = [] if on else None
        self._pass, self._passes = [], []

    def arriving(self, gradient: Tensor) -> None:
        """Set aside what this backward pass recorded, just before ``.grad`` is filled.

        Under ``torch.autograd.grad`` it is not filled, and that pass does not count.
        """
        del gradient
        if self._recording is not None and self._layer.record is self._recording:
            self._last.note(_left(self.parameter.grad))
            self._pass = self._recording
            self._recording = self._layer.record = []

    def accumulated(self, parameter: Tensor) -> None:
        """Keep what the backward pass that has just filled ``.grad`` recorded.

        It may continue the last pass, see :class:`LastGrad`.
        """
        grad = parameter.grad
        if grad is None or self._recording is None:
            return
        if not self._last.goes_on(grad):
            self._passes = []
        self._last.note(grad)
        self._passes += self._pass
        self._pass = []

    def collected(self) -> RowGradient:
        """The dense gradient of the passes recorded, by rows."""
        return Recorded(self._layer, [(None, self._passes)])

    is_dense = False

    def read(self, mask: Entry) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Values of the active connections; there are no dense tensors."""
        positions, wanted = self.indices(), mask.indices()
        values = self.parameter.detach()
        if torch.equal(positions, wanted):
            return values, None
        return values[find(wanted, positions)[0]], None

    def set_aside(self) -> None:
        """Do nothing: the layer holds what its forward pass uses."""

    def bring_back(self) -> None:
        """Do nothing."""


def _left(grad: Tensor | None) -> Tensor | None:
    """What earlier passes left in ``.grad``; None if that is nothing."""
    return None if grad is None or not bool(grad.any()) else grad


Weight = MaskedWeight | SparseValues


def weights_under(model: nn.Module, masks: Masks) -> dict[str, Weight]:
    """Look after the weights that the masks name.

    Raises:
        MaskError: if the masks do not fit the model.
    """
    masks.check(model)
    named, layers = named_weights(model), sparse_weights(model)
    padding = padding_rows(model)
    return {
        name: SparseValues(name, layers[name])
        if name in layers
        else MaskedWeight(name, named[name], padding.get(id(named[name])))
        for name in masks
    }


def held(weights: Mapping[str, Weight], masks: Masks) -> Masks:
    """Hold every mask as its weight needs it, on its device."""
    return Masks({name: weight.held(masks.entry(name)) for name, weight in weights.items()})


def by_rows(weight: Weight, found: Tensor | RowGradient | None, ranks: Ranks) -> RowGradient:
    """A dense gradient by rows, its mean over ranks; zeros if there is none."""
    if isinstance(found, Tensor) and is_sharded(found):  # such a gradient is a mean already
        return lambda rows: whole(found)[rows]
    if isinstance(found, Tensor):
        return lambda rows: ranks.mean(found[rows])
    if found is not None:
        return lambda rows: ranks.mean(found(rows))

    def zeros(rows: slice) -> Tensor:
        own, shape = weight.parameter, (rows.stop - rows.start, *weight.shape[1:])
        return ranks.mean(torch.zeros(shape, dtype=own.dtype, device=own.device))

    return zeros
