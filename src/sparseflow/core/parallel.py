"""Several processes that train one model: means over them, agreement between them, sharded tensors.

Without a process group, or alone in one, every function here returns its input unchanged.
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
        size: number of processes.
        rank: index of this process, from 0.
        group: their process group; None for a single process.
    """

    size: int = 1
    rank: int = 0
    group: distributed.ProcessGroup | None = None

    @classmethod
    def of(
        cls, model: nn.Module | None = None, group: distributed.ProcessGroup | None = None
    ) -> Ranks:
        """Return the ranks that train a model; without a model, all ranks.

        Args:
            model: a ``DistributedDataParallel`` knows its group.
            group: the group to use; by default the model's, else the default group.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        if group is None and isinstance(model, DistributedDataParallel):
            group = model.process_group
        group = group or distributed.group.WORLD
        size = distributed.get_world_size(group)
        return cls(size, distributed.get_rank(group), group) if size > 1 else cls()

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over ranks, identical on each; half precision is summed in float32.

        Collective: every rank must call it, with a tensor of the same shape.
        """
        if self.size == 1:
            return tensor
        short = tensor.is_floating_point() and tensor.itemsize < 4
        total = tensor.to(torch.float32 if short else tensor.dtype, copy=True).contiguous()
        distributed.all_reduce(total, group=self.group)
        return total.div_(self.size).to(tensor.dtype)

    def anywhere(self, flags: Mapping[str, bool], device: torch.device | str) -> list[str]:
        """Names whose flag is set on some rank, in their order.

        Collective: every rank must call it, with the same names in the same order.
        """
        if self.size == 1:
            return [name for name, flag in flags.items() if flag]
        counts = self.mean(torch.tensor([float(f) for f in flags.values()], device=device))
        return [name for name, count in zip(flags, counts.tolist(), strict=True) if count]

    def first(self, value: bool, device: torch.device | str) -> bool:
        """Return the value of rank 0. Collective: every rank must call it.

        Args:
            value: used if this is rank 0.
            device: a device on which the group can exchange tensors.
        """
        if self.size == 1:
            return value
        of_rank_0 = torch.tensor(int(value), device=device)
        distributed.broadcast(of_rank_0, group=self.group, group_src=0)
        return bool(of_rank_0)

    def odd(self, texts: Mapping[str, str], device: torch.device) -> dict[str, list[int]]:
        """Find the texts that are not the same on all ranks.

        Collective: every rank must call it, with the same names in the same order.

        Args:
            texts: by name.
            device: a device on which the group can exchange tensors.

        Returns:
            For each name whose texts differ, the ranks that differ from rank 0.
        """
        if self.size == 1:
            return {}
        digests = torch.tensor([_number(text) for text in texts.values()], device=device)
        everyone = [torch.empty_like(digests) for _ in range(self.size)]
        distributed.all_gather(everyone, digests, group=self.group)
        differs = (torch.stack(everyone) != everyone[0]).T.cpu()
        return {
            name: row.nonzero().squeeze(1).tolist()
            for name, row in zip(texts, differs, strict=True)
            if bool(row.any())
        }


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse to measure a model that only all ranks together can differentiate.

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


# A sharded tensor is a DTensor. It is recognised by its methods: importing its class takes
# half as long as importing torch.


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of the tensor, as parameters are after ``fully_shard``."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from all ranks. Collective: every rank must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that belongs to this rank's part of ``like``. Not collective."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415  (slow, see above)

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()


def _number(text: str) -> int:
    """64 bits of the SHA-256 of a text: what ranks compare."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
