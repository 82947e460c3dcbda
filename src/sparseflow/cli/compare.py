"""The command that compares recipes seed by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sparseflow as sf
from sparseflow.cli.engine import Engine, with_engine
from sparseflow.cli.options import (
    RUNS,
    Json,
    Out,
    Scale,
    Settings,
    StorePath,
    Use,
)
from sparseflow.cli.show import plain, print_json, stderr, stdout
from sparseflow.cli.work import parse_seeds, run_sweep
from sparseflow.core.errors import SpecError


@with_engine
def compare(
    recipes: Annotated[
        list[str], typer.Argument(metavar="A B ...", help="Recipes; all are compared with A.")
    ],
    *,
    seeds: Annotated[str, typer.Option(help="Such as 0-4 or 0,2,7.")] = "0-4",
    engine: Engine,
    scale: Scale = 1.0,
    settings: Settings = None,
    out: Out = Path("comparison"),
    folder: StorePath = RUNS,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Run what is missing, then compare recipes with the first one, seed by seed.

    Accuracy, loss, gradient norm and cost, as paired differences with intervals
    and exact tests; dead runs are counted apart. Writes comparison.md, .csv,
    .tex, .json, .svg and .png. Stop it whenever you like; the same command goes on.
    Example: sparseflow compare lenet5-mnist/rigl+ lenet5-mnist/mine+
    --seeds 0-9 --use mine.py
    """
    store, numbers = sf.runs.Store(folder), parse_seeds(seeds)
    if twice := sorted({r for r in recipes if recipes.count(r) > 1}):
        raise SpecError(f"{', '.join(twice)} is named twice: compare recipes with each other")
    made = {"scale": scale, "settings": settings or ()}
    specs = {r: {s: sf.recipes.make_spec(r, seed=s, **made) for s in numbers} for r in recipes}
    groups = {r: {s: store.run(spec) for s, spec in of.items()} for r, of in specs.items()}
    sf.report.check_comparable(groups)
    with engine.started(store) as workers:
        run_sweep(
            [spec for of in specs.values() for spec in of.values()], store, workers, engine.device
        )
    _write(groups, out, as_json)


def _write(groups: dict[str, dict[int, sf.runs.Run]], out: Path, as_json: bool) -> None:
    files = sf.report.write_comparison(compared := sf.report.compare(groups), out)
    if as_json:
        print_json(sf.report.comparison_data(compared) | {"files": [str(path) for path in files]})
        return
    text = sf.report.comparison_markdown(compared)
    harmless = "\n".join(map(plain, text.split("\n")))
    stdout.print(harmless, highlight=False, markup=False, soft_wrap=True)
    stderr.print(f"wrote {len(files)} files to {out}", highlight=False)
