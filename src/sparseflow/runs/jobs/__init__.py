"""Where the tasks of a sweep are carried out: processes here, or a Ray cluster."""

from sparseflow.runs.jobs.executor import (
    Ended,
    Event,
    Executor,
    Lost,
    Task,
    Tell,
    Told,
)
from sparseflow.runs.jobs.local import Local
from sparseflow.runs.jobs.ray import Ray

__all__ = ["Ended", "Event", "Executor", "Local", "Lost", "Ray", "Task", "Tell", "Told"]
