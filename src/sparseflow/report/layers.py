"""Density and churn of each layer, from the masks of a run's checkpoints."""

from __future__ import annotations

from sparseflow.masks.entries import lost
from sparseflow.report.results import LayerCurves
from sparseflow.runs import Run
from sparseflow.runs.spec import FullMask
from sparseflow.studies.values import matrix
from sparseflow.topology import Static

CHECKPOINTS = 12
"""Checkpoints that are read at most, the first and the last among them."""


def layers(run: Run) -> LayerCurves | None:
    """Read the masks of a run's checkpoints; None of a dense network, or if none is kept.

    Of a static mask one checkpoint says all. Masks are read one checkpoint after
    the other, and only two are held at a time.

    Raises:
        StoreError: if a checkpoint is damaged.
    """
    static = isinstance(run.spec.method, Static)
    steps = run.kept[-1:] if static else _spread(run.kept)
    if not steps or (static and isinstance(run.spec.mask, FullMask)):
        return None
    densities, churns, before = [], [], None
    for step in steps:
        masks = run.state(step).masks()
        if not masks:
            return None
        densities.append(list(masks.densities.values()))
        if before is not None:
            pairs = {n: (before.entry(n), masks.entry(n)) for n in masks}
            churns.append([lost(a, b) / max(a.count, 1) for a, b in pairs.values()])
        before = masks
    names = tuple(before or ())
    by_layer = matrix(zip(*densities, strict=True)), matrix(zip(*churns, strict=True))
    return LayerCurves(names, tuple(steps), *by_layer)


def _spread(steps: list[int]) -> list[int]:
    """Keep some of many steps, evenly, with the first and the last.

    >>> _spread(list(range(100)))[:3], len(_spread(list(range(100))))
    ([0, 9, 18], 12)
    """
    if len(steps) <= CHECKPOINTS:
        return steps
    last = CHECKPOINTS - 1
    return [steps[place * (len(steps) - 1) // last] for place in range(CHECKPOINTS)]
