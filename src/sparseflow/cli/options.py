"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseflow.core.code import use as load_code

Seed = Annotated[int, typer.Option(help="Seed of initialisation, masks and data order.")]
Scale = Annotated[float, typer.Option(help="Multiply the steps and all schedules together.")]


def _one_value(settings: list[str] | None) -> list[str] | None:
    """Refuse a grid where one run is meant."""
    if not settings:
        return settings
    from sparseflow.recipes.grid import one_each

    return list(one_each(settings))


_SETTING = (
    "Change a field of the specification: density=0.02, train.steps=2000, mask=erk, method=set; "
    "'show' lists all. May be repeated."
)
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", callback=_one_value, help=_SETTING),
]
SettingsGrid = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE[,VALUE...]",
        help=f"{_SETTING} Several values make a grid: the product of all.",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH=VALUE[,VALUE...]",
        help="Take all runs in the store whose field has one of these values, whatever else "
        "they were told: optimizer.lr=0.1. May be repeated.",
    ),
]
StorePath = Annotated[
    Path, typer.Option("--store", envvar="SPARSEFLOW_RUNS", help="Folder that holds the runs.")
]
Device = Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of each process.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Worker processes, 2 by default. With Ray, runs under way at most, as many as it has "
        "room for by default.",
    ),
]


def _load(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        load_code(name)
    return names


Use = Annotated[
    list[str] | None,
    typer.Option(
        "--use",
        metavar="FILE.py",
        envvar="SPARSEFLOW_USE",
        callback=_load,
        is_eager=True,
        help="Load a file or module that registers methods, models, ... May be repeated.",
    ),
]
"""Loaded before anything else is read; the commands themselves have no need of it."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")]

RUNS = Path("runs")
