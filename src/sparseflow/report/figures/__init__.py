"""All figures of the page: those of runs are drawn here, those of studies with each study."""

from __future__ import annotations

from typing import Any

from sparseflow import studies
from sparseflow.plotting.figure import Figure
from sparseflow.report.figures.accuracy import ACCURACY
from sparseflow.report.figures.flow import FLOW, FLOW_KERNELS
from sparseflow.report.figures.layers import LAYERS
from sparseflow.report.figures.settings import SETTING, SPARSITY
from sparseflow.report.figures.start import START_NORM, START_SIGNAL
from sparseflow.report.figures.training import TRAINING
from sparseflow.report.figures.updates import UPDATES
from sparseflow.report.results import Results

OF_RUNS = (
    ACCURACY,
    SPARSITY,
    SETTING,
    TRAINING,
    FLOW,
    FLOW_KERNELS,
    UPDATES,
    LAYERS,
    START_SIGNAL,
    START_NORM,
)
OF_MAIN = ("training", "flow", "flow-kernels", "updates", "layers")
"""Figures of one variant alone, of which a page says which."""

OPTIONAL = (SPARSITY, SETTING)
"""Figures of grids, which are not missed where nothing varies."""


def figures() -> dict[str, Figure[Any]]:
    """Every figure by its name, in the order of the page."""
    return {figure.name: figure for figure in (*OF_RUNS, *studies.figures())}


def expected(results: Results) -> dict[str, Figure[Any]]:
    """Those that these results could show; without studies none of theirs."""
    return {
        name: figure
        for name, figure in figures().items()
        if (results.evidence or not figure.evidence)
        and not (figure in OPTIONAL and not any(run.settings for run in results.runs))
    }
