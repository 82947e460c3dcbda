"""The ranks that torchrun starts a command as."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sparseflow.core.errors import SpecError

PATIENCE = timedelta(days=7)
"""How long ranks wait for rank 0, which measures alone; a dead rank is torchrun's to notice."""


@contextmanager
def joined(device: str) -> Iterator[tuple[str, bool]]:
    """Meet the other ranks, if torchrun started this process; part from them at the end.

    Yields:
        The device of this rank (``cuda`` becomes its own one), and whether it
        is the one that reports.

    Raises:
        SpecError: for a numbered device, which all ranks would share.
    """
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield device, True
        return
    where = torch.device(device)
    if where.index is not None:
        raise SpecError(f"device {device!r} is one for all ranks: say --device {where.type}")
    if where.type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    _meet("nccl" if where.type == "cuda" else "gloo")
    try:
        yield device, distributed.get_rank() == 0
    finally:
        gc.collect()  # models that still hold the group: its threads would end with the process
        distributed.destroy_process_group()


def _meet(backend: str) -> None:
    """Make the process group, apart from what earlier attempts of the job have left behind.

    After a restart torchrun's store still has the addresses of the dead ranks:
    gloo would wait for them.
    """
    from torch import distributed

    store, rank, size = next(distributed.rendezvous("env://"))
    attempt = distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    distributed.init_process_group(
        backend, store=attempt, rank=rank, world_size=size, timeout=PATIENCE
    )
