"""Whole training steps through the public interface: truly sparse against masked dense."""

from __future__ import annotations

from copy import deepcopy

import torch

import sparseflow as sf
from benchmarks.cases import LENET5, MLP, RESNET20, Case
from benchmarks.progress import progress
from benchmarks.timing import Record, interleave
from sparseflow.sparse import to_sparse

SPARSITY, TURN = 0.95, 0.05
"""Seconds of each side's turn: long enough for its data to fill the caches, as in training."""
FLOORS = {LENET5.name: 6.3, MLP.name: 3.7}
"""Least speed-up at 95 %, one thread."""


def steps(share: float) -> list[Record]:
    """At 95 % sparsity, and at 0 %, where the gain is due to layout and fusion alone."""
    alone = torch.get_num_threads() == 1
    return [
        _record(case, sparsity, share, floor)
        for case in (LENET5, MLP, RESNET20)
        for sparsity, floor in ((SPARSITY, FLOORS.get(case.name) if alone else None), (0.0, None))
    ]


def _record(case: Case, sparsity: float, share: float, floor: float | None) -> Record:
    model, masks = case.sparse_model(1 - sparsity)
    images, _ = case.examples(case.batch)
    sparse = to_sparse(deepcopy(model), masks, images, force=True)
    _same(model, sparse, images)
    timings = interleave(
        "sparse-steps",
        f"{case.title}, {sparsity:.0%} sparse",
        {
            "masked": case.step(model, masks, sf.Static(), fused=True),
            "sparse": case.step(sparse, masks, sf.Static(), fused=True),
        },
        case.turns(share),
        warm=3 if share >= 1 else 1,
        turn=TURN,
        budget=60.0 * share,
        settings={"model": case.name, "sparsity": sparsity, "batch": case.batch},
    )
    what = "training step" if sparsity else "gain of layout and fusion alone, not of sparsity"
    record = timings.speedup(what, "sparse", "masked", floor)
    progress.print(
        f"{timings.case}, {torch.get_num_threads()} thread(s): {record.value:.2f}× "
        f"({record.measured_ms:.2f} against {record.baseline_ms:.2f} ms)"
    )
    return record


@torch.no_grad()
def _same(model: torch.nn.Module, sparse: torch.nn.Module, images: torch.Tensor) -> None:
    """Check that both compute the same outputs, before they are timed."""
    outputs = [deepcopy(m).eval()(images) for m in (model, sparse)]
    if not torch.allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-4):
        raise RuntimeError("the sparse model's outputs differ from the masked dense one's")
