"""The command that lists recipes and runs, or checks every file of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparseflow.cli.options import RUNS, Json, StorePath, Use
from sparseflow.cli.show import print_json, stdout
from sparseflow.core.errors import StoreError


def list_(
    *,
    folder: StorePath = RUNS,
    check: Annotated[
        bool, typer.Option("--check", help="Read every file; name what is broken, and what to do.")
    ] = False,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """List the recipes, and the runs in the store; or check every file of it.

    Of a run it says how far it has come, in which settings it differs from its recipe
    (the first three; 'show' has all), and what code of yours it rests on.
    """
    if check:
        _check(folder, as_json)
        return
    from sparseflow.cli.work import row_of
    from sparseflow.recipes import FAMILIES, group_names, recipe_names
    from sparseflow.runs import Store

    names = {family: [*recipe_names(family), *group_names(family)] for family in FAMILIES}
    rows = [row_of(run) for run in Store(folder).runs()]
    if as_json:
        print_json({"recipes": [name for each in names.values() for name in each], "runs": rows})
    else:
        _show(names, rows, folder)
    damaged = [row["id"] for row in rows if row["state"] == "damaged"]
    if damaged:
        raise StoreError(
            f"damaged runs in {folder}: {', '.join(damaged)}; remove them to run again"
        )


def _show(names: dict[str, list[str]], rows: list[dict[str, Any]], folder: Path) -> None:
    from sparseflow.cli.work import runs_table

    for family, recipes in names.items():
        short = "  ".join(name.partition("/")[2] for name in recipes)
        stdout.print(f"[bold]{family}/[/bold]  {short}", highlight=False)
    shown = [row for row in rows if "/init-" not in row["recipe"]]
    if shown:
        stdout.print(runs_table(f"runs in {folder}", shown))
    if len(shown) < len(rows):
        stdout.print(f"and {len(rows) - len(shown)} that measure initialisation only")
    if not rows:
        stdout.print(f"no runs in {folder} yet: try 'sparseflow demo'")


def _check(folder: Path, as_json: bool) -> None:
    """Read every file of a store and say what is wrong; raise if anything is broken."""
    from sparseflow import studies
    from sparseflow.runs import Store, inspect

    store = Store(folder)
    findings = [*inspect(store), *studies.inspect(store)]
    wrong = [each for each in findings if each.wrong]
    if as_json:
        print_json([each._asdict() | {"path": str(each.path)} for each in wrong])
    else:
        for each in wrong:
            sign = "broken" if each.broken else "note"
            text = f"{sign}: {each.path}: {each.wrong}\n    {each.remedy}"
            stdout.print(text, markup=False, soft_wrap=True)
    broken = sum(each.broken for each in wrong)
    if broken:
        raise StoreError(f"{broken} files in {folder} are broken or missing")
    if not as_json:
        well = sum(not each.wrong for each in findings)
        stdout.print(f"all {well:,} files are well in {folder}", markup=False, highlight=False)
