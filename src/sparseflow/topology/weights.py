"""A weight under a topology: masked dense, or a truly sparse layer; one interface for both."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparseflow.core.errors import MaskError, TopologyError
from sparseflow.core.functional import RowGradient
from sparseflow.core.layouts import padding_rows
from sparseflow.core.parallel import Ranks, is_sharded, local, part_like, whole
from sparseflow.core.parameters import SparseWeight, named_weights, sparse_weights
from sparseflow.core.select import find
from sparseflow.masks import Masks
from sparseflow.masks.entries import Bits, Entry, Places
from sparseflow.topology.passes import DensePasses, SparsePasses

Slots = MutableMapping[str, Any]
"""What an optimiser keeps for one parameter."""


class MaskedWeight:
    """A dense parameter whose inactive entries are held at zero.

    One that is sharded is masked where it lies, each rank its part; for an
    update weight and gradient are gathered, layer by layer.

    Attributes:
        name: the parameter's name.
        parameter: the weight itself.
        passes: the dense gradient of the backward passes since the last step.
        off: where neither weight nor state may be other than zero.
        off_forward: where the forward pass finds zeros.
        aside: values that live on though the forward pass leaves them out; None where
            the parameter holds all there is.
        padding: row of an embedding that stands for padding, and has no connections.
    """

    def __init__(self, name: str, parameter: nn.Parameter, padding: int | None = None) -> None:
        """Look after a parameter, without a mask so far."""
        self.name, self.parameter, self.padding = name, parameter, padding
        self.passes = DensePasses(name)
        self.aside: Tensor | None = None
        self._where: Entry
        self._kept: Tensor
        self.off = self.off_forward = self._multiplier = torch.empty(0)
        self._beyond: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.parameter.shape

    def held(self, mask: Entry) -> Bits:
        """Return a mask as this weight needs it."""
        return Bits(mask.mask().to(self.parameter.device))

    def install(self, mask: Entry, states: list[Slots], stored: Entry | None = None) -> None:
        """Take a new mask; :meth:`products` then make it true of weight and state.

        Args:
            mask: of the forward pass.
            states: what the optimiser, and each inside it, keeps.
            stored: where weights, gradients and state live on; by default in the mask.
        """
        del states
        self._where = mask if stored is None else stored
        forward = part_like(mask.mask(), self.parameter)
        self._kept = forward if stored is None else part_like(stored.mask(), self.parameter)
        self._beyond = None if stored is None else self._kept & ~forward
        self.off = _renewed(self.off, ~self._kept)
        self.off_forward = _renewed(self.off_forward, ~forward)
        self._multiplier = _renewed(self._multiplier, self._kept.to(self.parameter.dtype))
        if self.parameter.grad is not None:
            local(self.parameter.grad).masked_fill_(self.off, 0)

    def products(self, states: list[Slots]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield weight and state, each with its multiplier after a step."""
        for tensor in (self.parameter, *(slot for state in states for slot in state.values())):
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

    def arriving(self, gradient: Tensor) -> None:
        """Look at what earlier passes left in ``.grad``, just before another is added."""
        del gradient
        if self.passes.collecting:
            self.passes.arriving(self.parameter.grad, self.parameter, self._kept)

    def accumulated(self, parameter: Tensor) -> None:
        """Mask ``.grad``, which a backward pass has just filled."""
        grad = parameter.grad
        if grad is None:
            return
        if grad.layout != torch.strided:
            raise TopologyError(f"{self.name} has a {grad.layout} gradient; masks need a dense one")
        if self.passes.collecting:
            self.passes.add(grad, self._kept)
        local(grad).masked_fill_(self.off, 0)
        self.passes.filled(grad)

    def mask_gradient(self) -> None:
        """Mask a ``.grad`` that no backward pass has left, as it is when set by hand."""
        grad = self.parameter.grad
        if grad is not None and not self.passes.has_left(grad):
            local(grad.detach()).masked_fill_(self.off, 0)

    def gradient(self, unit: float) -> Tensor | None:
        """The dense gradient of what a step is about to read, times ``unit``; None if nothing.

        Raises:
            TopologyError: if it is not known.
        """
        grad = self.parameter.grad
        grad = torch.zeros_like(self.parameter) if grad is None else grad
        return self.passes.read(grad, self.parameter, self._where.mask(), unit)

    def places(self, positions: Tensor) -> tuple[Tensor, Tensor | slice]:
        """Where connections are in what this rank holds, and which of them it holds."""
        if not is_sharded(self.parameter):
            return positions, slice(None)
        numbers = positions.new_zeros(self.shape.numel())
        numbers[positions] = torch.arange(1, len(positions) + 1, device=positions.device)
        here = part_like(numbers.view(self.shape), self.parameter).reshape(-1)
        at = here.nonzero().squeeze(1)
        return at, here[at] - 1

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
        passes: what the backward passes since the last step recorded.
    """

    padding = None  # embeddings have no sparse form

    def __init__(self, name: str, layer: SparseWeight) -> None:
        """Look after a layer."""
        self.name, self.parameter = name, layer.values
        self.passes = SparsePasses(name, layer)
        self._layer = layer

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

    def install(self, mask: Entry, states: list[Slots], stored: Entry | None = None) -> None:
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
        for state in states:
            for key, tensor in state.items():
                if isinstance(tensor, Tensor) and tensor.shape == old.shape:
                    state[key] = moved(tensor)
        self._layer.set_topology(new, values)
        self.parameter.grad = None if grad is None else moved(grad)

    def products(self, states: list[Slots]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield nothing: there are no inactive values."""
        del states
        return iter(())

    def arriving(self, gradient: Tensor) -> None:
        """Set aside what this backward pass recorded, just before ``.grad`` is filled."""
        del gradient
        if self.passes.collecting:
            self.passes.arriving(self.parameter.grad, self.parameter)

    def accumulated(self, parameter: Tensor) -> None:
        """Count the backward pass that has just filled ``.grad``."""
        grad = parameter.grad
        if grad is None:
            return
        if self.passes.collecting:
            self.passes.add(grad)
        self.passes.filled(grad)

    def mask_gradient(self) -> None:
        """Do nothing: there are no inactive values."""

    def gradient(self, unit: float) -> RowGradient | None:
        """The dense gradient of what a step is about to read, by rows; None if nothing.

        Raises:
            TopologyError: if it is not known.
        """
        grad = self.parameter.grad
        grad = torch.zeros_like(self.parameter) if grad is None else grad
        return self.passes.read(grad, self.parameter.detach(), unit)

    def places(self, positions: Tensor) -> tuple[Tensor, Tensor | slice]:
        """Where connections are among the values: all of them are here."""
        return find(positions, self.indices())[0], slice(None)

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

    bring_back = set_aside


