"""Many runs in worker processes, parents first."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Literal

import torch

from sparseflow.core.errors import SparseflowError
from sparseflow.runs.execution import execute
from sparseflow.runs.interrupt import end_with_parent, stoppable
from sparseflow.runs.resolve import check_execution
from sparseflow.runs.spec import RunSpec, ancestors, identity, parents
from sparseflow.runs.store import Run, Store
from sparseflow.runs.validate import check

State = Literal["waiting", "running", "finished", "failed", "skipped"]


@dataclass
class Job:
    """One run of a sweep and how it stands."""

    spec: RunSpec
    run: Run
    state: State = "waiting"
    step: int = 0
    accuracy: float = float("nan")
    error: str = ""
    needs: list[str] = field(default_factory=list)


def plan(specs: Iterable[RunSpec], store: Store) -> dict[str, Job]:
    """All runs that these specifications need, parents before children, each once.

    Raises:
        SpecError: if one of them makes no sense.
        StoreError: if a run folder is damaged or of a newer schema.
    """
    jobs: dict[str, Job] = {}
    for spec in specs:
        for each in (*ancestors(check(spec)), spec):
            run = store.run(each)
            if run.id not in jobs:
                job = Job(each, run, needs=[identity(p) for p in parents(each)])
                job.state = "finished" if run.settled else "waiting"
                jobs[run.id] = job
    return jobs


def sweep(
    jobs: dict[str, Job],
    store: Store,
    *,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    changed: Callable[[Job | None], None] = lambda job: None,
) -> None:
    """Run all jobs in worker processes; finished ones are skipped.

    A job whose parent failed is skipped; the others go on. Each worker gets
    its share of the cores, unless ``threads`` says otherwise. SIGINT and SIGTERM
    stop every worker after the step at hand, with a checkpoint; if this process
    is killed, they end at once.

    Args:
        jobs: from :func:`plan`; their state is kept up to date.
        store: where the runs are.
        workers: processes.
        threads: CPU threads of each process.
        device: where to train.
        changed: called when a job changed its state, and now and then with None.

    Raises:
        SpecError: if a job asks for sparse execution on another device than the CPU.
        SparseUnavailable: if a job asks for it and the compiled core is missing.
        Interrupted: if a signal asked for it.
    """
    for job in jobs.values():
        if job.state == "waiting":
            check_execution(job.spec.execution, device)
    share = threads or max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    news: SimpleQueue = context.SimpleQueue()
    pending: dict[Future[float], Job] = {}
    pool = ProcessPoolExecutor(workers, context, _start_worker, (share, news))
    with stoppable() as stop:
        try:
            while True:
                stop.check("the sweep was interrupted")
                for job in _ready(jobs, changed):
                    if len(pending) >= workers:
                        break
                    job.state = "running"
                    task = pool.submit(_work, job.spec, str(store.root), device)
                    pending[task] = job
                    changed(job)
                if not pending:
                    break
                done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                while not news.empty():
                    name, jobs[name].step, jobs[name].accuracy = news.get()
                changed(None)
                for task in done:
                    job = pending.pop(task)
                    _settle(job, task)
                    changed(job)
        finally:
            for process in list((pool._processes or {}).values()):
                if pending:
                    process.terminate()
            pool.shutdown(cancel_futures=True)


def _ready(jobs: dict[str, Job], changed: Callable[[Job | None], None]) -> list[Job]:
    ready = []
    for job in jobs.values():
        if job.state != "waiting":
            continue
        states = [jobs[name].state for name in job.needs]
        if any(s in ("failed", "skipped") for s in states):
            job.state, job.error = "skipped", "a parent run failed"
            changed(job)
        elif all(s == "finished" for s in states):
            ready.append(job)
    return ready


def _settle(job: Job, task: Future[float]) -> None:
    try:
        job.accuracy = task.result()
        job.state, job.step = "finished", job.spec.train.steps
    except BrokenProcessPool as error:
        raise SparseflowError(
            f"a worker process died during {job.run.label}: run the same command again to resume"
        ) from error
    except SparseflowError as error:
        job.state, job.error = "failed", str(error)
    except Exception as error:  # one job's trouble, out of memory say, is not the others'
        line = (str(error).splitlines() or [""])[0]
        job.state, job.error = "failed", f"{type(error).__name__}: {line}"


_news: SimpleQueue | None = None


def _start_worker(threads: int, news: SimpleQueue) -> None:
    global _news  # noqa: PLW0603  (a worker process has one, set once)
    _news = news
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(threads)


def _work(spec: RunSpec, root: str, device: str) -> float:
    def progress(run: Run, step: int, accuracy: float) -> None:
        if step % 50 == 0 and _news is not None:
            _news.put((run.id, step, accuracy))

    run = execute(spec, Store(Path(root)), device=device, progress=progress)
    return float(run.result["test_accuracy"])
