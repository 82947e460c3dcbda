"""The commands: each turns its options into one call of the library.

They use the rooms through ``sf``, which imports each on first use: help and
version need not wait for PyTorch.
"""

from __future__ import annotations

from typing import Annotated

import typer

import sparseflow as sf
from sparseflow.cli.compare import compare
from sparseflow.cli.export import export
from sparseflow.cli.listing import list_
from sparseflow.cli.many import demo, reproduce, sweep
from sparseflow.cli.options import (
    RUNS,
    Device,
    Json,
    Scale,
    Settings,
    StorePath,
    Threads,
    Use,
)
from sparseflow.cli.probes import check_count, check_probe, make_study, places
from sparseflow.cli.ranks import joined
from sparseflow.cli.reporting import report
from sparseflow.cli.show import print_json, rich_table, run_progress, stdout
from sparseflow.cli.specification import diff, show
from sparseflow.cli.tensorboard import tensorboard
from sparseflow.cli.work import parse_seeds, row_of, run_table, show_flow
from sparseflow.core.errors import SpecError

app = typer.Typer(
    name="sparseflow",
    epilog="Start with: sparseflow demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would read [extra] as markup, and doubles the time of help
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(sf.__version__)
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


app.command("list")(list_)
app.command()(show)
app.command()(diff)


def run(
    recipe: Annotated[str, typer.Argument(help="Such as lenet5-mnist/rigl+; see 'list'.")],
    *,
    seed: Annotated[
        int | None,
        typer.Option(help="Of initialisation, masks and data order; 0, or that of --from."),
    ] = None,
    scale: Scale = 1.0,
    settings: Settings = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="Id (or its start) of a finished run."),
    ] = None,
    folder: StorePath = RUNS,
    device: Device = "cpu",
    threads: Threads = None,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Run one recipe, its missing parents first; or train on from the end of a run.

    A finished run is not run again; an interrupted one goes on from its last
    checkpoint and ends bit for bit as if it had not been interrupted.
    Example: sparseflow run lenet5-mnist/rigl+ --seed 3 --set density=0.02

    On many devices or cores, ranks train one run together:
    torchrun --nproc-per-node 4 -m sparseflow run lenet5-mnist/rigl+

    --from RUN starts from the weights and masks at the end of a finished run, as a run
    of its own: train.steps counts from there, the recipe's schedules begin again, and
    the state of the optimiser is not kept. Density, data and model are RUN's.
    Example: sparseflow run lenet5-mnist/rigl+ --set train.steps=20000 --from 1a2b3c4d
    """
    sf.runs.check_device(device)
    if threads:
        import torch

        torch.set_num_threads(threads)
    store, making = sf.runs.Store(folder), {"scale": scale, "settings": settings or ()}
    if from_ is None:
        spec = sf.recipes.make_spec(recipe, seed=seed or 0, **making)
    else:
        spec = sf.recipes.extend(recipe, store.find(from_), seed=seed, **making)
    with joined(device) as (own, reports), run_progress() as progress:
        done = sf.runs.execute(spec, store, device=own, progress=progress if reports else None)
    if not reports:
        return
    row = row_of(done) | {"path": str(done.path)}
    if as_json:
        print_json(row | done.result)
    else:
        stdout.print(run_table("finished", row | {"result": done.result}))


app.command()(run)
app.command()(sweep)
app.command()(compare)


def measure(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Ids (or their start) or recipes, each with @STEP."),
    ],
    *,
    probe: Annotated[str, typer.Option(help="What to measure: see above.")] = "flow",
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
    folder: StorePath = RUNS,
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
    sf.runs.check_device(device)
    made = {"scale": scale, "settings": settings or ()}
    store, numbers = sf.runs.Store(folder), parse_seeds(seeds)
    check_probe(probe)
    points = places(names, numbers, at, store, **made)
    if probe == "flow":
        check_count(probe, points)
        show_flow(sf.runs.remeasure(points[0].run, points[0].step, device=device), as_json)
        return
    if device != "cpu":
        raise SpecError(f"--probe {probe} measures on the CPU, not on --device {device}")
    other = places([reference], numbers[:1], at, store, **made)[0] if reference else None
    study = make_study(
        probe, points, examples=examples, exact=exact, aligned=aligned, reference=other
    )
    record = sf.studies.carry_out(study, store)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(record))
        return
    for shown in record.tables():
        stdout.print(rich_table(shown))


app.command()(measure)
app.command()(reproduce)


app.command()(report)
app.command()(export)
app.command()(tensorboard)