def _renewed(old: Tensor, new: Tensor) -> Tensor:
    """New values in the memory of the old: a captured CUDA graph reads where they were."""
    same = (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
    return old.copy_(new) if same else new


Weight = MaskedWeight | SparseValues


def pass_hooks(weight: Weight, check: Callable[[Tensor], None]) -> Iterator[RemovableHandle]:
    """Let a weight look at the backward passes that reach it, and check each of these.

    The garbage collector does not see through post-accumulate hooks: one that held the weight,
    and with it the parameter, would keep both for ever. The first hook keeps the weight alive.
    """
    acts = [weakref.WeakMethod(weight.accumulated), weakref.WeakMethod(check)]

    def fill(parameter: Tensor) -> None:
        for each in acts:
            if (act := each()) is not None:
                act(parameter)

    yield weight.parameter.register_hook(weight.arriving)
    yield weight.parameter.register_post_accumulate_grad_hook(fill)


def weights_under(
    model: nn.Module,
    masks: Masks,
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
) -> dict[str, Weight]:
    """Look after the weights that the masks name, which these ranks train.

    Raises:
        MaskError: if the masks do not fit the model.
    """
    masks.check(model)
    named, layers = named_weights(model), sparse_weights(model)
    padding = padding_rows(model)
    weights: dict[str, Weight] = {
        name: SparseValues(name, layers[name])
        if name in layers
        else MaskedWeight(name, named[name], padding.get(id(named[name])))
        for name in masks
    }
    for weight in weights.values():
        weight.passes.ranks = ranks
    return weights


def read_masks(weights: Mapping[str, Weight], given: Mapping[str, Tensor]) -> Masks:
    """Read the masks of a state, which holds bool tensors or sorted flat positions.

    Raises:
        MaskError: if a mask has another shape, or connections that a truly sparse layer lacks.
    """
    entries: dict[str, Entry | Tensor] = {}
    for name, weight in weights.items():
        mask = given.entry(name) if isinstance(given, Masks) else given[name]
        if isinstance(mask, Tensor) and mask.dtype == torch.int64:
            mask = Masks.from_indices({name: (mask, weight.shape)}).entry(name)
        entries[name] = mask
    masks = Masks(entries)
    for name, weight in weights.items():
        if masks.shape(name) != weight.shape:
            shape = tuple(weight.shape)
            raise MaskError(f"mask {name!r} has shape {tuple(masks.shape(name))}, not {shape}")
        if isinstance(weight, SparseValues):
            masks.within(name, weight.indices())
    return held(weights, masks)


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
