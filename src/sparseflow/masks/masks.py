"""Masks as a value: a mapping from parameter name to bool tensor."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparseflow.core.errors import MaskError, StoreError
from sparseflow.core.files import load_tensors, save_tensors
from sparseflow.core.layouts import padding_rows
from sparseflow.core.parallel import local, part_like
from sparseflow.core.parameters import named_weights, sparse_weights
from sparseflow.core.select import find
from sparseflow.masks.codec import encode, read
from sparseflow.masks.entries import Bits, Entry, Places, lost, same


class Masks(Mapping[str, Tensor]):
    """An immutable mapping from parameter name to bool tensor; True is active.

    :meth:`check` compares it with a model. Do not write into its tensors; make new
    masks instead.

    The mask of a truly sparse layer is stored as the sorted flat positions of its
    connections, see :meth:`from_indices`. ``masks[name]`` then makes a bool tensor at
    every call; all other methods cost time and memory proportional to the connections.

    Example:
        >>> m = Masks({"fc.weight": torch.eye(2, dtype=torch.bool)})
        >>> m.nnz, m.size, m.density
        (2, 4, 0.5)
        >>> m.indices("fc.weight")
        tensor([0, 3])
    """

    def __init__(self, masks: Mapping[str, Tensor | Entry]) -> None:
        """Take the given tensors, without copying them.

        Raises:
            MaskError: if one of them is not a bool tensor.
        """
        if isinstance(masks, Masks):
            masks = masks._entries
        self._entries: dict[str, Entry] = {}
        for name, mask in masks.items():
            if isinstance(mask, Bits | Places):
                self._entries[name] = mask
            elif isinstance(mask, Tensor) and mask.dtype == torch.bool:
                self._entries[name] = Bits(mask)
            else:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise MaskError(f"mask {name!r} is {got}; a mask is a torch.bool tensor")

    @classmethod
    def from_indices(cls, masks: Mapping[str, tuple[Tensor, Sequence[int]]]) -> Masks:
        """Make masks from the sorted flat positions (int64) of active weights, and the shapes.

        Raises:
            MaskError: if positions are not ascending or not within the shape.

        Example:
            >>> Masks.from_indices({"w": (torch.tensor([1, 2]), (2, 2))})["w"].tolist()
            [[False, True], [True, False]]
        """
        entries: dict[str, Entry] = {}
        for name, (indices, shape) in masks.items():
            try:
                entries[name] = Places(indices, torch.Size(shape))
            except MaskError as error:
                raise MaskError(f"mask {name!r}: {error}") from error
        return cls(entries)

    def __getitem__(self, name: str) -> Bool[Tensor, "*w"]:
        """Return the mask of one parameter."""
        return self._entries[name].mask()

    def __contains__(self, name: object) -> bool:
        """Whether a parameter has a mask."""
        return name in self._entries

    def entry(self, name: str) -> Entry:
        """Return one mask in its representation."""
        return self._entries[name]

    def indices(self, name: str) -> Int64[Tensor, " k"]:
        """Sorted flat positions of the active weights of one parameter."""
        return self._entries[name].indices()

    def shape(self, name: str) -> torch.Size:
        """Shape of one parameter."""
        return self._entries[name].shape

    def __iter__(self) -> Iterator[str]:
        """Iterate over parameter names, in the model's order."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of masked parameters."""
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        """Whether both have the same parameter names and equal masks."""
        if not isinstance(other, Mapping):
            return NotImplemented
        if set(self) != set(other):
            return False
        if not isinstance(other, Masks):
            return all(torch.equal(self[n], other[n]) for n in self)
        return all(same(entry, other._entries[n]) for n, entry in self._entries.items())

    __hash__ = None  # type: ignore[assignment]  (equality is by content)

    def __repr__(self) -> str:
        """List the number of active weights, layer by layer."""
        rows = [f"  {n}: {k:,} of {self.shape(n).numel():,}" for n, k in self.counts.items()]
        head = f"Masks({self.nnz:,} of {self.size:,} active, density {self.density:.4f}"
        return "\n".join([head, *rows]) + ")"

    @property
    def counts(self) -> dict[str, int]:
        """Number of active weights of each parameter."""
        return {name: entry.count for name, entry in self._entries.items()}

    @property
    def nnz(self) -> int:
        """Number of active weights in total."""
        return sum(self.counts.values())

    @property
    def size(self) -> int:
        """Number of weights in total, active or not."""
        return sum(entry.shape.numel() for entry in self._entries.values())

    @property
    def density(self) -> float:
        """Share of active weights among the masked parameters."""
        return self.nnz / self.size if self.size else 1.0

    @property
    def densities(self) -> dict[str, float]:
        """Share of active weights of each parameter, as :func:`sparseflow.make_masks` takes it."""
        return {name: count / self.shape(name).numel() for name, count in self.counts.items()}

    def save(self, path: Path | str) -> None:
        """Write the masks to a safetensors file, atomically, in about their entropy of bits.

        Raises:
            StoreError: if the file cannot be written.
        """
        save_tensors(Path(path), *self.packed())

    @classmethod
    def load(cls, path: Path | str) -> Masks:
        """Read masks written by :meth:`save`, as positions.

        Raises:
            StoreError: if the file is missing or damaged, or holds no masks.
        """
        tensors, meta = load_tensors(Path(path))
        return cls.unpacked(tensors, meta, str(path))

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a file holds: encoded positions (uint8), and shapes and counts as JSON."""
        codes = {f"mask/{n}": encode(self.indices(n), self.shape(n).numel()) for n in self}
        shapes = {name: list(self.shape(name)) for name in self}
        return codes, {"masks": shapes, "counts": self.counts}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], where: str) -> Masks:
        """Return the masks that :meth:`packed` returned the parts of.

        Raises:
            StoreError: naming ``where``, if it holds no masks or damaged ones.
        """
        shapes, counts = meta.get("masks"), meta.get("counts")
        if not (isinstance(shapes, dict) and isinstance(counts, dict)):
            raise StoreError(f"{where} holds no masks written by sparseflow")
        if set(tensors) != {f"mask/{name}" for name in shapes} or set(counts) != set(shapes):
            raise StoreError(f"{where} is damaged: it holds other masks than it names")
        try:
            return cls.from_indices(
                {n: read(tensors[f"mask/{n}"], shape, counts[n], n) for n, shape in shapes.items()}
            )
        except StoreError as error:
            raise StoreError(f"{where} is damaged: {error}") from error

    def digest(self) -> str:
        """SHA-256 over names, shapes and bits: equal masks, equal digests."""
        sha = hashlib.sha256()
        for name in sorted(self):
            entry = self._entries[name]
            sha.update(f"{name}{tuple(entry.shape)}".encode())
            for block in entry.blocks():
                sha.update(block)
        return sha.hexdigest()

    def to(self, device: torch.device | str) -> Masks:
        """Return the same masks on a device."""
        return Masks({name: entry.to(device) for name, entry in self._entries.items()})

    def check(self, model: nn.Module) -> None:
        """Compare with a model's parameters.

        Raises:
            MaskError: if a parameter is missing or has another shape, or a mask
                has connections that a truly sparse layer lacks, or some in the row
                of an embedding that stands for padding.
        """
        weights, layers = named_weights(model), sparse_weights(model)
        padding = padding_rows(model)
        for name, entry in self._entries.items():
            if name not in weights:
                raise MaskError(f"mask {name!r} names no parameter of {type(model).__name__}")
            if is_lazy(weights[name]):
                raise MaskError(
                    f"{name!r} is of a lazy module and has no shape yet: run the model on one "
                    "batch first"
                )
            layer = layers.get(name)
            shape = weights[name].shape if layer is None else layer.shape
            if entry.shape != shape:
                raise MaskError(
                    f"mask {name!r} has shape {tuple(entry.shape)}; the parameter has "
                    f"{tuple(shape)}"
                )
            if layer is not None:
                self.within(name, layer.indices())
            else:
                check_padding(name, entry.mask(), padding.get(id(weights[name])))

    def within(self, name: str, indices: Int64[Tensor, " n"]) -> Int64[Tensor, " k"]:
        """Return the places of the active weights among the ``indices`` of a sparse layer.

        Raises:
            MaskError: if the layer lacks one of them.
        """
        where, there = find(self.indices(name).to(indices.device), indices)
        if missing := int((~there).sum()):
            raise MaskError(
                f"mask {name!r} has {missing:,} connections that the sparse layer lacks: "
                f"it holds {len(indices):,}"
            )
        return where

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set every inactive weight of the model to exactly zero.

        A truly sparse layer drops the connections that its mask lacks.

        Raises:
            MaskError: if the masks do not fit the model.
        """
        self.check(model)
        layers = sparse_weights(model)
        for name, parameter in named_weights(model).items():
            if name in self and parameter.is_meta:
                raise MaskError(f"{name} is on the meta device and has no values to set to zero")
            if name in layers and name in self:
                indices = layers[name].indices()
                where = self.within(name, indices)
                if len(where) < len(indices):
                    layers[name].set_topology(indices[where], parameter[where])
            elif name in self:
                inactive = part_like(~self[name].to(parameter.device), parameter)
                local(parameter).masked_fill_(inactive, 0)


def churn(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Share of the connections of ``before`` that ``after`` lacks.

    >>> a = Masks({"w": torch.tensor([True, True, False])})
    >>> churn(a, Masks({"w": torch.tensor([True, False, True])}))
    0.5
    """
    if set(before) != set(after):
        raise MaskError("the two sets of masks name different parameters")
    a, b = Masks(before), Masks(after)
    return sum(lost(a.entry(n), b.entry(n)) for n in a) / max(a.nnz, 1)


def check_padding(name: str, mask: Tensor, row: int | None) -> None:
    """Refuse connections in the row of an embedding that stands for padding.

    Raises:
        MaskError: naming the mask and the row.
    """
    if row is not None and bool(mask[row].any()):
        raise MaskError(
            f"mask {name!r} has connections in row {row}, which stands for padding: it has no "
            f"gradient and stays zero; set mask[{row}] = False (shuffle_masks takes layers=)"
        )


def warn_of_empty(names: Sequence[str], when: str, remedy: str) -> None:
    """Name the layers that are left without a weight, if there are any."""
    if names:
        warnings.warn(
            f"{', '.join(names)} left without a weight {when}: nothing passes through; {remedy}",
            stacklevel=3,
        )
