"""The commands that show what a run is told, and in what two runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from sparseflow.cli.options import RUNS, Json, Scale, Seed, Settings, StorePath, Use
from sparseflow.cli.show import print_json, stdout, table
from sparseflow.core.errors import SpecError

_NAME = "Id (or its start) or recipe."


def show(
    name: Annotated[str, typer.Argument(metavar="RUN|RECIPE", help=_NAME)],
    *,
    seed: Seed = 0,
    scale: Scale = 1.0,
    settings: Settings = None,
    folder: StorePath = RUNS,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Show the whole specification of a run or a recipe.

    Each field with its value, the value it has in the recipe, the default and what it
    takes; each can be changed with --set FIELD=VALUE. Methods, initialisations and
    schedules are written as the Python that makes them. Of a run also where it is,
    how far it has come and its result.
    Example: sparseflow show lenet5-mnist/rigl+
    """
    from sparseflow.cli.work import row_of, run_table
    from sparseflow.recipes import command

    run = _named([name], folder, seed, scale, settings)[0]
    fields, parents = _fields(run), _parents(run)
    head = row_of(run) | {
        "path": str(run.path) if run.path.exists() else None,
        "command": command(run),
        "result": run.result if run.finished else None,
    }
    if as_json:
        print_json(head | {"parents": parents, "fields": fields})
        return
    stdout.print(run_table("run", head))
    shown = [_shown(row) for row in fields if row["field"] != "recipe"]  # it stands above
    stdout.print(table("specification", shown))
    for line in dict.fromkeys(map(_parent_text, parents)):
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)
    stdout.print("to change a field: --set FIELD=VALUE", markup=False, highlight=False)


def diff(
    names: Annotated[list[str], typer.Argument(metavar="A B", help=f"{_NAME} Two of them.")],
    *,
    seed: Seed = 0,
    scale: Scale = 1.0,
    settings: Settings = None,
    folder: StorePath = RUNS,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Show the fields in which two runs or recipes differ, side by side.

    Fields of their parents too, by path (mask.run.train.steps), and user code.
    Example: sparseflow diff lenet5-mnist/rigl+ lenet5-mnist/set+
    """
    from sparseflow.runs.describe import ABSENT, differences

    if len(names) != 2:
        raise SpecError(f"diff compares two runs or recipes, not {len(names)}")
    one, other = _named(names, folder, seed, scale, settings)
    rows = [each._asdict() for each in differences(one.spec, other.spec)]
    mine, theirs = ({code.file: code.digest for code in run.code} for run in (one, other))
    for file in dict.fromkeys((*mine, *theirs)):
        digests = mine.get(file, ABSENT), theirs.get(file, ABSENT)
        if digests[0] != digests[1]:
            rows.append({"path": f"code {file}", "one": digests[0], "other": digests[1]})
    if as_json:
        print_json({"one": one.id, "other": other.id, "fields": rows})
        return
    heads = [f"{name} ({run.id[:8]})" for name, run in zip(names, (one, other), strict=True)]
    shown = [{"field": r["path"], heads[0]: r["one"], heads[1]: r["other"]} for r in rows]
    if one.id == other.id:
        stdout.print(f"one run, {one.id}", highlight=False)
    elif not shown:
        stdout.print(f"the same fields, made by other numerics: {one.obsolete or other.obsolete}")
    if shown:
        stdout.print(table("differences", shown))


def _named(
    names: Sequence[str], folder: Any, seed: int, scale: float, settings: list[str] | None
) -> list[Any]:
    """Runs that the words stand for; what is said of recipes needs one among them."""
    from sparseflow.recipes import is_id, named
    from sparseflow.runs import Store

    told = [f"--set {each}" for each in settings or ()]
    told += [f"--seed {seed}"] * (seed != 0) + [f"--scale {scale:g}"] * (scale != 1)
    if told and all(map(is_id, names)):
        raise SpecError(f"{told[0]} is for recipes; run {names[0]} is what it is")
    making = {"seed": seed, "scale": scale, "settings": settings or ()}
    return [named(name, Store(folder), **making) for name in names]


def _fields(run: Any) -> list[dict[str, Any]]:
    """Rows of the specification, with the recipe's own value next to each."""
    from sparseflow.core.errors import SparseflowError
    from sparseflow.recipes import make_spec
    from sparseflow.runs.describe import describe

    try:
        recipe = make_spec(run.spec.recipe, seed=run.spec.seeds.data)
        own = {field.path: field.value for field in describe(recipe)}
    except SparseflowError:
        own = {}
    return [
        {
            "field": field.path,
            "value": field.value,
            "recipe": own.get(field.path, ""),
            "default": field.default,
            "takes": field.takes,
            "set": f"{field.path}={field.value}" if field.settable else None,
        }
        for field in describe(run.spec)
    ]


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """A row of the specification for a terminal."""
    other = f" (recipe: {row['recipe']})" if row["recipe"] not in ("", row["value"]) else ""
    return {
        "field": row["field"],
        "value": row["value"] + other,
        "default": row["default"],
        "takes": row["takes"],
    }


def _parent_text(parent: dict[str, Any]) -> str:
    other = ", ".join(f"{path}={value}" for path, value in parent["differs"].items())
    return f"parent: {parent['recipe']}, run {parent['id']}, with {other or 'the same settings'}"


def _parents(run: Any) -> list[dict[str, Any]]:
    """Parents by the field that they come in, with their fields that are not the run's own."""
    from sparseflow.runs.describe import ABSENT, differences
    from sparseflow.runs.hashing import identity

    rows = []
    for field in ("mask", "weights"):
        parent = getattr(getattr(run.spec, field), "run", None)
        if parent is None:
            continue
        other = {each.path: each.other for each in differences(run.spec, parent)}
        differs = {p: v for p, v in other.items() if p != "recipe" and ".run" not in p}
        rows.append(
            {
                "field": f"{field}.run",
                "id": identity(parent),
                "recipe": parent.recipe,
                "differs": {path: value for path, value in differs.items() if value != ABSENT},
            }
        )
    return rows
