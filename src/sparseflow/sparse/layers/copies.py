"""Copies of a sparse layer: what was written into one while its original moved on.

Averages of weights (EMA, SWA) are kept in a copy of the model, which is written into
value by value. That is right as long as original and copy hold the same connections.
Once an update has moved those of the original, values of different positions meet.
A copy therefore remembers its values as of the last time at which it is known whose
they are. If they have changed since its original moved, it refuses to be used, and the
original to move on, unless the copy was trained or was given connections with its values.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseflow.core.errors import KernelError

_REASON = (
    "{layer}: its values were changed after the layer that it was copied from got other "
    "connections, so they belong to different positions, as in an average of weights (EMA, SWA) "
    "taken value by value: average the dense form, AveragedModel(sf.to_dense(model)) and "
    "update_parameters(sf.to_dense(model)), or train masked dense"
)


@dataclass(eq=False)
class Copied:
    """That a layer is a copy, and what is known of its values.

    Attributes:
        checksum: of the values when they last were known to be of one layer.
        behind: whether the original has other connections by now.
    """

    checksum: int
    behind: bool = False

    def moved(self, values: Tensor, behind: bool) -> None:
        """Note that the original has got other connections; the copy is then behind, or not."""
        self.checksum, self.behind = checksum_of(values), behind

    def check(self, layer: str, values: Tensor) -> None:
        """Refuse values of different positions.

        Raises:
            KernelError: saying how to average.
        """
        if self.behind and checksum_of(values) != self.checksum:
            raise KernelError(_REASON.format(layer=layer))


def checksum_of(values: Tensor) -> int:
    """CRC-32 of the bytes: writing through ``.data`` leaves no other trace."""
    if values.is_meta:
        return 0
    return zlib.crc32(values.detach().cpu().contiguous().view(torch.uint8).numpy().data)
