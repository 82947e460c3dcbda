"""Measurements; none of them changes training."""

from sparseflow.measure.distance import Distance, distance
from sparseflow.measure.flow import Decrease, Flow, gradient_flow, step_decrease
from sparseflow.measure.signal import Signal, signal

__all__ = [
    "Decrease",
    "Distance",
    "Flow",
    "Signal",
    "distance",
    "gradient_flow",
    "signal",
    "step_decrease",
]
