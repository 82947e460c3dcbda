"""Several processes that train one model: their means, their agreement, sharded tensors.

Without a process group, or alone in one, everything here leaves things as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sparseflow.core.errors import MeasureError


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that train one model.

    Attributes:
        size: how many there are.
        rank: which of them this process is, from 0 on.
        group: their process group; None for a process that is alone.
    """

    size: int = 1
    rank: int = 0
    group: distributed.ProcessGroup | None = None

    @classmethod
    def of(
        cls, model: nn.Module | None = None, group: distributed.ProcessGroup | None = None
    ) -> Ranks:
        """Find the ranks that train a model; without one, all that there are.

        Args:
            model: a ``DistributedDataParallel`` brings its own group.
            group: the group, if it is known; else the model's own, else the default one.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        if group is None and isinstance(model, DistributedDataParallel):
            group = model.process_group
        group = group or distributed.group.WORLD
        size = distributed.get_world_size(group)
        return cls(size, distributed.get_rank(group), group) if size > 1 else cls()

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over ranks, the same bits on each; half precision is summed in float32.

        Every rank must call this, with a tensor of one shape.
        """
        if self.size == 1:
            return tensor
        short = tensor.is_floating_point() and tensor.itemsize < 4
        total = tensor.to(torch.float32 if short else tensor.dtype, copy=True).contiguous()
        distributed.all_reduce(total, group=self.group)
        return total.div_(self.size).to(tensor.dtype)

    def first(self, value: bool, device: torch.device | str) -> bool:
        """Take what rank 0 says; every rank waits for it.

        Args:
            value: what this rank would say.
            device: one that the group can exchange tensors on.
        """
        if self.size == 1:
            return value
        said = torch.tensor(int(value), device=device)
        distributed.broadcast(said, group=self.group, group_src=0)
        return bool(said)

    def odd(self, texts: Mapping[str, str], device: torch.device) -> dict[str, list[int]]:
        """Find the texts that are not the same on all ranks.

        Every rank must call this, with as many texts.

        Args:
            texts: by name; their order is to be the same everywhere.
            device: one that the group can exchange tensors on.

        Returns:
            For each name with another text somewhere, the ranks that differ from the first one.
        """
        if self.size == 1:
            return {}
        own = torch.tensor([_number(text) for text in texts.values()], device=device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(found, own, group=self.group)
        differs = (torch.stack(found) != found[0]).T.cpu()
        return {
            name: row.nonzero().squeeze(1).tolist()
            for name, row in zip(texts, differs, strict=True)
            if bool(row.any())
        }


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse to measure what only a backward pass of all ranks could differentiate.

    Raises:
        MeasureError: for a model in ``DistributedDataParallel`` or ``fully_shard``.
    """
    if isinstance(model, DistributedDataParallel):
        raise MeasureError(
            "the model is in DistributedDataParallel: measure the one inside, model.module"
        )
    if sharded := [name for name, p in model.named_parameters() if is_sharded(p)]:
        raise MeasureError(
            f"{', '.join(sharded)} are sharded: measure a whole model, loaded with "
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
        )


# A sharded tensor is a DTensor. It is known by its methods: importing its class takes
# half as long as importing torch.


def is_sharded(tensor: Tensor) -> bool:
    """Say whether ranks hold parts of a tensor, as ``fully_shard`` leaves parameters."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all ranks, each of which must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that belongs to this rank's part of ``like``; nothing is sent."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415  (slow, see above)

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()


def _number(text: str) -> int:
    """64 bits of a digest."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
