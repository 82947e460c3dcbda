"""Runs that are interrupted, and tasks carried out on executors."""

import pytest

from sparseflow.runs import Executor, Run, RunSpec, Store, execute
from sparseflow.runs.jobs import Ended, Task


class KilledError(Exception):
    """Stands for a process that is killed."""


def interrupt(spec: RunSpec, store: Store, step: int) -> None:
    def progress(run: object, at: int, accuracy: float) -> None:
        if at == step and run.spec == spec:  # type: ignore[attr-defined]
            raise KilledError

    with pytest.raises(KilledError):
        execute(spec, store, progress=progress)


LONG = ["train.steps=700", "measure.every=100", "measure.evaluate=100", "train.keep=100"]
"""A run that outlives a checkpoint to resume from, which is of step 500."""


def drain(executor: Executor) -> list[object]:
    events = []
    while not executor.idle:
        events += executor.wait(1.0)
    return events


def carried_out(executor: Executor, task: Task) -> object:
    """The value of one task."""
    executor.submit(task)
    (ended,) = [e for e in drain(executor) if isinstance(e, Ended)]
    return ended.value


def files(run: Run) -> dict[str, bytes]:
    """All that two runs of one specification have alike."""
    names = ["spec.json", "metrics.jsonl", "result.json"]
    paths = [*(run.path / n for n in names), *(run.checkpoint_path(s) for s in run.kept)]
    return {path.name: path.read_bytes() for path in paths}
