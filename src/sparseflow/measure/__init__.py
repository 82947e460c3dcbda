"""Measurements; none of them changes training.

On the way of a training: gradient flow, signal, distance. Of solutions:
curvature (Hessian, Gauss-Newton, their spectra), geometry (lines, planes,
distances, maps, permutations) and agreement (of predictions, ensembles).
:mod:`statistics <sparseflow.measure.statistics>` and
:mod:`comparison <sparseflow.measure.comparison>` say what a few runs allow to conclude.
"""

from sparseflow.core.chunks import Chunks
from sparseflow.measure.agreement import (
    Agreement,
    Score,
    calibration,
    disagreement,
    divergence,
    ensemble,
    pairwise,
    predict,
    score,
)
from sparseflow.measure.align import Alignment, align
from sparseflow.measure.comparison import Comparison, paired, unpaired
from sparseflow.measure.density import SpectralDensity, spectral_density
from sparseflow.measure.distance import Distance, Distances, distance, distances
from sparseflow.measure.flops import Flops, flops
from sparseflow.measure.flow import Decrease, Flow, gradient_flow, step_decrease
from sparseflow.measure.landscape import loss_and_accuracy
from sparseflow.measure.mds import Map, mds
from sparseflow.measure.operators import Curvature, gauss_newton, hessian
from sparseflow.measure.path import Path, interpolate
from sparseflow.measure.plane import Plane, plane
from sparseflow.measure.signal import Signal, signal
from sparseflow.measure.spectrum import (
    Eigenvalues,
    Spectrum,
    Trace,
    eigenvalues,
    spectrum,
    trace,
)
from sparseflow.measure.statistics import (
    Estimate,
    mean_interval,
    median_interval,
    pair_difference,
    pair_interval,
    proportion_interval,
    verdict,
)

__all__ = [
    "Agreement",
    "Alignment",
    "Chunks",
    "Comparison",
    "Curvature",
    "Decrease",
    "Distance",
    "Distances",
    "Eigenvalues",
    "Estimate",
    "Flops",
    "Flow",
    "Map",
    "Path",
    "Plane",
    "Score",
    "Signal",
    "SpectralDensity",
    "Spectrum",
    "Trace",
    "align",
    "calibration",
    "disagreement",
    "distance",
    "distances",
    "divergence",
    "eigenvalues",
    "ensemble",
    "flops",
    "gauss_newton",
    "gradient_flow",
    "hessian",
    "interpolate",
    "loss_and_accuracy",
    "mds",
    "mean_interval",
    "median_interval",
    "pair_difference",
    "pair_interval",
    "paired",
    "pairwise",
    "plane",
    "predict",
    "proportion_interval",
    "score",
    "signal",
    "spectral_density",
    "spectrum",
    "step_decrease",
    "trace",
    "unpaired",
    "verdict",
]
