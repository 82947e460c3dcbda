"""Figures. Needs matplotlib, so only :mod:`sparseflow.report.write` imports it, when asked to."""

from sparseflow.report.figures.accuracy import accuracy_figure
from sparseflow.report.figures.flow import flow_figure
from sparseflow.report.figures.start import start_norm_figure, start_signal_figure
from sparseflow.report.figures.style import png, svg
from sparseflow.report.figures.updates import updates_figure

__all__ = [
    "accuracy_figure",
    "flow_figure",
    "png",
    "start_norm_figure",
    "start_signal_figure",
    "svg",
    "updates_figure",
]
