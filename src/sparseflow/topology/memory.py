"""What a method remembers between steps: kept for it, moved with the connections, saved."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparseflow.core.errors import TopologyError
from sparseflow.core.select import find
from sparseflow.topology.view import Layers


class Memory:
    """Tensors of one method in one training.

    Attributes:
        whole: of the training as a whole.
        state: by layer, one number for each connection.
        dense: by layer, one number for each place.
    """

    def __init__(self) -> None:
        """Remember nothing."""
        self.whole: dict[str, Tensor] = {}
        self.state: dict[str, dict[str, Tensor]] = defaultdict(dict)
        self.dense: dict[str, dict[str, Tensor]] = defaultdict(dict)

    def move(self, name: str, before: Tensor, after: Tensor) -> None:
        """Let the state of a layer follow its connections; new ones start at 0.

        Args:
            name: of the layer.
            before: sorted flat positions that its state is of.
            after: sorted flat positions of the new connections.
        """
        where, stays = find(before, after)
        for key, tensor in self.state[name].items():
            moved = tensor.new_zeros(len(after))
            moved[stays] = tensor[where[stays]]
            self.state[name][key] = moved

    def copy(self) -> Memory:
        """What is remembered now, whatever becomes of it."""
        return Memory.of({name: tensor.clone() for name, tensor in self.tensors().items()})

    def to(self, name: str, device: torch.device) -> None:
        """Bring what is remembered of a layer to the device that its weight is on."""
        for tensors in (self.state[name], self.dense[name]):
            tensors |= {key: tensor.to(device) for key, tensor in tensors.items()}

    def check(self, layers: Layers) -> None:
        """Refuse what could not be moved or saved, as soon as a method has kept it.

        Raises:
            TopologyError: naming layer and key.
        """
        for key, value in self.whole.items():
            _check_tensor(f"layers.state[{key!r}]", key, value)
        for name, connections in layers.items():
            kept = {"state": self.state[name], "dense": self.dense[name]}
            shapes = {"state": connections.indices.shape, "dense": connections.shape}
            if kept["dense"] and not connections.is_dense:
                raise TopologyError(
                    f"dense[{next(iter(kept['dense']))!r}] of {name}: a truly sparse layer has no "
                    "room for a number a place; use state, which has one a connection"
                )
            for part, tensors in kept.items():
                for key, value in tensors.items():
                    _check_tensor(f"{part}[{key!r}] of {name}", key, value)
                    if value.shape != shapes[part]:
                        raise TopologyError(
                            f"{part}[{key!r}] of {name} has shape {tuple(value.shape)}: it must "
                            f"be {tuple(shapes[part])}, one number for each "
                            f"{'connection' if part == 'state' else 'place'}"
                        )

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by one name each."""
        named = {f"whole/{key}": tensor for key, tensor in self.whole.items()}
        for part, layers in (("state", self.state), ("dense", self.dense)):
            for layer, tensors in layers.items():
                named |= {f"{part}/{layer}/{key}": tensor for key, tensor in tensors.items()}
        return named

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each tensor, sorted by name."""
        named = sorted(self.tensors().items())
        return {
            name: hashlib.sha256(
                f"{tensor.dtype} {tuple(tensor.shape)}".encode()
                + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            ).hexdigest()
            for name, tensor in named
        }

    @classmethod
    def of(cls, named: Mapping[str, Tensor]) -> Memory:
        """Undo :meth:`tensors`.

        Raises:
            TopologyError: if a name is none of its.
        """
        memory = cls()
        for name, tensor in named.items():
            part, _, rest = name.partition("/")
            layer, _, key = rest.rpartition("/")
            if part == "whole":
                memory.whole[rest] = tensor
            elif part in ("state", "dense") and layer:
                getattr(memory, part)[layer][key] = tensor
            else:
                raise TopologyError(f"topology state has an unknown memory {name!r}")
        return memory


def restored(
    named: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> tuple[Memory, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What a state remembers, each on the device of its weight.

    Returns:
        What the method keeps; values that were set aside; positions where weights live on;
        births of connections.

    Raises:
        TopologyError: if a name is none of these.
    """
    named = dict(named)
    aside: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}
    born: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for part, tensors in (("aside", aside), ("stored", stored), ("born", born)):
            if f"{part}/{name}" in named:
                tensors[name] = named.pop(f"{part}/{name}").to(parameter.device)
    memory = Memory.of(named)
    for name, parameter in parameters.items():
        memory.to(name, parameter.device)
    return memory, aside, stored, born


def _check_tensor(shown: str, key: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TopologyError(f"{shown} is a {type(value).__name__}: keep a tensor, which is saved")
    if not key or "/" in key:
        raise TopologyError(f"{shown}: a key must be a word without '/'")
