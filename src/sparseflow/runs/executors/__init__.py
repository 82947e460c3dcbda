"""Where the tasks of a sweep are carried out: processes here, or a Ray cluster."""

from sparseflow.runs.executors.base import (
    Ended,
    Event,
    Executor,
    Lost,
    Task,
    Tell,
    Told,
)
from sparseflow.runs.executors.local import Local
from sparseflow.runs.executors.ray import Ray

__all__ = ["Ended", "Event", "Executor", "Local", "Lost", "Ray", "Task", "Tell", "Told"]
