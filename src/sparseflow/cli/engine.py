"""Where the command line has runs and studies carried out."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

import typer

import sparseflow as sf
from sparseflow.cli.options import Device, Jobs, Threads
from sparseflow.core.errors import SpecError

PROCESSES = 2
"""Worker processes unless the user says otherwise."""


@dataclass(frozen=True)
class Engine:
    """The options that say of it, see :func:`with_engine`."""

    executor: Annotated[
        Literal["local", "ray"],
        typer.Option("--executor", help="Processes here, or a Ray cluster that exists."),
    ] = "local"
    jobs: Jobs = None
    threads: Threads = None
    gpus: Annotated[
        float | None,
        typer.Option(min=0, help="With Ray: GPUs that each run reserves, such as 1 or 0.5."),
    ] = None
    address: Annotated[
        str | None,
        typer.Option(
            help="Of the Ray cluster: HOST:6379, ray://HOST:10001; by default this machine's."
        ),
    ] = None
    retries: Annotated[
        int, typer.Option(min=0, help="How many deaths of its worker process a run survives.")
    ] = 1
    device: Device = "cpu"

    @contextmanager
    def started(self, store: sf.runs.Store) -> Iterator[sf.runs.Executor]:
        """Give the executor, which starts nothing before the first task, and end it.

        Raises:
            SpecError: for an option of the other kind, or a device that is not here.
        """
        made = self._make(store)
        # Ray writes to standard output when a worker dies, which is the place of tables and JSON
        with redirect_stdout(sys.stderr), made:
            yield made

    def _make(self, store: sf.runs.Store) -> sf.runs.Executor:
        if self.executor == "ray":
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


def with_engine(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of an :class:`Engine` in the place of its parameter ``engine``."""
    hints = get_type_hints(Engine, include_extras=True)
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(Engine)
    ]  # fmt: skip

    @functools.wraps(command)
    def wrapped(*arguments: Any, **given: Any) -> None:
        engine = Engine(**{option.name: given.pop(option.name) for option in options})
        command(*arguments, **given, engine=engine)

    before = inspect.signature(command, eval_str=True).parameters.values()
    after = [q for p in before for q in (options if p.name == "engine" else [p])]
    wrapped.__signature__ = inspect.Signature(after)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in after}
    return wrapped
