"""A model's state with every masked weight held by its non-zeros.

The same state whichever execution the model has: a masked dense weight and the
values of a truly sparse layer come out alike, under the dense weight's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparseflow.core.errors import MaskError, StoreError
from sparseflow.core.parameters import SparseWeight, sparse_weights
from sparseflow.core.wrappers import bare
from sparseflow.masks.codec import encode, read
from sparseflow.masks.masks import Masks


class NonZeros(NamedTuple):
    """The active connections of one weight.

    Attributes:
        indices: strictly ascending flat positions in the dense weight (nnz,), int64.
        values: their weights (nnz,).
        shape: of the dense weight.
    """

    indices: Tensor
    values: Tensor
    shape: torch.Size

    def dense(self) -> Tensor:
        """The weight as a dense tensor, zero where nothing is active."""
        return self.spread(self.values)

    def spread(self, values: Tensor) -> Tensor:
        """A dense tensor with one value for each active connection, else zero."""
        full = values.new_zeros(self.shape)
        full.view(-1)[self.indices.to(values.device)] = values
        return full


@dataclass(frozen=True, eq=False)
class State:
    """All that a model's ``state_dict`` holds.

    Attributes:
        masked: masked weights by name, sorted.
        others: everything else by name.
    """

    masked: Mapping[str, NonZeros]
    others: Mapping[str, Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, masks: Masks) -> State:
        """Take the state of a masked dense model, a sparse one, or one of both kinds.

        Raises:
            MaskError: if the masks do not fit, or an inactive weight is not zero.
        """
        model = bare(model)
        layers = sparse_weights(model)
        others = dict(model.state_dict())
        for name, layer in layers.items():
            for own in _own_state(name, layer):
                del others[own]
        masked = {name: _of_layer(name, layer, masks) for name, layer in layers.items()}
        rest = Masks({name: masks.entry(name) for name in masks if name not in layers})
        state = cls.of_dense(others, rest)
        masked |= state.masked
        return cls({name: masked[name] for name in sorted(masked)}, state.others)

    @classmethod
    def of_dense(cls, weights: Mapping[str, Tensor], masks: Masks) -> State:
        """Take the state of a dense model apart; inactive weights must be zero.

        Raises:
            MaskError: if the masks do not fit, or an inactive weight is not zero.
        """
        others = dict(weights)
        masked = {name: _of_dense(name, others.pop(name, None), masks) for name in sorted(masks)}
        return cls(masked, others)

    def dense(self) -> tuple[dict[str, Tensor], Masks]:
        """The state of the dense model, by name, and its masks as bool tensors."""
        full = {name: kept.dense() for name, kept in self.masked.items()} | dict(self.others)
        masks = self.masks()
        return {n: full[n] for n in sorted(full)}, Masks({n: masks[n] for n in masks})

    def masks(self) -> Masks:
        """The masks, held by positions."""
        return Masks.from_indices({n: (k.indices, k.shape) for n, k in self.masked.items()})

    def restore(self, model: nn.Module) -> None:
        """Load into a model, whichever execution it has; sparse layers take over the topology.

        Raises:
            StoreError: if a sparse layer's weight is not among the masked ones,
                or has another shape.
        """
        layers = sparse_weights(model)
        for name, layer in layers.items():
            kept = self.masked.get(name)
            if kept is None or kept.shape != layer.shape:
                held = "is held dense" if kept is None else f"has shape {tuple(kept.shape)}"
                raise StoreError(
                    f"{name!r} {held}; the model has a sparse layer of {tuple(layer.shape)}"
                )
            layer.set_topology(kept.indices, kept.values)
        state = model.state_dict()
        own = {n: state[n] for name, layer in layers.items() for n in _own_state(name, layer)}
        dense = {n: kept.dense() for n, kept in self.masked.items() if n not in layers}
        model.load_state_dict({**own, **self.others, **dense})

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        """What a file holds: tensors by name, and the shapes of the masked weights.

        ``values/<name>`` are the active weights, ``mask/<name>`` their coded
        positions, ``weights/<name>`` everything else.
        """
        found = {f"weights/{name}": tensor for name, tensor in self.others.items()}
        for name, kept in self.masked.items():
            found[f"values/{name}"] = without_sign_of_zero(kept.values)
            found[f"mask/{name}"] = encode(kept.indices, kept.shape.numel())
        return found, {name: list(kept.shape) for name, kept in self.masked.items()}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], shapes: Any) -> State:
        """Undo :meth:`tensors`; nothing of dense size is made.

        Raises:
            StoreError: if a part is missing, or a mask is damaged.
        """
        if not isinstance(shapes, dict):
            raise StoreError("it does not say what shapes its masked weights have")
        masked = {name: _read(name, tensors, shape) for name, shape in shapes.items()}
        return cls(masked, under(tensors, "weights/"))


def without_sign_of_zero(values: Tensor) -> Tensor:
    """Values with +0 for -0.

    A connection grown under masked dense execution starts as -0 where the
    masking multiplied a negative number by zero, under sparse execution as +0.
    """
    return values + 0


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names start with a prefix, under the rest of the name."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _own_state(name: str, layer: SparseWeight) -> list[str]:
    """Names of the state that stands for a weight: the values, and buffers with the topology."""
    assert isinstance(layer, nn.Module)
    buffers = [local for local, _ in layer.named_buffers(recurse=False)]
    return [name.removesuffix("weight") + local for local in ("values", *buffers)]


def _of_layer(name: str, layer: SparseWeight, masks: Masks) -> NonZeros:
    indices = layer.indices().cpu()
    if name in masks and not torch.equal(masks.indices(name).cpu(), indices):
        raise MaskError(f"the connections of {name!r} are not those of its mask")
    return NonZeros(indices, layer.values.detach(), torch.Size(layer.shape))


def _of_dense(name: str, weight: Tensor | None, masks: Masks) -> NonZeros:
    if weight is None:
        raise MaskError(f"mask {name!r} names no weight of the model")
    if weight.shape != masks.shape(name):
        raise MaskError(
            f"mask {name!r} has shape {tuple(masks.shape(name))}; the weight has "
            f"{tuple(weight.shape)}"
        )
    indices = masks.indices(name).cpu()
    values = weight.reshape(-1)[indices.to(weight.device)]
    lost = int(weight.count_nonzero() - values.count_nonzero())
    if lost:
        raise MaskError(
            f"{name!r} has {lost:,} inactive weights that are not zero and would be lost: "
            "masks.apply(model) first"
        )
    return NonZeros(indices, values, weight.shape)


def _read(name: str, tensors: Mapping[str, Tensor], shape: Any) -> NonZeros:
    values = tensors.get(f"values/{name}")
    if values is None or values.ndim != 1:
        raise StoreError(f"{name!r} lacks its values")
    indices, size = read(tensors.get(f"mask/{name}"), shape, len(values), name)
    return NonZeros(indices, values, size)
