"""Many runs on an executor, parents first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from sparseflow.core.errors import SpecError
from sparseflow.runs.execution import check_device, check_execution
from sparseflow.runs.jobs import Ended, Event, Executor, Lost, Task, Tell, Told
from sparseflow.runs.jobs.graph import Graph, Job
from sparseflow.runs.jobs.interrupt import stoppable
from sparseflow.runs.spec import as_data, from_data
from sparseflow.runs.store import Store
from sparseflow.runs.training import execute


def sweep(
    jobs: Graph,
    store: Store,
    executor: Executor,
    *,
    device: str = "cpu",
    changed: Callable[[Job], None] = lambda job: None,
) -> None:
    """Carry out all jobs; finished ones are skipped.

    A job whose parent failed is skipped; the others go on. SIGINT and SIGTERM
    stop every local worker after the current step, with a checkpoint, and tasks
    of a Ray cluster at once; if this process is killed, all end at once.

    Args:
        jobs: from :func:`plan`; they are kept up to date.
        store: where the runs are.
        executor: what carries them out; the caller ends it.
        device: where to train.
        changed: called when a job moved on, changed its state, or its worker died.

    Raises:
        SpecError: if a job asks for sparse execution on another device than the CPU.
        SparseUnavailable: if a job asks for it and the compiled core is missing.
        SparseflowError: if the executor cannot be had, or breaks.
        Interrupted: if a signal asked for it.
    """
    for job in jobs.values():
        if job.state == "waiting":
            check_execution(job.spec.execution, device)
    root = str(store.root.absolute())
    with stoppable() as stop:
        while True:
            stop.check("the sweep was interrupted")
            while jobs.ready and not executor.full:
                job = jobs.take()
                spec = msgspec.json.encode(as_data(job.spec))
                executor.submit(Task(job.run.id, _work, (spec, root, device, job.run.id)))
                changed(job)
            if executor.idle:
                return
            for event in executor.wait(0.5):
                _settle(jobs, event, changed)


def _settle(jobs: Graph, event: Event, changed: Callable[[Job], None]) -> None:
    job = jobs[event.key]
    match event:
        case Told(value=(step, accuracy)):
            job.step, job.accuracy = step, accuracy
            changed(job)
        case Lost():
            job.losses += 1
            changed(job)
        case Ended(error="", value=accuracy):
            jobs.finish(job, accuracy)
            changed(job)
        case Ended(error=error):
            for each in (job, *jobs.fail(job, error)):
                changed(each)


def _work(tell: Tell, encoded: bytes, root: str, device: str, name: str) -> float:
    check_device(device)
    spec, store = from_data(msgspec.json.decode(encoded)), Store(Path(root))
    if store.run(spec).id != name:
        raise SpecError("this worker has other code than the sweep: its run would be another one")
    run = execute(spec, store, device=device, progress=lambda _, *reached: tell(reached))
    return float(run.result["test_accuracy"])
