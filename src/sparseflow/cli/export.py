"""The command that writes a run's network to one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sparseflow as sf
from sparseflow.cli.options import RUNS, Json, Scale, Seed, Settings, StorePath, Use
from sparseflow.cli.probes import places
from sparseflow.cli.show import print_json, stdout, table
from sparseflow.core.choices import Format


def export(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN", help="Id (or its start) or recipe, with @STEP if wanted."),
    ],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.")],
    step: Annotated[str, typer.Option(help="A kept step, 'start' or 'end'.")] = "end",
    kind: Annotated[
        Format, typer.Option("--format", help="sparse: for sparseflow.load; onnx: the dense form.")
    ] = "sparse",
    seed: Seed = 0,
    scale: Scale = 1.0,
    settings: Settings = None,
    folder: StorePath = RUNS,
    use: Use = None,
    as_json: Json = False,
) -> None:
    """Write the network of a run to one file that needs nothing of the run.

    sparse: architecture, masks and non-zero weights; sf.load gives a module that
    computes with the non-zeros. onnx: the dense equivalent for other runtimes
    (pip install 'sparseflow[onnx]').
    Example: sparseflow export lenet5-mnist/rigl+ -o rigl.safetensors
    """
    from sparseflow.runs.export import export as write

    store = sf.runs.Store(folder)
    (place,) = places([name], [seed], step, store, scale=scale, settings=settings or ())
    write(place.run, place.step, out, kind)
    state = place.run.state(place.step)
    dense = [k.shape.numel() * k.values.element_size() for k in state.masked.values()]
    row = {
        "run": place.run.id,
        "recipe": place.run.spec.recipe,
        "step": place.step,
        "file": str(out),
        "bytes": out.stat().st_size,
        "dense bytes": sum(dense) + sum(t.nbytes for t in state.others.values()),
        "density": state.masks().density,
    }
    if as_json:
        print_json(row)
    else:
        stdout.print(table("exported", [{"": k, "value": v} for k, v in row.items()]))
