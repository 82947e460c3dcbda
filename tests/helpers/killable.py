"""For tests of kills: work in forked processes that start at once, and what is left of it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import sparseflow.report
from sparseflow.core import files
from sparseflow.data import load_mnist
from sparseflow.runs import Run, RunSpec, Store, execute, journal

torch.set_num_threads(1)
load_mnist()  # once, in the server that all processes are forked from

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["killable", "sparseflow.plotting.style"])


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = forked.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def ended(process: BaseProcess, code: int = 0) -> None:
    process.join(120)
    assert process.exitcode == code, process.exitcode


def run(spec: RunSpec, root: Path) -> None:
    execute(spec, Store(root))


def run_until(call: int, spec: RunSpec, root: Path, calls: Any) -> None:
    """Run, and die just before this call into the system while files are written."""
    files.os = Mortal(call)
    execute(spec, Store(root))
    calls.put(files.os.count)


def run_until_line(line: int, spec: RunSpec, root: Path) -> None:
    """Run, and die in the middle of writing this line of the metrics."""
    count, whole = 0, journal.append

    def half(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        whole(path, data[: len(data) // 2] if count == line else data)
        if count == line:
            die()

    journal.append = half
    execute(spec, Store(root))


class Mortal:
    """The module ``os``, until it has been asked so many times."""

    def __init__(self, calls: int) -> None:
        self.left, self.count = calls, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if not callable(found):
            return found

        def counted(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.left:
                die()
            return found(*arguments, **named)

        return counted


def run_counting(spec: RunSpec, root: Path, started: Any, steps: Any) -> None:
    """Run once others are ready too; tell how many steps were taken here."""
    taken = 0

    def count(run: Run, step: int, accuracy: float) -> None:
        nonlocal taken
        taken += 1

    started.wait()
    execute(spec, Store(root), progress=count)
    steps.put(taken)


def report(root: Path, specs: Sequence[RunSpec], out: Path) -> None:
    runs = [Store(root).run(spec) for spec in specs]
    room = sparseflow.report
    room.write_report(room.collect(runs, family="mlp-mnist", title="test"), out)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def contents(folder: Path) -> dict[str, bytes]:
    """Every byte under a folder, but for what depends on the clock."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if path.name not in ("environment.json", ".lock")
    }


def command(store: Path, *words: str) -> subprocess.Popen[str]:
    """The command line, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from sparseflow.cli import main; main()", *words],
        env=os.environ | {"SPARSEFLOW_RUNS": str(store), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def done(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a command; return what it wrote to standard error."""
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return err


def living(group: int) -> list[int]:
    """Processes of a group that are not dead, or dead and not yet waited for."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(after_name[2]) == group and after_name[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait; fail if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
