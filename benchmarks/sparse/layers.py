"""The training step of one layer by sparsity and batch size, over dense PyTorch and rivals."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

import torch

from benchmarks.progress import progress
from benchmarks.sparse.rivals import rivals
from benchmarks.sparse.roofline import bounds
from benchmarks.sparse.shapes import QUICK_SPARSITIES, RIVALS_FROM, SHAPES, SPARSITIES, Shape
from benchmarks.sparse.sides import Layer, Side, check, dense, make_layer, ours
from benchmarks.timing import Record, Timings, fastest, interleave

BATCH = 128
OTHER_BATCHES = (1, 16, 512)
ROUNDS, TURN, BUDGET = 40, 0.002, 5.0
QUICK_BUDGET = 0.5


def layers(share: float) -> list[Record]:
    """Speed-ups of all layers; with other batch sizes in a full run.

    The floors apply to one thread and batch 128.
    """
    quick = share < 1
    records = []
    alone = torch.get_num_threads() == 1
    for batch in (BATCH, *(OTHER_BATCHES if alone and not quick else ())):
        for shape in SHAPES:
            for sparsity in QUICK_SPARSITIES if quick else SPARSITIES:
                records += _one(shape, sparsity, batch, share)
    return records


@torch.no_grad()
def _one(shape: Shape, sparsity: float, batch: int, share: float) -> list[Record]:
    layer = make_layer(shape, sparsity, batch)
    kinds = dense(layer)
    runs = 1 if share < 1 else 3
    best = fastest({name: side.run for name, side in kinds.items()}, runs)
    sides = {"dense": kinds[best], "sparseflow": ours(layer)}
    if batch == BATCH and sparsity >= RIVALS_FROM:
        sides |= rivals(layer)
    _check(sides)
    timings = interleave(
        "sparse-layers",
        f"{shape.name}, {sparsity:.0%} sparse, batch {batch}",
        {name: side.run for name, side in sides.items()},
        ROUNDS,
        warm=2 if share >= 1 else 1,
        turn=TURN,
        budget=QUICK_BUDGET if share < 1 else BUDGET,
        settings=_settings(layer, sparsity, best),
    )
    records = _records(timings, shape, sparsity, share)
    progress.print(
        f"{timings.case}, {torch.get_num_threads()} thread(s): "
        + ", ".join(f"{r.figure} {r.value:.2f}×" for r in records if r.settings["over"] == "dense")
    )
    return records


def _check(sides: Mapping[str, Side]) -> None:
    expected = sides["dense"].plain(sides["dense"].run())
    for name, side in sides.items():
        check(name, side, expected)


def _settings(layer: Layer, sparsity: float, best: str) -> dict[str, object]:
    return {
        "layer": layer.shape.name,
        "sparsity": sparsity,
        "batch": len(layer.x),
        "nonzeros": len(layer.columns),
        "dense": best,
    }


def _records(timings: Timings, shape: Shape, sparsity: float, share: float) -> list[Record]:
    """All sides over dense, with the roofline's bounds; and sparseflow over each rival."""
    conditions = dict(timings.settings)
    held = conditions["threads"] == 1 and conditions["batch"] == BATCH
    flops = shape.step_flops(conditions["nonzeros"], conditions["batch"])
    limits = bounds(flops, median(timings.seconds["dense"]), share)
    records = []
    for name in timings.seconds:
        if name == "dense":
            continue
        settings = conditions | {"side": name, "over": "dense"}
        floor = shape.floors.get(sparsity) if name == "sparseflow" and held else None
        mine = limits if name == "sparseflow" else {}
        records.append(
            _with(timings, settings | mine).speedup(f"{name} over dense", name, "dense", floor)
        )
    for name in timings.seconds:
        if name in ("dense", "sparseflow"):
            continue
        settings = conditions | {"side": "sparseflow", "over": name}
        wanted = held and name == "sparseprop" and sparsity in (0.9, 0.95, 0.98)
        floor = shape.over_sparseprop if wanted else None
        records.append(
            _with(timings, settings).speedup(f"sparseflow over {name}", "sparseflow", name, floor)
        )
    return records


def _with(timings: Timings, settings: Mapping[str, object]) -> Timings:
    return Timings(timings.benchmark, timings.case, timings.seconds, settings)
