"""Killed at any moment: after running again everything is as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import killable
from helpers.audit import audit
from helpers.killable import contents, done, ended, forked, start
from helpers.small import alone, tiny

from sparseflow.core.errors import Interrupted
from sparseflow.core.files import orphans, write_atomic
from sparseflow.runs import Run, Store, execute, plan
from sparseflow.train.checkpoint import resume_extra

pytestmark = pytest.mark.slow

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

STEPS = 30
BUSY = [
    f"train.steps={STEPS}",
    "train.keep=5",
    "train.resume=5",
    "measure.every=1",
    "data.limit=1000",
]
SPEC = alone(*BUSY)
SEED = int(os.environ.get("SPARSEFLOW_TEST_SEED", "0")) or random.SystemRandom().randrange(2**32)
NAMES = ["mlp-mnist/dense", "mlp-mnist/set+"]
SWEEP = ["train.steps=30", "train.keep=5", "train.resume=5", "measure.every=1", "data.limit=1000",
         "data.probe=64", "mask=erk", "method=set", "method.when.n=3"]  # fmt: skip
COUNTS = [2, pytest.param(50, marks=pytest.mark.soak)]


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Take SIGINT, which a shell lets its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def rng() -> random.Random:
    print(f"SPARSEFLOW_TEST_SEED={SEED}")  # shown if the test fails
    return random.Random(SEED)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, float]]:
    """A store with the run, and the seconds that it takes a process."""
    ended(start(killable.run, SPEC, tmp_path_factory.mktemp("first")))  # starts the server too
    root, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    ended(start(killable.run, SPEC, root))
    return root, time.monotonic() - began


def assert_as_if_undisturbed(root: Path, whole: Path) -> None:
    assert not list(root.rglob("*.part"))
    assert contents(root) == contents(whole)
    assert not audit(Store(root))


@pytest.mark.parametrize("kills", COUNTS)
def test_a_run_killed_at_any_time(
    kills: int, undisturbed: tuple[Path, float], rng: random.Random, tmp_path: Path
) -> None:
    whole, seconds = undisturbed
    died = 0
    for trial in range(kills):
        root = tmp_path / str(trial)
        for _ in range(rng.choice([1, 1, 2, 3])):  # again while it resumes
            process = start(killable.run, SPEC, root)
            time.sleep(rng.uniform(0, seconds))
            process.kill()
            process.join()
            died += process.exitcode == -signal.SIGKILL
        ended(start(killable.run, SPEC, root))
        assert_as_if_undisturbed(root, whole)
    print(f"{died} kills in {kills} runs")
    assert died


@pytest.mark.parametrize("kills", COUNTS)
def test_a_run_killed_between_any_two_calls_into_the_system(
    kills: int, undisturbed: tuple[Path, float], rng: random.Random, tmp_path: Path
) -> None:
    calls = forked.SimpleQueue()
    ended(start(killable.run_until, 0, SPEC, tmp_path / "count", calls))
    total = calls.get()
    for trial, call in enumerate(rng.sample(range(1, total + 1), kills)):
        root = tmp_path / str(trial)
        ended(start(killable.run_until, call, SPEC, root, calls), -signal.SIGKILL)
        ended(start(killable.run, SPEC, root))
        assert_as_if_undisturbed(root, undisturbed[0])


@pytest.mark.parametrize("line", [1, 7, pytest.param(40, marks=pytest.mark.soak)])
def test_a_run_killed_in_the_middle_of_a_line(
    line: int, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    ended(start(killable.run_until_line, line, SPEC, tmp_path / "runs"), -signal.SIGKILL)
    ended(start(killable.run, SPEC, tmp_path / "runs"))
    assert_as_if_undisturbed(tmp_path / "runs", undisturbed[0])


@pytest.mark.parametrize("kills", COUNTS)
def test_a_report_killed_at_any_time(
    kills: int, undisturbed: tuple[Path, float], rng: random.Random, tmp_path: Path
) -> None:
    whole, began = tmp_path / "whole", time.monotonic()
    ended(start(killable.report, undisturbed[0], [SPEC], whole))
    seconds = time.monotonic() - began
    for trial in range(kills):
        out = tmp_path / str(trial)
        process = start(killable.report, undisturbed[0], [SPEC], out)
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.join()
        ended(start(killable.report, undisturbed[0], [SPEC], out))
        assert not list(out.rglob("*.part"))
        assert contents(out) == contents(whole)


def words(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def sweeping(root: Path) -> subprocess.Popen[str]:
    return killable.command(root, "sweep", *NAMES, "--seeds", "0-1", "--jobs", "2", *words(*SWEEP))


def reported(root: Path) -> str:
    out = root.with_name(f"{root.name}-report")
    done(killable.command(root, "report", *NAMES, *words(*SWEEP), "-o", str(out)))
    return (out / "table.md").read_text()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, str]:
    """A store with the sweep, the seconds that it takes, and the table."""
    root, began = tmp_path_factory.mktemp("swept"), time.monotonic()
    done(sweeping(root))
    return root, time.monotonic() - began, reported(root)


@linux
@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.soak), *COUNTS[1:]])
def test_a_sweep_killed_at_any_time(
    kills: int, swept: tuple[Path, float, str], rng: random.Random, tmp_path: Path
) -> None:
    whole, seconds, table = swept
    for trial in range(kills):
        check_killed_sweep(tmp_path / str(trial), rng.uniform(0, seconds), whole)
    assert reported(tmp_path / "0") == table


@pytest.mark.soak
@linux
def test_workers_end_when_their_sweep_is_killed(
    swept: tuple[Path, float, str], tmp_path: Path
) -> None:
    process = sweeping(tmp_path)
    killable.until(lambda: len(list(tmp_path.glob("*/resume.safetensors"))) == 2)
    assert len(killable.living(process.pid)) >= 3
    kill(process)
    done(sweeping(tmp_path))
    assert_as_if_undisturbed(tmp_path, swept[0])


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a sweep, but not its workers: they end by themselves."""
    process.kill()
    process.wait()
    killable.until(lambda: not killable.living(process.pid), 20)
    process.communicate()


