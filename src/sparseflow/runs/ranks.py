"""One run on several ranks: its network, and the share of each batch that a rank takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseflow.core.errors import SpecError
from sparseflow.core.functional import split
from sparseflow.core.parallel import Ranks
from sparseflow.runs.spec import RunSpec
from sparseflow.train.loop import Stream


def check_shares(specs: Iterable[RunSpec], ranks: Ranks) -> None:
    """Refuse batches that cannot be cut into equal shares.

    With equal shares alone the mean of the ranks' gradients is that of the batch.

    Raises:
        SpecError: naming the batch and the number of ranks.
    """
    for spec in specs:
        if spec.train.batch % ranks.size:
            raise SpecError(
                f"train.batch={spec.train.batch} of {spec.recipe} is not divisible by the "
                f"{ranks.size} ranks: every rank takes an equal share of each batch"
            )


def together(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model as it is trained: its gradients are means over the ranks."""
    return DistributedDataParallel(model, process_group=ranks.group) if ranks.size > 1 else model


class Shares:
    """The share of every batch that one rank takes, in rank order."""

    def __init__(self, batches: Stream, size: int, ranks: Ranks) -> None:
        """Cut batches of ``size`` examples."""
        self._batches, self._size, self._ranks = batches, size // ranks.size, ranks

    def __getitem__(self, step: int) -> Any:
        """This rank's share of batch ``step``."""
        return split(self._batches[step], self._size)[self._ranks.rank]
