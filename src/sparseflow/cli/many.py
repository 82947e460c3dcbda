"""The commands that carry out many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sparseflow as sf
from sparseflow.cli.engine import Engine, with_engine
from sparseflow.cli.known import known_row, known_runs, tell_known
from sparseflow.cli.options import (
    RUNS,
    Device,
    Jobs,
    Json,
    Out,
    Scale,
    SettingsGrid,
    StorePath,
    Use,
)
from sparseflow.cli.show import print_json, stdout
from sparseflow.cli.work import (
    parse_seeds,
    report_on,
    row_of,
    run_studies,
    run_sweep,
    runs_table,
    show_costs,
)
from sparseflow.core.choices import Execution


def demo(
    *,
    scale: Scale = 0.25,
    jobs: Jobs = None,
    out: Out = Path("report"),
    folder: StorePath = RUNS,
    device: Device = "cpu",
    use: Use = None,
    as_json: Json = False,
) -> None:
    """The main job, shortened: five ways to start a 95 % sparse LeNet5 on MNIST.

    Prunes a network, then trains its lottery ticket, and on that mask shuffled:
    masked dense initialisation (it dies), the paper's (it lives), and RigL from
    the paper's. Steps and schedules are scaled alike. Ends in a table and a
    page; takes under four minutes on two cores.
    """
    specs, store = sf.recipes.demo_specs(scale), sf.runs.Store(folder)
    with Engine(jobs=jobs, device=device).started(store) as executor:
        run_sweep(specs, store, executor, device)
    runs = [store.run(spec) for spec in specs]
    report_on(runs, "lenet5-mnist", f"demo at scale {scale:g}", out, as_json)


@with_engine
def sweep(
    names: Annotated[
        list[str],
        typer.Argument(help="Families, recipes or patterns: lenet5-mnist 'mlp-mnist/rigl*' ..."),
    ],
    *,
    seeds: Annotated[str, typer.Option(help="Such as 0-4 or 0,2,7.")] = "0",
    engine: Engine,
    scale: Scale = 1.0,
    settings: SettingsGrid = None,
    known: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RESULTS.json",
            help="Runs in these compact results count as done; their checkpoints are not there, "
            "so that one which another run starts from is made all the same. May be repeated.",
        ),
    ] = None,
    folder: StorePath = RUNS,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Run many recipes over many seeds, in worker processes or on a Ray cluster, parents first.

    Skips what is finished, resumes what is not. A family stands for all its
    recipes, those that only measure initialisation included. Several values of a --set
    are a grid: --set optimizer.lr=0.1,0.05 --set density=0.02,0.05 makes four variants
    of each recipe and seed. With --executor ray each run reserves as many CPUs as
    --threads says, one by default.
    Example: sparseflow sweep lenet5-mnist --seeds 0-4 --jobs 2
    """
    specs = [
        sf.recipes.make_spec(name, seed=seed, scale=scale, settings=variant)
        for seed in parse_seeds(seeds)
        for variant in sf.recipes.grid(settings or ())
        for name in sf.recipes.expand(names)
    ]
    wanted, there = {sf.runs.identity(spec): spec for spec in specs}, known_runs(known or ())
    store = sf.runs.Store(folder)
    with engine.started(store) as workers:
        missing = [spec for name, spec in wanted.items() if name not in there]
        done = run_sweep(missing, store, workers, engine.device)
    if known:
        tell_known(wanted, there, done)
    rows = [row_of(job.run) for job in done.values()]
    left = {name: spec for name, spec in wanted.items() if name in there and name not in done}
    rows += [known_row(spec, there[name]) for name, spec in left.items()]
    if as_json:
        print_json(rows)
    else:
        stdout.print(runs_table("runs", [r for r in rows if "/init-" not in r["recipe"]]))


@with_engine
def reproduce(
    family: Annotated[str, typer.Argument(help="lenet5-mnist, the one of the paper's table.")],
    *,
    scale: Scale = 1.0,
    execution: Annotated[Execution, typer.Option(help="Of all runs.")] = "auto",
    engine: Engine,
    out: Out = Path("report"),
    folder: StorePath = RUNS,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Run all that the paper's MNIST evidence needs, and judge it claim by claim.

    Trains what is missing, measures what is missing (curvature, geometry,
    agreement), and writes one page: each claim with the paper's value, ours
    with its interval, and a verdict. Stop it whenever you like; the same
    command goes on. Example: sparseflow reproduce lenet5-mnist --scale 0.05
    """
    store = sf.runs.Store(folder)
    planned = sf.paper.reproduction(family, store, scale=scale, execution=execution)
    wanted = [*planned.runs, *planned.groups, *planned.at_start]
    with engine.started(store) as workers:
        run_sweep(wanted, store, workers, engine.device)
        evidence = run_studies(planned.studies, store, workers)
    forced = execution != "auto"
    changed = [f"scale {scale:g}"] * (scale != 1) + [f"execution={execution}"] * forced
    title = ", ".join(changed) or "the full protocol"
    runs = [store.run(spec) for spec in (*planned.runs, *planned.at_start)]
    report_on(runs, family, title, out, as_json, published=scale == 1, evidence=evidence)
    show_costs(wanted, planned.studies, store)
