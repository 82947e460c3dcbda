"""Runs on several ranks: the same run, shared out."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import pytest
from helpers import ranks
from helpers.audit import audit
from helpers.ranks import STOPPED, Crews

from sparseflow.recipes import make_spec
from sparseflow.runs import Run, Store, execute
from sparseflow.train.checkpoint import resume_extra

pytestmark = pytest.mark.slow

SHORT = [
    "train.steps=12", "train.batch=24", "train.keep=4", "train.resume=4", "measure.every=4",
    "measure.evaluate=12", "data.probe=48", "data.limit=200", "mask=er", "density=0.2",
]  # fmt: skip
MLP, LENET5 = ["model.widths=[24,16]"], ["model.widths=[2,4,20,16]"]
BATCH = ["method.when.n=3", "method.grow_from=batch"]
PRUNING = ["mask=full", "method.start=2", "method.stop=10", "method.interval=2"]
RECIPES = {
    "dense rigl": ("mlp-mnist/rigl+", [*SHORT, *MLP, *BATCH, "execution=dense"]),
    "dense pruning": ("lenet5-mnist/prune", [*SHORT, *LENET5, *PRUNING, "execution=dense"]),
    "sparse rigl": ("mlp-mnist/rigl+", [*SHORT, *MLP, *BATCH, "execution=sparse"]),
    "sparse rigl, probe": (
        "lenet5-mnist/rigl+", [*SHORT, *LENET5, "method.when.n=3", "execution=sparse"],
    ),
}  # fmt: skip


def environment(run: Run) -> dict[str, Any]:
    return json.loads((run.path / "environment.json").read_text())


def assert_same_run(ours: Run, theirs: Run) -> None:
    """The same masks at every step kept, and figures equal but for rounding."""
    assert ours.kept == theirs.kept == [0, 4, 8, 12]
    for step in ours.kept:
        assert ours.checkpoint(step)[1].digest() == theirs.checkpoint(step)[1].digest(), step
    a, b = ours.metrics(), theirs.metrics()
    assert [(r["event"], r["step"]) for r in a] == [(r["event"], r["step"]) for r in b]
    for mine, other in zip(a, b, strict=True):
        if mine["event"] == "flow" and not math.isnan(other["total"]):
            assert mine["total"] == pytest.approx(other["total"], rel=1e-4)
    assert ours.result["test_loss"] == pytest.approx(theirs.result["test_loss"], rel=1e-4)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", RECIPES)
def test_ranks_share_a_run(name: str, count: int, tmp_path: Path, crew: Crews) -> None:
    recipe, settings = RECIPES[name]
    shared, single = Store(tmp_path / "shared"), Store(tmp_path / "single")
    spec = make_spec(recipe, settings=settings)
    ids = crew(count)(ranks.run_until, -1, str(shared.root), recipe, settings)
    run = execute(spec, single)
    assert ids == [[run.id]] * count
    assert_same_run(shared.run(spec), run)
    assert (environment(shared.run(spec))["ranks"], environment(run)["ranks"]) == (count, 1)


@pytest.mark.parametrize("name", ["dense rigl", "sparse rigl"])
def test_a_run_goes_on_with_another_number_of_ranks(name: str, tmp_path: Path, crew: Crews) -> None:
    recipe, settings = RECIPES[name]
    spec, store = make_spec(recipe, settings=settings), Store(tmp_path / "broken")
    work = (str(store.root), recipe, settings)
    assert crew(2)(ranks.run_until, 6, *work) == [{"error": STOPPED}] * 2
    with pytest.raises(Exception, match=STOPPED):
        ranks.run_until(10, *work)
    assert crew(2)(ranks.run_until, -1, *work) == [[store.run(spec).id]] * 2
    assert (environment(store.run(spec))["resumed_at"], store.run(spec).finished) == (8, True)
    assert_same_run(store.run(spec), execute(spec, Store(tmp_path / "whole")))


def test_batches_that_ranks_cannot_share_are_refused(tmp_path: Path, crew: Crews) -> None:
    settings = [*SHORT, "train.batch=25", "mask=full"]
    for rank in crew(2)(ranks.run_until, -1, str(tmp_path), "mlp-mnist/dense", settings):
        assert rank["error"] == (
            "train.batch=25 of mlp-mnist/dense is not divisible by the 2 ranks: every rank takes "
            "an equal share of each batch"
        )
    assert not list(tmp_path.iterdir())


def torchrun(root: Path, *options: str) -> subprocess.Popen[str]:
    """Start a job of two ranks on a run of 2,000 steps, with a checkpoint every 500."""
    settings = [
        "mask=erk", "execution=dense", "train.steps=2000", "train.batch=8", "data.limit=300",
        "model.widths=[8,8]", "data.probe=32", "measure.every=500", "measure.evaluate=2000",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", *options]
    command = ["-m", "sparseflow", "run", "mlp-mnist/set+", "--store", str(root), "--json"]
    return subprocess.Popen(
        [*launch, *command, *(part for each in settings for part in ("--set", each))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
    )


def wait_for(pattern: str, root: Path, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not list(root.glob(pattern)):
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.soak
def test_torchrun_restarts_a_job_that_lost_a_rank(tmp_path: Path) -> None:
    job = torchrun(tmp_path, "--max-restarts", "1")
    try:
        wait_for("*/resume.safetensors", tmp_path, job)
        lost = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()[-1]
        os.kill(int(lost), signal.SIGKILL)
        out, err = job.communicate(timeout=240)
    finally:
        job.terminate()  # torchrun ends its workers
    assert job.returncode == 0, err
    (run,) = Store(tmp_path).runs()
    assert json.loads(out)["id"] == run.id
    assert run.finished
    assert environment(run)["ranks"] == 2
    assert environment(run)["resumed_at"] in (500, 1000, 1500)


def test_a_signal_stops_all_ranks_with_a_checkpoint(tmp_path: Path) -> None:
    job = torchrun(tmp_path)
    try:
        wait_for("*/resume.safetensors", tmp_path, job)
        job.send_signal(signal.SIGTERM)  # torchrun hands it on to its workers
        _, err = job.communicate(timeout=240)
    finally:
        job.terminate()
    (run,) = Store(tmp_path).runs()
    stopped = resume_extra(run.resume_path, run.id)["step"]
    assert f"set+ seed 0: interrupted at step {stopped}:" in err
    assert "RuntimeError" not in err
    assert not audit(Store(tmp_path))
    job = torchrun(tmp_path)
    try:
        _, err = job.communicate(timeout=240)
    finally:
        job.terminate()
    assert environment(run)["resumed_at"] == stopped, err
    assert run.finished


@pytest.mark.soak
def test_a_signal_stops_ranks_that_wait_for_another_process(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    job = torchrun(store.root)
    try:
        wait_for("*/spec.json", store.root, job)
        (run,) = store.runs()
        job.terminate()
        job.communicate(timeout=60)
        with filelock.FileLock(run.path / ".lock", timeout=60):
            job = torchrun(store.root)
            time.sleep(15)  # both have long begun to wait: nothing shows it
            assert job.poll() is None
            job.send_signal(signal.SIGTERM)
            _, err = job.communicate(timeout=60)
    finally:
        job.terminate()
    assert err.count("error: mlp-mnist/set+") == 2, err
    assert "RuntimeError" not in err
