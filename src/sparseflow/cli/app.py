"""The commands: each turns its options into one call of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sparseflow.cli.show import print_json, run_progress, stdout, table
from sparseflow.cli.work import (
    check_device,
    parse_seeds,
    report_on,
    report_room,
    row_of,
    run_sweep,
    runs_table,
    step_of,
    write_out,
)
from sparseflow.core.errors import SpecError, StoreError
from sparseflow.recipes import FAMILIES, demo_specs, expand, make_spec, recipe_names
from sparseflow.runs import (
    Store,
    execute,
    matching,
    remeasure,
)

app = typer.Typer(
    name="sparseflow",
    help="Train sparse networks and measure their gradient flow.",
    epilog="Start with: sparseflow demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


@app.command()
def demo(
    *,
    scale: Scale = 0.25,
    jobs: Jobs = 2,
    out: Out = Path("report"),
    store: StorePath = RUNS,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """The main job, shortened: five ways to start a 95 % sparse LeNet5 on MNIST.

    Prunes a network, then trains its lottery ticket, and on that mask shuffled:
    masked dense initialisation (it dies), the paper's (it lives), and RigL from
    the paper's. Steps and schedules are scaled alike. Ends in a table and a
    page; takes under four minutes on two cores.
    """
    specs = demo_specs(scale)
    run_sweep(specs, Store(store), jobs, None, device)
    report_on(
        matching(specs, Store(store)), "lenet5-mnist", f"demo at scale {scale:g}", out, as_json
    )


@app.command("list")
def list_(*, store: StorePath = RUNS, as_json: Json = False) -> None:
    """List the recipes, and the runs in the store."""
    recipes = [name for family in FAMILIES for name in recipe_names(family)]
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
        names = [name.partition("/")[2] for name in recipe_names(family)]
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
    as_json: Json = False,
) -> None:
    """Run one recipe, its missing parents first.

    A finished run is not run again; an interrupted one goes on from its last
    checkpoint and ends bit for bit as if it had not been interrupted.
    Example: sparseflow run lenet5-mnist/rigl+ --seed 3 --set density=0.02
    """
    check_device(device)
    if threads:
        torch.set_num_threads(threads)
    spec = make_spec(recipe, seed=seed, scale=scale, settings=settings or ())
    with run_progress() as progress:
        done = execute(spec, Store(store), device=device, progress=progress)
    row = row_of(done) | done.result
    if as_json:
        print_json(row | {"path": str(done.path)})
    else:
        stdout.print(table("finished", [{"": k, "value": v} for k, v in row.items()]))


@app.command("sweep")
def sweep_(
    names: Annotated[list[str], typer.Argument(help="Families or recipes: lenet5-mnist ...")],
    *,
    seeds: Annotated[str, typer.Option(help="Such as 0-4 or 0,2,7.")] = "0",
    jobs: Jobs = 1,
    threads: Threads = None,
    scale: Scale = 1.0,
    settings: Settings = None,
    store: StorePath = RUNS,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Run many recipes over many seeds in worker processes, parents first.

    Skips what is finished, resumes what is not. A family stands for all its
    recipes, those that only measure initialisation included.
    Example: sparseflow sweep lenet5-mnist --seeds 0-4 --jobs 2
    """
    specs = [
        make_spec(name, seed=seed, scale=scale, settings=settings or ())
        for seed in parse_seeds(seeds)
        for name in expand(names)
    ]
    done = run_sweep(specs, Store(store), jobs, threads, device)
    rows = [row_of(job.run) for job in done.values()]
    if as_json:
        print_json(rows)
    else:
        stdout.print(runs_table("runs", [r for r in rows if "/init-" not in r["recipe"]]))


@app.command()
def measure(
    which: Annotated[
        str, typer.Argument(metavar="RUN", help="Id (or its start) or recipe of a run.")
    ],
    *,
    at: Annotated[str, typer.Option(help="A kept step, 'start' or 'end'.")] = "end",
    seed: Seed = 0,
    scale: Scale = 1.0,
    settings: Settings = None,
    store: StorePath = RUNS,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure a checkpoint of a run again: gradient flow, signal, accuracy, distance.

    Example: sparseflow measure lenet5-mnist/rigl+ --seed 3 --at 1000
    """
    check_device(device)
    if "/" in which:
        found = Store(store).run(make_spec(which, seed=seed, scale=scale, settings=settings or ()))
    else:
        found = Store(store).find(which)
    values = remeasure(found, step_of(found, at), device=device)
    if as_json:
        print_json(values)
        return
    flow, signal = values["flow"], values["signal"]
    head = {k: values[k] for k in ("run", "recipe", "step", "test_accuracy", "test_loss")}
    norms = {
        f"gradient norm, {k}": flow[k] for k in ("total", "kernels", "biases", "dense", "effective")
    }
    rest = {
        "probe loss": flow["loss"],
        "loss decrease of a step": values["decrease"]["actual"],
        "its first-order prediction": values["decrease"]["predicted"],
        "output std": signal["output"],
        "L2 distance to start": values["distance_to_start"]["l2"],
        "cosine distance to start": values["distance_to_start"]["cosine"],
    }
    stdout.print(table("measured", [{"": k, "value": v} for k, v in (head | norms | rest).items()]))
    layers = [
        {"parameter": k, "gradient norm": v, "active": values["active"].get(k)}
        for k, v in flow["per_layer"].items()
    ]
    stdout.print(table("by layer", layers))


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
    specs = [make_spec(name, scale=scale, settings=settings or ()) for name in names]
    changed = [f"scale {scale:g}"] * (scale != 1) + list(settings or ())
    title = "the full protocol" if not changed else ", ".join(changed)
    runs = matching(specs, Store(store))
    report_on(runs, families[0], title, out, as_json, published=not changed)
