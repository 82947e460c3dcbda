"""Where the command line has runs and studies carried out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Literal

import sparseflow as sf
from sparseflow.core.errors import SpecError

PROCESSES = 2
"""Worker processes unless the user says otherwise."""


@dataclass(frozen=True)
class Engine:
    """What the options say of it, as they stand on the command line.

    Attributes:
        kind: processes here, or a Ray cluster.
        jobs: worker processes, or tasks of the cluster under way at most.
        threads: CPU threads of each.
        retries: deaths of its worker that a task survives.
        device: where to train.
        address: of the Ray cluster.
        gpus: that each task reserves there.
    """

    kind: Literal["local", "ray"] = "local"
    jobs: int | None = None
    threads: int | None = None
    retries: int = 1
    device: str = "cpu"
    address: str | None = None
    gpus: float | None = None

    @contextmanager
    def executor(self, store: sf.runs.Store) -> Iterator[sf.runs.Executor]:
        """Give the executor, which starts nothing before the first task, and end it.

        Raises:
            SpecError: for an option of the other kind, or a device that is not here.
        """
        made = self._make(store)
        # Ray writes to standard output when a worker dies, which is the place of tables and JSON
        with redirect_stdout(sys.stderr), made:
            yield made

    def _make(self, store: sf.runs.Store) -> sf.runs.Executor:
        if self.kind == "ray":
            return sf.runs.Ray(
                store.root,
                address=self.address or "auto",
                threads=self.threads or 1,
                gpus=self._gpus(),
                limit=self.jobs,
                retries=self.retries,
            )
        for name, value in (("address", self.address), ("gpus", self.gpus)):
            if value is not None:
                raise SpecError(f"--{name} {value} is of a Ray cluster: add --executor ray")
        sf.runs.check_device(self.device)
        return sf.runs.Local(self.jobs or PROCESSES, threads=self.threads, retries=self.retries)

    def _gpus(self) -> float:
        """Without a word, a run on an accelerator reserves one."""
        on_cpu = self.device.partition(":")[0] == "cpu"
        return self.gpus if self.gpus is not None else 0.0 if on_cpu else 1.0
