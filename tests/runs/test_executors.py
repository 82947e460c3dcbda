"""Graphs of jobs, and worker processes that die."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers import tasks
from helpers.small import tiny
from helpers.work import LONG, carried_out, drain, files

from sparseflow.runs import Graph, Job, Local, Run, RunSpec, Store, execute, plan, sweep
from sparseflow.runs.jobs import Ended, Lost, Task, Told
from sparseflow.runs.jobs.graph import State

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


@pytest.mark.parametrize("seed", range(30))
def test_a_graph_offers_what_its_definition_says(seed: int) -> None:
    """Against the definition, looked up anew for all jobs after every change."""
    draw, count, jobs = random.Random(seed), seed % 10 + 1, []
    for n in range(count):
        needs = draw.sample(range(n), k=draw.randint(0, min(n, 3)))
        state: State = "waiting"
        if all(jobs[i].state == "finished" for i in needs) and draw.random() < 0.5:
            state = "finished"
        jobs.append(
            Job(
                RunSpec(),
                Run(Path(str(n)), RunSpec()),
                state,
                needs=[str(i) for i in sorted(needs)],
            )
        )
    graph = Graph(jobs)
    while graph.ready or graph.running:
        able = [
            j for j in jobs
            if j.state == "waiting" and all(graph[n].state == "finished" for n in j.needs)
        ]  # fmt: skip
        assert graph.ready == bool(able)
        if able and draw.random() < 0.5:
            assert graph.take() is able[0]
        elif graph.running:
            job = draw.choice(list(graph.running.values()))
            if draw.random() < 0.7:
                graph.finish(job, 50.0)
            else:
                skipped = graph.fail(job, "it is")
                assert {j.error for j in skipped} <= {"a parent run failed"}
    for job in jobs:
        bad = any(graph[n].state in ("failed", "skipped") for n in job.needs)
        assert (job.state == "skipped") == bad
        assert job.state in ("finished", "failed", "skipped")
    assert graph.counts.total() == count
    assert all(graph.counts[s] == sum(j.state == s for j in jobs) for s in graph.counts)


def test_a_task_returns_reports_or_fails() -> None:
    with Local(2, threads=1) as executor:
        for n in range(3):
            executor.submit(Task(f"double {n}", tasks.double, (n,)))
        assert executor.full
        executor.submit(Task("diverge", tasks.diverge))
        executor.submit(Task("stumble", tasks.stumble))
        events = drain(executor)
    ended = {e.key: e for e in events if isinstance(e, Ended)}
    assert [ended[f"double {n}"].value for n in range(3)] == [0, 2, 4]
    assert {(e.key, e.value) for e in events if isinstance(e, Told)} == {
        (f"double {n}", n) for n in range(3)
    }
    assert ended["diverge"].error == "the loss is nan\nat step 3"
    assert ended["stumble"].error == "ZeroDivisionError: by zero"
    assert len(ended) == 5


@pytest.mark.parametrize(
    ("deaths", "retries", "error"),
    [
        (1, 1, ""),
        (1, 0, "its worker died: signal SIGKILL"),
        pytest.param(2, 1, "its worker died, 2 times: signal SIGKILL", marks=pytest.mark.soak),
    ],
)
def test_a_death_costs_one_task_a_try(
    tmp_path: Path, deaths: int, retries: int, error: str
) -> None:
    with Local(1, threads=1, retries=retries) as executor:
        executor.submit(Task("die", tasks.die, (str(tmp_path), deaths)))
        events = drain(executor)
        assert carried_out(executor, Task("double", tasks.double, (4,))) == 8
    assert events.count(Lost("die", "signal SIGKILL")) == min(deaths, retries)
    assert events[-1] == Ended("die", None if error else deaths + 1, error)


def test_a_task_that_a_signal_stopped_is_tried_again(tmp_path: Path) -> None:
    with Local(1, threads=1) as executor:
        executor.submit(Task("stop", tasks.stop_once, (str(tmp_path / "mark"),)))
        assert drain(executor) == [Lost("stop", "stopped at step 3"), Ended("stop", "done")]


def test_an_idle_worker_that_died_is_replaced() -> None:
    with Local(1, threads=1) as executor:
        first = carried_out(executor, Task("first", tasks.process))
        os.kill(first, signal.SIGKILL)
        tasks.until(lambda: not tasks.alive(first))
        second = carried_out(executor, Task("second", tasks.process))
    assert second != first
    assert not tasks.alive(second)


def test_nothing_goes_on_after_the_end() -> None:
    with Local(1, threads=1) as executor:
        executor.submit(Task("endure", tasks.endure, (60.0,)))
        told = tasks.until(lambda: list(executor.wait(1.0)))
    assert not tasks.alive(told[0].value)


PARENT = """
from helpers import tasks
from sparseflow.runs.jobs import Local, Task
if __name__ == "__main__":
    with Local(1, threads=1) as executor:
        executor.submit(Task("endure", tasks.endure, (120.0,)))
        while True:
            for event in executor.wait(1.0):
                print(event.value, flush=True)
"""


def test_workers_follow_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    tasks.until(lambda: not tasks.alive(worker))


def test_a_sweep_outlives_the_death_of_a_worker(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec, other = tiny("mlp-mnist/dense", *LONG), tiny("mlp-mnist/scratch")
    store, alone = Store(tmp_path / "swept"), Store(tmp_path / "alone")
    jobs = plan([spec, other], store)
    killer = threading.Thread(target=tasks.kill_once, args=(store.run(spec).path,), daemon=True)
    killer.start()
    with Local(2, threads=1) as executor:
        sweep(jobs, store, executor)
    killer.join()
    job = jobs[store.run(spec).id]
    assert (job.state, job.losses) == ("finished", 1)
    assert jobs.counts == {"finished": 3, "waiting": 0, "running": 0}
    for each in jobs.values():
        assert files(each.run) == files(execute(each.spec, alone))
