"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(help="Seed of initialisation, masks and data order.")]
Scale = Annotated[float, typer.Option(help="Multiply the steps and all schedules together.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field of the specification: density=0.02, train.steps=2000, mask=erk. "
        "May be repeated.",
    ),
]
StorePath = Annotated[
    Path, typer.Option("--store", envvar="SPARSEFLOW_RUNS", help="Folder that holds the runs.")
]
Device = Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of each process.")]
Jobs = Annotated[int, typer.Option(min=1, help="Worker processes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")]

RUNS = Path("runs")