def check_killed_sweep(root: Path, seconds: float, whole: Path) -> None:
    process = sweeping(root)
    time.sleep(seconds)
    kill(process)
    done(sweeping(root))
    assert_as_if_undisturbed(root, whole)


# ---- asked to stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_after_its_step(
    number: signal.Signals, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    def ask(run: Run, step: int, accuracy: float) -> None:
        if step == 7:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    store = Store(tmp_path)
    with pytest.raises(Interrupted, match="interrupted at step 8: the same command") as caught:
        execute(SPEC, store, progress=ask)
    assert caught.value.number == number
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    run = store.run(SPEC)
    assert resume_extra(run.resume_path, run.id)["step"] == 8
    assert not audit(store)
    execute(SPEC, store)
    assert_as_if_undisturbed(tmp_path, undisturbed[0])


def test_a_signal_at_the_end_of_a_parent_keeps_its_child_from_beginning(tmp_path: Path) -> None:
    def ask(run: Run, step: int, accuracy: float) -> None:
        if step == 12:  # the parent's last: it is finished all the same
            os.kill(os.getpid(), signal.SIGTERM)

    store, child = Store(tmp_path), tiny("mlp-mnist/scratch")
    with pytest.raises(Interrupted, match="scratch seed 0: interrupted before it began"):
        execute(child, store, progress=ask)
    assert store.run(child.mask.run).settled  # type: ignore[union-attr]
    assert not store.run(child).kept


def test_a_second_interrupt_is_not_waited_with(tmp_path: Path) -> None:
    def ask(run: Run, step: int, accuracy: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        execute(SPEC, Store(tmp_path), progress=ask)


@pytest.mark.soak
@linux
@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak), (signal.SIGTERM, 143)],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_stops_a_sweep_with_checkpoints(
    number: signal.Signals, code: int, swept: tuple[Path, float, str], tmp_path: Path
) -> None:
    process = sweeping(tmp_path)
    killable.until(lambda: len(list(tmp_path.glob("*/resume.safetensors"))) == 2)
    os.kill(process.pid, number)
    err = done(process, code)
    assert err.splitlines()[-1].startswith("error: the sweep was interrupted"), err
    assert "Traceback" not in err
    killable.until(lambda: not killable.living(process.pid), 20)
    under_way = [r for r in Store(tmp_path).runs() if not r.finished]
    assert under_way
    assert all(r.resume_path.exists() for r in under_way)
    assert not audit(Store(tmp_path))
    done(sweeping(tmp_path))
    assert_as_if_undisturbed(tmp_path, swept[0])


# ---- two processes


def test_two_processes_that_want_one_run(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    started, steps = forked.Barrier(2), forked.SimpleQueue()
    both = [start(killable.run_counting, SPEC, tmp_path, started, steps) for _ in range(2)]
    for process in both:
        ended(process)
    assert sorted(steps.get() for _ in both) == [0, STEPS + 1]
    assert_as_if_undisturbed(tmp_path, undisturbed[0])


def test_the_second_goes_on_where_the_first_is_killed(
    undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    first = start(killable.run, SPEC, tmp_path)
    killable.until(lambda: bool(list(tmp_path.glob("*/resume.safetensors"))))
    second = start(killable.run, SPEC, tmp_path)
    first.kill()
    ended(second)
    assert_as_if_undisturbed(tmp_path, undisturbed[0])


@pytest.mark.soak
def test_two_sweeps_on_one_store(swept: tuple[Path, float, str], tmp_path: Path) -> None:
    both = [sweeping(tmp_path) for _ in range(2)]
    for process in both:
        done(process)
    assert_as_if_undisturbed(tmp_path, swept[0])


# ---- temporary files


def test_the_temporary_file_of_a_living_writer_stays(tmp_path: Path) -> None:
    from sparseflow.core.files import _claimed  # noqa: PLC0415

    mine, dead = tmp_path / ".f.0123.part", tmp_path / ".f.4567.part"
    dead.write_bytes(b"half")
    other = tmp_path / ".g.4567.part"
    other.write_bytes(b"of another file")
    with _claimed(mine):
        assert list(orphans(tmp_path, "f")) == [dead]
        write_atomic(tmp_path / "f", b"whole")
        assert mine.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".f.0123.part", ".g.4567.part", "f"]


def test_plan_tidies_what_was_killed_just_before_its_end(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = execute(alone(), store)
    run.resume_path.write_bytes(b"left over")
    jobs = plan([alone()], store)
    assert [job.state for job in jobs.values()] == ["waiting"]
    execute(alone(), store)
    assert not run.resume_path.exists()
    assert run.settled
