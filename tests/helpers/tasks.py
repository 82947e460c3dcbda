"""Tasks for executors, which worker processes import; and the end of such a process."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from sparseflow.core.errors import DivergedError, Interrupted

Tell = Callable[[object], None]


def double(tell: Tell, number: int) -> int:
    tell(number)
    return 2 * number


def process(tell: Tell) -> int:
    return os.getpid()


def diverge(tell: Tell) -> None:
    raise DivergedError("the loss is nan\nat step 3")


def stumble(tell: Tell) -> None:
    raise ZeroDivisionError("by zero\nas it were")


def die(tell: Tell, marks: str, times: int) -> int:
    """Die so many times, then return how often this was tried."""
    tried = len(list(Path(marks).iterdir()))
    (Path(marks) / str(tried)).touch()
    if tried < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return tried + 1


def stop_once(tell: Tell, mark: str) -> str:
    """End the first time as a run does that a signal has stopped."""
    if not Path(mark).exists():
        Path(mark).touch()
        raise Interrupted("stopped at step 3", signal.SIGTERM)
    return "done"


def endure(tell: Tell, seconds: float) -> None:
    """Report this process every now and then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        tell(os.getpid())
        time.sleep(0.02)


def until(what: Callable[[], object], seconds: float = 60.0) -> object:
    """Wait for a true answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError(f"nothing within {seconds} s")


def alive(pid: int) -> bool:
    """Say whether a process runs; one that only waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def holder(lock: Path) -> int | None:
    """The process that holds a file lock."""
    if not lock.exists():
        return None
    inode = lock.stat().st_ino
    for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
            return int(words[4])
    return None


def kill_once(run: Path) -> None:
    """Kill the process that trains a run, between its resume checkpoint and its end."""
    pid = until(lambda: (run / "resume.safetensors").exists() and holder(run / ".lock"), 300)
    os.kill(pid, signal.SIGKILL)
