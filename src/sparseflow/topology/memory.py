"""What a method remembers between steps: kept for it, moved with the connections, saved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from sparseflow.core.errors import TopologyError
from sparseflow.core.select import find


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

        Raises:
            TopologyError: if the state is not one number for each connection.
        """
        where, stays = find(before, after)
        for key, tensor in self.state[name].items():
            if tensor.shape != before.shape:
                raise TopologyError(
                    f"state {key!r} of {name} has shape {tuple(tensor.shape)}: it must have one "
                    f"number for each of the {len(before)} connections"
                )
            moved = tensor.new_zeros(len(after))
            moved[stays] = tensor[where[stays]]
            self.state[name][key] = moved

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by one name each."""
        named = {f"whole/{key}": tensor for key, tensor in self.whole.items()}
        for part, layers in (("state", self.state), ("dense", self.dense)):
            for layer, tensors in layers.items():
                named |= {f"{part}/{layer}/{key}": tensor for key, tensor in tensors.items()}
        return named

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
