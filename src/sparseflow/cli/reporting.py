"""The command that writes the report of runs, and of compact results of other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparseflow.cli.options import RUNS, Json, Out, Scale, SettingsGrid, StorePath, Use, Where
from sparseflow.core.errors import SpecError


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="A family, recipes, patterns ('lenet5-mnist/rigl*'), ids of runs (or their "
            "start), results.json files."
        ),
    ],
    *,
    out: Out = Path("report"),
    scale: Scale = 1.0,
    settings: SettingsGrid = None,
    where: Where = None,
    folder: StorePath = RUNS,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Write tables, figures and one page; nothing is run again.

    Of recipes it takes the runs with just these --scale and --set, all variants where
    --set has several values; with --where all runs whose fields have these values. Results
    of other machines or days are joined with them: a run that several hold enters once,
    and must have equal values in all.

    Writes index.html (self-contained), table.md, table.csv, results.json and
    each figure as SVG and PNG. Example: sparseflow report lenet5-mnist -o report/
    """
    from sparseflow.cli.work import write_out
    from sparseflow.report import load_results, merge

    files = [source for source in sources if source.endswith(".json")]
    names = [source for source in sources if source not in files]
    told = [f"--set {each}" for each in settings or ()] + [f"--where {w}" for w in where or ()]
    told += [f"--scale {scale:g}"] * (scale != 1)
    if told and not names:
        raise SpecError(f"{told[0]} chooses runs of the store: name a family or a recipe too")
    parts = {name: load_results(Path(name)) for name in files}
    if names:
        parts = {f"the store {folder}": _collected(names, folder, scale, settings, where)} | parts
    results = merge(parts)
    write_out(results, out, as_json)


def _collected(
    names: list[str],
    folder: Path,
    scale: float,
    settings: list[str] | None,
    where: list[str] | None,
) -> Any:
    from sparseflow.recipes import choose
    from sparseflow.report import collect
    from sparseflow.runs import Store

    chosen = choose(names, Store(folder), scale=scale, settings=settings or (), where=where or ())
    return collect(
        chosen.runs, family=chosen.family, title=chosen.title, published=chosen.published
    )
