"""What the commands show while they work: progress, tables, JSON."""

from __future__ import annotations

import json
import math
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

import sparseflow as sf
from sparseflow.plotting.table import Table

stderr = Console(stderr=True)
stdout = Console()

WIDE = 22
"""Columns of a terminal that a list of settings has at least."""

SHOWN = 16
"""Runs under way that the live table names."""


def print_json(value: Any) -> None:
    """Print one JSON value on stdout; a NaN becomes null."""
    print(json.dumps(_clean(value), indent=1))


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(title: str, rows: list[dict[str, Any]]) -> RichTable:
    """Make a table from rows that share their keys."""
    return rich_table(Table.of(title, rows))


def rich_table(shown: Table) -> RichTable:
    """Make a table for the terminal."""
    head = Text(plain(shown.title))
    made = RichTable(title=head, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for column in shown.columns:
        made.add_column(
            Text(plain(column.head)),
            justify="right" if column.right else "left",
            no_wrap=column.head in ("id", "recipe", "field"),
            overflow="fold",
            min_width=WIDE if column.head == "differs in" else None,
        )
    for cells in shown.cells:
        made.add_row(*(Text(plain(cell)) for cell in cells))
    return made


def plain(text: str) -> str:
    """Replace signs that a terminal acts on."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c)[0] == "C" else c for c in text
    )


PAUSE = 30.0
"""Seconds between two lines about work that goes on, where nobody watches a bar."""


class Lines:
    """Lines on standard error, each with the seconds since the first was possible."""

    def __init__(self) -> None:
        """Begin to count."""
        self.began = self._last = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line."""
        self._last = time.monotonic()
        stderr.print(f"[{self._last - self.began:6.0f} s] {text}", highlight=False, markup=False)

    @property
    def due(self) -> bool:
        """Say whether none was printed for a while."""
        return time.monotonic() - self._last >= PAUSE


@contextmanager
def run_progress() -> Iterator[Callable[[sf.runs.Run, int, float], None]]:
    """Show a bar for each run under way, a recipe and the parents it needs; elsewhere lines."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[accuracy]}"),
        TimeRemainingColumn(),
        console=stderr,
        disable=not stderr.is_terminal,
    )
    tasks: dict[str, Any] = {}
    lines = Lines()
    with bars:

        def progress(run: sf.runs.Run, step: int, accuracy: float) -> None:
            total = run.spec.train.steps
            new = run.id not in tasks
            if new:
                tasks[run.id] = bars.add_task(run.label, total=total, accuracy="")
            text = "" if math.isnan(accuracy) else f"{accuracy:.2f} %"
            if step % 10 == 0 or step == total:
                bars.update(tasks[run.id], completed=step, accuracy=text)
            if not stderr.is_terminal and (new or step == total or lines.due):
                lines.say(f"{run.label}: step {step:,} of {total:,}  {text}".rstrip())

        yield progress


@contextmanager
def study_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of the studies done; elsewhere a line now and then."""
    lines = Lines()
    bar = Progress(
        TextColumn("studies"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr,
        disable=not stderr.is_terminal,
    )
    task = bar.add_task("", total=total)

    def changed(done: int) -> None:
        bar.update(task, completed=done)
        if not stderr.is_terminal and (done % 10 == 0 or done == total or lines.due):
            lines.say(f"{done} of {total} studies")

    with bar:
        yield changed


class SweepView:
    """A live table on a terminal; elsewhere a line for each run that ends, and now and then."""

    def __init__(self, jobs: sf.runs.Graph) -> None:
        """Show these jobs."""
        self._jobs, self._lines = jobs, Lines()
        self._told: dict[str, int] = {}
        self._live = Live(
            console=stderr, refresh_per_second=4, transient=True, get_renderable=self._render
        )

    def __enter__(self) -> SweepView:
        if stderr.is_terminal:
            self._live.start()
        else:
            self._lines.say(self._counts())
        return self

    def __exit__(self, *_: object) -> None:
        if self._live.is_started:
            self._live.stop()
        self._lines.say(self._counts())

    def changed(self, job: sf.runs.Job) -> None:
        """Take notice of a job that changed; the live table looks for itself."""
        if self._live.is_started:
            return
        if job.state == "running" and job.losses > self._told.get(job.run.id, 0):
            self._told[job.run.id] = job.losses
            self._lines.say(f"{job.run.label}: its worker died; it goes on in another")
        elif job.state in ("finished", "failed", "skipped"):
            detail = job.error or ("" if math.isnan(job.accuracy) else f"{job.accuracy:.2f} %")
            self._lines.say(f"{job.run.label}: {job.state} {detail}")
        elif self._lines.due and job.step:
            at = f"{job.run.label} is at step {job.step:,} of {job.spec.train.steps:,}"
            self._lines.say(f"{self._counts()}; {at}")

    def _counts(self) -> str:
        return ", ".join(f"{n} {state}" for state, n in sorted(self._jobs.counts.items()) if n)

    def _render(self) -> Group:
        under_way = list(self._jobs.running.values())
        running = [
            {
                "run": job.run.label,
                "step": f"{job.step:,} / {job.spec.train.steps:,}",
                "test accuracy %": job.accuracy,
            }
            for job in under_way[:SHOWN]
        ]
        ended = [
            {"run": j.run.label, "state": j.state, "test accuracy %": j.accuracy}
            for j in tuple(self._jobs.recent)
        ]
        more = len(under_way) - len(running)
        return Group(
            f"{self._counts()}   {time.monotonic() - self._lines.began:.0f} s",
            *([table("running", running)] if running else []),
            *([f"and {more:,} more"] if more else []),
            *([table("last to end", ended)] if ended else []),
        )
