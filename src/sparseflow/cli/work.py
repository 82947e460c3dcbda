"""What several commands do: sweep, report, and turn words into values."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sparseflow as sf
from sparseflow.cli.show import SweepView, plain, print_json, stderr, stdout, study_progress, table
from sparseflow.core.errors import SparseflowError, SpecError, StoreError


def parse_seeds(text: str) -> list[int]:
    """Read seeds such as ``0-4`` or ``0,2,7``.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            seeds += range(int(first), int(last if dash else first) + 1)
        except ValueError as error:
            raise SpecError(f"seeds {text!r} are not of the form 0-4 or 0,2,7") from error
    if not seeds:
        raise SpecError(f"seeds {text!r} name no seed")
    return seeds


def run_sweep(
    specs: list[sf.runs.RunSpec], store: sf.runs.Store, executor: sf.runs.Executor, device: str
) -> sf.runs.Graph:
    """Plan and run these specifications; raise once all is done if some failed."""
    planned = sf.runs.plan(specs, store)
    with SweepView(planned) as view:
        sf.runs.sweep(planned, store, executor, device=device, changed=view.changed)
    failed = [f"{j.run.label}: {j.error}" for j in planned.values() if j.state == "failed"]
    if failed:
        raise SparseflowError(f"{len(failed)} runs failed: " + "; ".join(failed))
    return planned


def run_studies(
    wanted: Sequence[sf.studies.Study], store: sf.runs.Store, executor: sf.runs.Executor
) -> list[sf.studies.Record]:
    """Carry out studies, with a bar where someone watches."""
    with study_progress(len(wanted)) as changed:
        return sf.studies.carry_out_all(wanted, store, executor, changed=changed)


def show_costs(
    specs: Sequence[sf.runs.RunSpec], made: Sequence[sf.studies.Study], store: sf.runs.Store
) -> None:
    """Say what runs and studies took, whenever that was, and the peak memory of this go."""
    trained = {run.id: run.seconds for run in map(store.run, specs)}
    measured = [sf.studies.seconds(study, store) for study in made]
    usage = resource.getrusage
    peak = max(usage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    stderr.print(
        f"{len(trained)} runs took {sum(trained.values()):,.0f} s (from where each last resumed), "
        f"{len(measured)} studies {sum(measured):,.0f} s, summed over processes; peak memory of a "
        f"process here {peak * 1024 / 1e9:.2f} GB",
        highlight=False,
    )


def show_flow(values: dict[str, Any], as_json: bool) -> None:
    """Print what :func:`sparseflow.runs.remeasure` found."""
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
        "FLOPs an example": values["flops"]["forward"],
        "the same, dense": values["flops"]["dense_forward"],
    }
    stdout.print(table("measured", [{"": k, "value": v} for k, v in (head | norms | rest).items()]))
    layers = [
        {"parameter": k, "gradient norm": v, "active": values["active"].get(k)}
        for k, v in flow["per_layer"].items()
    ]
    stdout.print(table("by layer", layers))


def report_on(
    runs: list[sf.runs.Run],
    family: str,
    title: str,
    out: Path,
    as_json: bool,
    published: bool = False,
    evidence: Sequence[sf.studies.Record] = (),
) -> None:
    """Collect runs and write their report."""
    if not runs:
        raise StoreError(f"no finished runs of {family} ({title}) in the store: run them first")
    results = sf.report.collect(
        runs, family=family, title=title, published=published, evidence=evidence
    )
    write_out(results, out, as_json)


def write_out(results: sf.report.Results, out: Path, as_json: bool) -> None:
    """Write a report and print its tables, or what they hold as JSON."""
    results = sf.paper.with_references(results)
    files = sf.paper.write_report(results, out)
    judged = sf.paper.claims(results) if results.evidence else []
    if as_json:
        content = {"rows": sf.report.summary_rows(results)}
        if judged:
            content |= {
                "claims": sf.paper.claims_rows(judged),
                "published": sf.paper.published_data(results),
            }
        print_json(content | {"files": [str(f) for f in files]})
        return
    tables = [sf.report.markdown_table(results)]
    if judged:
        tables += [sf.paper.published_markdown(results), sf.paper.claims_markdown(judged)]
    for text in tables:
        harmless = "\n".join(map(plain, text.split("\n")))
        stdout.print(harmless, highlight=False, markup=False, soft_wrap=True)
    stderr.print(f"wrote {len(files)} files; open {out / 'index.html'}", highlight=False)


def row_of(run: sf.runs.Run) -> dict[str, Any]:
    """Say how a run stands, for a table and for JSON."""
    state, accuracy = _state(run)
    how = sf.recipes.departure(run.spec)
    return {
        "id": run.id,
        "recipe": run.spec.recipe,
        "seed": run.seed,
        "density": run.spec.density,
        "steps": run.spec.train.steps,
        "step": run.step,
        "state": state,
        "scale": how.scale if how else None,
        "from": how.origin if how else None,
        "settings": list(how.settings) if how else None,
        "differs": how.short() if how else "recipe not known here",
        "code": {code.file: code.digest for code in run.code},
        "note": run.obsolete,
        "test_accuracy": accuracy,
    }


def _state(run: sf.runs.Run) -> tuple[str, float]:
    """State in a word or two, and the accuracy of what is finished."""
    accuracy = float("nan")
    if not run.finished:
        state = "started" if run.kept else "not started"
    else:
        try:
            accuracy, state = run.result["test_accuracy"], "finished"
        except StoreError:
            state = "damaged"
    if not (why := run.obsolete):
        return state, accuracy
    if run.needs:
        return f"needs {' '.join(f'--use {file}' for file in run.needs)}", accuracy
    return "older numerics" if why == "older numerics" else "other code", accuracy


def state_text(row: dict[str, Any]) -> str:
    """State of a run for people: of one that has begun also how far it is."""
    if row["state"] != "started":
        return row["state"]
    return f"started, step {row['step']:,} of {row['steps']:,}"


def run_table(title: str, row: dict[str, Any]) -> Any:
    """Make a table of one run: how it stands, and what it ended with."""
    lines = {
        "id": row["id"],
        "recipe": row["recipe"],
        "seed": row["seed"],
        "state": state_text(row),
        "differs from it in": row["differs"],
        "folder": row["path"],
        "made by": row.get("command"),
        "code": ", ".join(f"{file} {digest}" for file, digest in row["code"].items()),
        "note": row["note"],
        **(row["result"] or {}),
    }
    shown = {name: value for name, value in lines.items() if value not in ("", None)}
    return table(title, [{"": name, "value": value} for name, value in shown.items()])


def runs_table(title: str, rows: list[dict[str, Any]]) -> Any:
    """Make a table of runs that fits a narrow terminal."""
    short = [
        {
            "id": row["id"][:8],
            "recipe": row["recipe"],
            "seed": row["seed"],
            "steps": row["steps"],
            "state": state_text(row),
            "differs in": row["differs"],
            "code": ", ".join(f"{file} {digest[:8]}" for file, digest in row["code"].items()),
            "%": row["test_accuracy"],
        }
        for row in rows
    ]
    blank = [c for c in ("differs in", "code") if not any(row[c] for row in short)]
    return table(title, [{c: v for c, v in row.items() if c not in blank} for row in short])


def step_of(run: sf.runs.Run, at: str) -> int:
    """Read a step, ``start`` or ``end``."""
    if at in ("start", "end"):
        return 0 if at == "start" else run.spec.train.steps
    if not (at.isascii() and at.isdigit()):
        raise SpecError(f"--at {at!r} is neither a step, 'start' nor 'end'")
    return int(at)
