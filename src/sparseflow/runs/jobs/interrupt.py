"""How work is asked to stop, and how worker processes end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType
from typing import NoReturn

from sparseflow.core.errors import Interrupted


class Stop:
    """Whether a signal has asked the current work to stop.

    Attributes:
        number: of the signal; None as long as none came.
    """

    def __init__(self) -> None:
        """Nothing asked yet."""
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal; a second interrupt from the keyboard is not waited with."""
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def check(self, what: str) -> None:
        """Stop here, if asked to.

        Raises:
            Interrupted: saying so of ``what``.
        """
        if self.number is not None:
            self.here(what)

    def here(self, what: str) -> NoReturn:
        """Stop here; the signal may have come to another rank of the job first.

        Raises:
            Interrupted: saying so of ``what``.
        """
        number = self.number or int(signal.SIGTERM)
        raise Interrupted(f"{what}: the same command goes on from there", number)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a question that the work asks when it can stop.

    A signal that is ignored stays ignored. Only the main thread can take
    signals; in any other, nothing changes.
    """
    stop, before = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """End this worker process as soon as the process that started it is dead.

    It ends as if killed, which the store is made for: whatever it was doing goes
    on from its last checkpoint.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
