"""Masks as a value: a mapping from parameter name to bool tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseflow.core.errors import MaskError, StoreError
from sparseflow.core.files import load_tensors, save_tensors


class Masks(Mapping[str, Tensor]):
    """An immutable mapping from parameter name to bool tensor; True is active.

    It validates itself: every entry is a bool tensor. :meth:`check` compares it
    with a model. Do not write into its tensors; make a new one.

    Example:
        >>> m = Masks({"fc.weight": torch.eye(2, dtype=torch.bool)})
        >>> m.nnz, m.size, m.density
        (2, 4, 0.5)
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        """Hold the given tensors.

        Raises:
            MaskError: if one of them is not a bool tensor.
        """
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise MaskError(f"mask {name!r} is {got}; a mask is a torch.bool tensor")
        self._masks = dict(masks)

    def __getitem__(self, name: str) -> Tensor:
        """Return the mask of one parameter."""
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over parameter names, in the model's order."""
        return iter(self._masks)

    def __len__(self) -> int:
        """Return the number of masked parameters."""
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        """Say whether both name the same parameters with the same bits."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return set(self) == set(other) and all(torch.equal(self[n], other[n]) for n in self)

    __hash__ = None  # type: ignore[assignment]  (equality is by content)

    def __repr__(self) -> str:
        """Say how many weights are active, layer by layer."""
        rows = [f"  {n}: {int(m.sum()):,} of {m.numel():,}" for n, m in self.items()]
        head = f"Masks({self.nnz:,} of {self.size:,} active, density {self.density:.4f}"
        return "\n".join([head, *rows]) + ")"

    @property
    def counts(self) -> dict[str, int]:
        """Active weights of each parameter."""
        return {name: int(mask.sum()) for name, mask in self.items()}

    @property
    def nnz(self) -> int:
        """Active weights in all."""
        return sum(self.counts.values())

    @property
    def size(self) -> int:
        """Weights in all, active or not."""
        return sum(mask.numel() for mask in self.values())

    @property
    def density(self) -> float:
        """Share of active weights among the masked parameters."""
        return self.nnz / self.size if self.size else 1.0

    @property
    def densities(self) -> dict[str, float]:
        """Share of active weights of each parameter; :func:`sparseflow.make_masks` takes it."""
        return {name: count / self[name].numel() for name, count in self.counts.items()}

    def save(self, path: Path | str) -> None:
        """Write the masks to a safetensors file, atomically.

        Raises:
            StoreError: if the file cannot be written.
        """
        save_tensors(Path(path), self._masks, {"masks": list(self)})

    @classmethod
    def load(cls, path: Path | str) -> Masks:
        """Read masks written by :meth:`save`.

        Raises:
            StoreError: if the file is missing, damaged or holds no masks.
        """
        tensors, meta = load_tensors(Path(path))
        if "masks" not in meta:
            raise StoreError(f"{path} holds no masks written by sparseflow")
        return cls({name: tensors[name] for name in meta["masks"]})

    def digest(self) -> str:
        """SHA-256 over names, shapes and bits: equal masks, equal digests."""
        sha = hashlib.sha256()
        for name in sorted(self):
            mask = self[name].detach().cpu().contiguous()
            sha.update(f"{name}{tuple(mask.shape)}".encode())
            sha.update(mask.numpy().tobytes())
        return sha.hexdigest()

    def to(self, device: torch.device | str) -> Masks:
        """Return the same masks on a device."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def check(self, model: nn.Module) -> None:
        """Compare with a model's parameters.

        Raises:
            MaskError: if a parameter is missing or has another shape.
        """
        parameters = dict(model.named_parameters())
        for name, mask in self.items():
            if name not in parameters:
                raise MaskError(f"mask {name!r} names no parameter of {type(model).__name__}")
            if mask.shape != parameters[name].shape:
                raise MaskError(
                    f"mask {name!r} has shape {tuple(mask.shape)}; the parameter has "
                    f"{tuple(parameters[name].shape)}"
                )

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set every inactive weight of the model to exactly zero.

        Raises:
            MaskError: if the masks do not fit the model.
        """
        self.check(model)
        for name, parameter in model.named_parameters():
            if name in self:
                parameter.masked_fill_(~self[name].to(parameter.device), 0)


def churn(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Share of the connections of ``before`` that ``after`` no longer has.

    >>> a = Masks({"w": torch.tensor([True, True, False])})
    >>> churn(a, Masks({"w": torch.tensor([True, False, True])}))
    0.5
    """
    if set(before) != set(after):
        raise MaskError("the two sets of masks name different parameters")
    lost = sum(int((before[n] & ~after[n]).sum()) for n in before)
    return lost / max(sum(int(m.sum()) for m in before.values()), 1)
