"""Figures. Needs matplotlib, so only :mod:`sparseflow.report.write` imports it, when asked to."""

from sparseflow.report.figures.accuracy import accuracy_figure
from sparseflow.report.figures.agreement import disagreement_figure
from sparseflow.report.figures.curvature import curvature_start_figure
from sparseflow.report.figures.flow import flow_figure
from sparseflow.report.figures.geometry import map_figure, plane_figure
from sparseflow.report.figures.paths import paths_figure
from sparseflow.report.figures.spectra import spectra_figure, spectrum_figure
from sparseflow.report.figures.start import start_norm_figure, start_signal_figure
from sparseflow.report.figures.style import png, svg
from sparseflow.report.figures.updates import updates_figure

__all__ = [
    "accuracy_figure",
    "curvature_start_figure",
    "disagreement_figure",
    "flow_figure",
    "map_figure",
    "paths_figure",
    "plane_figure",
    "png",
    "spectra_figure",
    "spectrum_figure",
    "start_norm_figure",
    "start_signal_figure",
    "svg",
    "updates_figure",
]
