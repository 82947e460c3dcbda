"""How far an interrupted run has come."""

from __future__ import annotations

from typing import Any

import msgspec

from sparseflow.core.errors import StoreError
from sparseflow.runs.execution import Resolved
from sparseflow.runs.journal import Mark
from sparseflow.runs.run import Run
from sparseflow.train.checkpoint import resume_extra


class Reached(msgspec.Struct, frozen=True):
    """How far a run has come, as its resume checkpoint says.

    Attributes:
        step: steps taken.
        metrics: where the metrics ended.
        accuracy: last measured on the test set; NaN if none was.
        execution: that the run goes on in.
    """

    step: int
    metrics: Mark
    accuracy: float
    execution: Resolved

    @classmethod
    def read(cls, extra: Any) -> Reached:
        """Read what a resume checkpoint holds in addition to the state.

        Raises:
            StoreError: if it is something else.
        """
        try:
            return msgspec.convert(extra, cls)
        except msgspec.ValidationError as error:
            raise StoreError(f"the checkpoint does not say how far it came: {error}") from error


def reached(run: Run) -> Reached:
    """Say how far an interrupted run has come.

    Raises:
        StoreError: if its resume checkpoint is missing or damaged.
    """
    return Reached.read(resume_extra(run.resume_path, run.id))
