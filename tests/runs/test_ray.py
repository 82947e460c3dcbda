"""Sweeps on a real Ray cluster of two nodes, and what its workers refuse."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tasks
from helpers.cli import Cli
from helpers.cluster import SETTINGS, Cluster, cluster
from helpers.own import EXAMPLE, clean_slate
from helpers.small import TINY, tiny
from helpers.work import LONG, carried_out, drain, files

from sparseflow.cli.work import row_of
from sparseflow.core.errors import SparseflowError
from sparseflow.runs import Local, Ray, Store, execute, plan, sweep
from sparseflow.runs.jobs import Ended, Task, node
from sparseflow.runs.jobs.node import Pass, installation, refusal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch, cluster() as nodes:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield nodes


@pytest.mark.soak
def test_with_a_worker_killed_in_the_middle_the_table_is_the_local_one(
    two: Cluster, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    specs = [
        tiny("mlp-mnist/dense", *LONG),
        tiny("lenet5-mnist/shuffled+"),
        tiny("lenet5-mnist/rigl+", seed=1),
    ]
    store, alone = Store(tmp_path / "cluster"), Store(tmp_path / "alone")
    jobs = plan(specs, store)
    killer = threading.Thread(target=tasks.kill_once, args=(store.run(specs[0]).path,), daemon=True)
    killer.start()
    with Ray(store.root, address=two.address) as executor:
        sweep(jobs, store, executor)
    killer.join()
    assert sum(job.losses for job in jobs.values()) == 1
    for spec in specs:
        execute(spec, alone)
    assert [row_of(run) for run in store.runs()] == [row_of(run) for run in alone.runs()]
    assert len(alone.runs()) == 5
    for run in alone.runs():
        assert files(store.run(run.spec)) == files(run)
    assert not list(store.root.glob(".sweep-*"))


def test_methods_of_ones_own_are_compared_on_the_cluster(
    two: Cluster, cli: Cli, tmp_path: Path
) -> None:
    """The text of the file travels: a worker need not see it."""
    file = tmp_path / "elsewhere" / "travelling.py"
    file.parent.mkdir()
    file.write_text(EXAMPLE.read_text().replace('"snfs"', '"far-snfs"').replace("granet", "far"))
    settings = [w for s in (*TINY, "mask=erk", "method.when.n=3") for w in ("--set", s)]
    words = ["--executor", "ray", "--address", two.address, "-o", str(tmp_path / "c")]
    with clean_slate():
        found = cli.json(
            "compare", "mlp-mnist/rigl+", "mlp-mnist/far+", "mlp-mnist/far-snfs+", *words,
            "--use", str(file), "--seeds", "0-1", *settings,
        )  # fmt: skip
    assert [v["recipe"] for v in found["versus"]] == ["mlp-mnist/far+", "mlp-mnist/far-snfs+"]
    assert len(found["runs"]) == 6


@pytest.mark.soak
def test_tasks_fail_and_report_as_in_local_processes(two: Cluster, tmp_path: Path) -> None:
    (marks := tmp_path / "marks").mkdir()
    with Ray(tmp_path, address=two.address, retries=1) as executor:
        executor.submit(Task("diverge", tasks.diverge))
        executor.submit(Task("die", tasks.die, (str(marks), 2)))
        executor.submit(Task("double", tasks.double, (4,)))
        ended = {e.key: e for e in drain(executor) if isinstance(e, Ended)}
    assert ended["double"].value == 8
    assert ended["diverge"].error == "the loss is nan\nat step 3"
    assert ended["die"].error.startswith("its worker died, 2 times: ")


@pytest.mark.soak
def test_what_the_cluster_cannot_carry_out_is_an_error(
    two: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("double", tasks.double, (4,))
    with (
        Ray(tmp_path, address=two.address, threads=2, gpus=1.0) as executor,
        pytest.raises(SparseflowError, match=r"2 CPUs .* 1 GPUs .* 1 CPUs and 0 GPUs; 1 CPUs"),
    ):
        executor.submit(task)
    older = installation() | {"torch": "1.13.1"}
    monkeypatch.setattr("sparseflow.runs.jobs.ray.installation", lambda: older)
    with (
        Ray(tmp_path, address=two.address) as executor,
        pytest.raises(SparseflowError, match=r"torch 2\.\S+, not 1\.13\.1: results may differ"),
    ):
        carried_out(executor, task)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_an_error_at_once(tmp_path: Path, address: str) -> None:
    with (
        Ray(tmp_path, address=address) as executor,
        pytest.raises(SparseflowError, match=r"no Ray cluster at .* 'ray start --head'"),
    ):
        executor.submit(Task("double", tasks.double, (4,)))
    assert not list(tmp_path.iterdir())


def test_a_worker_looks_around_before_it_works(tmp_path: Path) -> None:
    token = tmp_path / ".sweep-1"
    allowed = Pass(str(tmp_path), token.name, installation(), 1)
    assert "does not see the store" in refusal(allowed)
    token.touch()
    assert refusal(allowed) == ""
    assert "numerics 1, not 0:" in refusal(
        replace(allowed, installation=installation() | {"numerics": "0"})
    )
    done = node.carry_out(allowed, Task("double", tasks.double, (4,)), _NoBoard)
    assert done == Ended("double", 8)


class _NoBoard:
    class put:  # noqa: N801
        @staticmethod
        def remote(key: str, value: object) -> None: ...


def sweep_command(store: Path, address: str, *names: str) -> list[str]:
    return [
        sys.executable, "-c", "from sparseflow.cli import main; main()",
        "sweep", *names, "--scale", "0.1", "--seeds", "0-1",
        "--store", str(store), "--executor", "ray", "--address", address,
    ]  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("victim", ["driver", "machine", "head"])
def test_after_any_death_the_same_command_goes_on(tmp_path: Path, victim: str) -> None:
    """Six runs of 1,172 steps; the local sweep of them is what it must come to."""
    names = ["mlp-mnist/dense", "mlp-mnist/set+"]
    store, env = tmp_path / "cluster", os.environ | SETTINGS
    with cluster() as nodes:
        first = subprocess.Popen(sweep_command(store, nodes.address, *names), env=env)
        with first:
            tasks.until(lambda: list(store.glob("*/resume.safetensors")), 300)
            if victim == "driver":
                first.kill()
            else:
                nodes.kill(("head", "machine").index(victim))
        assert (first.returncode == 0) == (victim == "machine")
        if victim == "driver":
            under_way = list(store.glob("*/.lock"))
            tasks.until(lambda: not any(tasks.holder(lock) for lock in under_way))
            subprocess.run(sweep_command(store, nodes.address, *names), env=env, check=True)
    if victim == "head":
        with cluster() as nodes:
            subprocess.run(sweep_command(store, nodes.address, *names), env=env, check=True)
    swept, alone = Store(store), Store(tmp_path / "alone")
    jobs = plan([run.spec for run in swept.runs()], alone)
    with Local(2, threads=1) as executor:
        sweep(jobs, alone, executor)
    assert [row_of(run) for run in swept.runs()] == [row_of(run) for run in alone.runs()]
    assert len(jobs) == 6
    for run in alone.runs():
        assert files(swept.run(run.spec)) == files(run)
