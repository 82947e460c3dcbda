"""One run on several ranks: its network, and batches that they can share."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseflow.core.errors import SpecError
from sparseflow.core.parallel import Ranks
from sparseflow.runs.spec import RunSpec


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
