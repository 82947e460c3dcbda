"""The command that shows runs in TensorBoard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import sparseflow as sf
from sparseflow.cli.options import RUNS, Json, Scale, Settings, StorePath, Use
from sparseflow.cli.probes import places
from sparseflow.cli.show import print_json, stdout, table
from sparseflow.cli.work import parse_seeds
from sparseflow.core.errors import StoreError


def tensorboard(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Ids (or their start), recipes, or all.")
    ],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")],
    seeds: Annotated[
        str, typer.Option("--seeds", "--seed", help="Of recipes, such as 0-4 or 0,2,7.")
    ] = "0",
    scale: Scale = 1.0,
    settings: Settings = None,
    folder: StorePath = RUNS,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Write what runs have measured as event files, a folder a run.

    Gradient flow, evaluation and mask updates, as scalars. Writing again replaces what
    was there. Needs an extra: pip install 'sparseflow[tensorboard]'.
    Example: sparseflow tensorboard all -o events/ && tensorboard --logdir events/
    """
    from sparseflow.integrations.tensorboard import write_events

    store = sf.runs.Store(folder)
    if "all" in names:
        runs = [run for run in store.runs() if (run.path / "metrics.jsonl").is_file()]
    else:
        making = {"scale": scale, "settings": settings or ()}
        runs = [p.run for p in places(names, parse_seeds(seeds), "end", store, **making)]
    if not runs:
        raise StoreError(f"no run in {store.root} has measured anything yet")
    rows = []
    for run, where in zip(runs, folders(runs), strict=True):
        count = write_events(out / where, run.metrics())
        rows.append({"id": run.id, "folder": str(out / where), "scalars": count})
    if as_json:
        print_json(rows)
    else:
        shown = [row | {"id": row["id"][:8]} for row in rows]
        stdout.print(table("written", shown))


def folders(runs: Sequence[sf.runs.Run]) -> list[str]:
    """Name a folder for each run: recipe and seed, and the id where these name several."""
    plain = [f"{run.spec.recipe or 'run'}/seed-{run.seed.replace('/', '-')}" for run in runs]
    several = Counter(plain)
    return [
        name if several[name] == 1 else f"{name}-{run.id[:8]}"
        for name, run in zip(plain, runs, strict=True)
    ]
