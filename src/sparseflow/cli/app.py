"""The commands: each turns its options into one call of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
import typer

from sparseflow import __version__
from sparseflow.cli.compare import compare
from sparseflow.cli.export import export
from sparseflow.cli.many import demo, reproduce, sweep
from sparseflow.cli.options import (
    RUNS,
    Device,
    Json,
    Out,
    Scale,
    Seed,
    Settings,
    StorePath,
    Threads,
    Use,
)
from sparseflow.cli.probes import Probe, check_count, make_study, places, tables
from sparseflow.cli.ranks import joined
from sparseflow.cli.show import print_json, run_progress, stdout, table
from sparseflow.cli.tensorboard import tensorboard
from sparseflow.cli.work import (
    check_store,
    parse_seeds,
    report_on,
    report_room,
    row_of,
    runs_table,
    show_flow,
    write_out,
)
from sparseflow.core.errors import SpecError, StoreError
from sparseflow.recipes import (
    FAMILIES,
    expand,
    group_names,
    make_spec,
    makers,
    recipe_names,
)
from sparseflow.runs import (
    Store,
    execute,
    matching,
    remeasure,
)
from sparseflow.runs.execution import check_device
from sparseflow.studies import carry_out

app = typer.Typer(
    name="sparseflow",
    epilog="Start with: sparseflow demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def about(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Train sparse networks and measure their gradient flow."""


app.command()(demo)


@app.command("list")
def list_(
    *,
    store: StorePath = RUNS,
    check: Annotated[
        bool, typer.Option("--check", help="Read every file; name what is broken, and what to do.")
    ] = False,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """List the recipes, and the runs in the store; or check every file of it."""
    if check:
        check_store(Store(store), as_json)
        return
    recipes = [n for family in FAMILIES for n in (*recipe_names(family), *group_names(family))]
    runs = [row_of(run) for run in Store(store).runs()]
    damaged = [row["id"] for row in runs if row["state"] == "damaged"]
    if as_json:
        print_json({"recipes": recipes, "runs": runs})
    else:
        _show_list(runs, store)
    if damaged:
        raise StoreError(f"damaged runs in {store}: {', '.join(damaged)}; remove them to run again")


def _show_list(runs: list[dict[str, Any]], store: Path) -> None:
    for family in FAMILIES:
        full = (*recipe_names(family), *group_names(family))
        names = [name.partition("/")[2] for name in full]
        stdout.print(f"[bold]{family}/[/bold]  {'  '.join(names)}", highlight=False)
    shown = [row for row in runs if "/init-" not in row["recipe"]]
    if shown:
        stdout.print(runs_table(f"runs in {store}", shown))
    if len(shown) < len(runs):
        stdout.print(f"and {len(runs) - len(shown)} that measure initialisation only")
    if not runs:
        stdout.print(f"no runs in {store} yet: try 'sparseflow demo'")


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Such as lenet5-mnist/rigl+; see 'list'.")],
    *,
    seed: Seed = 0,
    scale: Scale = 1.0,
    settings: Settings = None,
    store: StorePath = RUNS,
    device: Device = "cpu",
    threads: Threads = None,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Run one recipe, its missing parents first.

    A finished run is not run again; an interrupted one goes on from its last
    checkpoint and ends bit for bit as if it had not been interrupted.
    Example: sparseflow run lenet5-mnist/rigl+ --seed 3 --set density=0.02

    On many devices or cores, ranks train one run together:
    torchrun --nproc-per-node 4 -m sparseflow run lenet5-mnist/rigl+
    """
    check_device(device)
    if threads:
        torch.set_num_threads(threads)
    spec = make_spec(recipe, seed=seed, scale=scale, settings=settings or ())
    with joined(device) as (own, reports), run_progress() as progress:
        done = execute(spec, Store(store), device=own, progress=progress)
    if not reports:
        return
    row = row_of(done) | done.result
    if as_json:
        print_json(row | {"path": str(done.path)})
    else:
        stdout.print(table("finished", [{"": k, "value": v} for k, v in row.items()]))


app.command()(sweep)
app.command()(compare)


@app.command()
def measure(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Ids (or their start) or recipes, each with @STEP."),
    ],
    *,
    probe: Annotated[Probe, typer.Option(help="What to measure.")] = "flow",
    at: Annotated[str, typer.Option(help="A kept step, 'start' or 'end'.")] = "end",
    seeds: Annotated[
        str, typer.Option("--seeds", "--seed", help="Of recipes, such as 0-4 or 0,2,7.")
    ] = "0",
    reference: Annotated[
        str | None, typer.Option(help="agreement: a run that all are compared with.")
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            min=1, help="hessian, update, interpolate, plane: training examples, at most."
        ),
    ] = None,
    exact: Annotated[bool, typer.Option(help="hessian: every eigenvalue, no density.")] = False,
    aligned: Annotated[
        bool, typer.Option(help="interpolate: permute the first run's units to match first.")
    ] = False,
    scale: Scale = 1.0,
    settings: Settings = None,
    store: StorePath = RUNS,
    device: Device = "cpu",
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Measure kept checkpoints again, or against each other; nothing is trained.

    flow: gradient flow, signal, accuracy, distance to the start. hessian: the
    spectrum of the Hessian. update: one mask update by each rule. interpolate:
    loss along the line between two. plane: through three. distance: between all.
    agreement: of their predictions, and ensembles.
    Example: sparseflow measure lenet5-mnist/lottery lenet5-mnist/prune
    --probe interpolate
    """
    check_device(device)
    made = {"scale": scale, "settings": settings or ()}
    room, numbers = Store(store), parse_seeds(seeds)
    found = places(names, numbers, at, room, **made)
    if probe == "flow":
        check_count(probe, found)
        show_flow(remeasure(found[0].run, found[0].step, device=device), as_json)
        return
    if device != "cpu":
        raise SpecError(f"--probe {probe} measures on the CPU, not on --device {device}")
    beside = places([reference], numbers[:1], at, room, **made)[0] if reference else None
    study = make_study(
        probe, found, examples=examples, exact=exact, aligned=aligned, reference=beside
    )
    seen = carry_out(study, room)
    if as_json:
        print_json(msgspec.to_builtins(seen))
        return
    for shown in tables(seen):
        stdout.print(shown)


app.command()(reproduce)


@app.command()
def report(
    sources: Annotated[
        list[str],
        typer.Argument(help="A family or some of its recipes, or one results.json file."),
    ],
    *,
    out: Out = Path("report"),
    scale: Scale = 1.0,
    settings: Settings = None,
    store: StorePath = RUNS,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Write tables, figures and one page; nothing is run again.

    Writes index.html (self-contained), table.md, table.csv, results.json and
    each figure as SVG and PNG. Example: sparseflow report lenet5-mnist -o report/
    """
    if any(source.endswith(".json") for source in sources):
        if len(sources) > 1 or settings or scale != 1:
            raise SpecError("a results.json file stands alone: no other source, --set or --scale")
        write_out(report_room().load_results(Path(sources[0])), out, as_json)
        return
    names = expand(sources)
    families = sorted({name.partition("/")[0] for name in names})
    if len(families) > 1:
        raise SpecError(f"a report is of one family, not of {' and '.join(families)}")
    changed = [f"scale {scale:g}"] * (scale != 1) + list(settings or ())
    title = "the full protocol" if not changed else ", ".join(changed)
    runs = matching(makers(names, scale=scale, settings=settings or ()), Store(store))
    report_on(runs, families[0], title, out, as_json, published=not changed)


app.command()(export)
app.command()(tensorboard)
