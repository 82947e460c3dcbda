"""What a sweep asks of an executor, and what every executor does alike: counting and retries."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from sparseflow.core.code import UserModule, load_all, used
from sparseflow.core.errors import Interrupted, SparseflowError, brief

Tell = Callable[[Any], None]
"""What a task reports its progress with; only the latest report matters."""


@dataclass(frozen=True)
class Task:
    """A call to carry out in another process.

    Attributes:
        key: names the task.
        function: of a module that every worker can import; called as
            ``function(tell, *arguments)``.
        arguments: picklable.
        code: files and modules of the user's that it needs, loaded before it begins.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    code: tuple[UserModule, ...] = field(default_factory=used)


@dataclass(frozen=True)
class Told:
    """What a task under way last reported."""

    key: str
    value: Any


@dataclass(frozen=True)
class Lost:
    """The worker of a task died or was told to stop; the task has been submitted again."""

    key: str
    reason: str


@dataclass(frozen=True)
class Ended:
    """A task returned, or failed with an error, which is then not empty."""

    key: str
    value: Any = None
    error: str = ""


Event = Told | Lost | Ended


class Executor(ABC):
    """Carries tasks out in other processes, some at a time.

    A task whose worker dies is submitted again, ``retries`` times; a task that
    raises is not: what is deterministic fails again. Nothing is started before
    the first task. Use it as a context manager: what is under way at its end
    is stopped.
    """

    def __init__(self, retries: int = 1) -> None:
        """Let a task survive ``retries`` deaths of its worker."""
        self._retries = retries
        self._tasks: dict[str, Task] = {}
        self._losses: dict[str, int] = {}

    @property
    def idle(self) -> bool:
        """Say whether nothing is under way."""
        return not self._tasks

    @property
    def full(self) -> bool:
        """Say whether another task would only wait in line."""
        return len(self._tasks) >= self._capacity()

    def submit(self, task: Task) -> None:
        """Start a task.

        Raises:
            SparseflowError: if the executor cannot be had.
        """
        self._tasks[task.key] = task
        self._start(task)

    def wait(self, seconds: float) -> Iterator[Event]:
        """Yield what has happened, waiting at most ``seconds``.

        Raises:
            SparseflowError: if no task can be carried out any more.
        """
        for event in self._poll(seconds):
            match event:
                case Lost(key, reason):
                    yield self._try_again(key, reason)
                case Ended(key):
                    self._forget(key)
                    yield event
                case Told(key) if key in self._tasks:  # not the late news of one that ended
                    yield event

    def _try_again(self, key: str, reason: str) -> Event:
        losses = self._losses[key] = self._losses.get(key, 0) + 1
        task = self._tasks[key]
        if losses > self._retries:
            self._forget(key)
            times = f", {losses} times" if losses > 1 else ""
            return Ended(key, error=f"its worker died{times}: {reason}")
        self._start(task)
        return Lost(key, reason)

    def _forget(self, key: str) -> None:
        del self._tasks[key]
        self._losses.pop(key, None)

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @abstractmethod
    def _capacity(self) -> int:
        """Tasks that are worth having under way."""

    @abstractmethod
    def _start(self, task: Task) -> None:
        """Start a task, for the first time or again."""

    @abstractmethod
    def _poll(self, seconds: float) -> Iterable[Event]:
        """Return what has happened; ``Lost`` for every worker's death."""

    @abstractmethod
    def _stop(self) -> None:
        """Stop what is under way, and all workers."""


def attempt(task: Task, tell: Tell, every: float) -> Ended | Lost:
    """Carry a task out in this process; whatever it raises becomes the error's text.

    A task that a signal has stopped is lost, as if its worker had died.

    Args:
        task: what to do.
        tell: where its reports go.
        every: seconds between two of them, at least.
    """
    last = float("-inf")

    def report(value: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            tell(value)

    try:
        load_all(task.code)
        return Ended(task.key, task.function(report, *task.arguments))
    except Interrupted as error:
        return Lost(task.key, str(error))
    except Exception as error:  # one task's trouble, out of memory say, is not the others'
        return Ended(task.key, error=describe(error))


def describe(error: Exception) -> str:
    """Text of an error: all of it where it was raised on purpose, else its kind and first line."""
    return str(error) if isinstance(error, SparseflowError) else brief(error)
