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
        side = "right" if column.right else "left"
        fixed = column.head in ("id", "recipe")
        made.add_column(Text(plain(column.head)), justify=side, no_wrap=fixed)
    for cells in shown.cells:
        made.add_row(*(Text(plain(cell)) for cell in cells))
    return made


def plain(text: str) -> str:
    """Replace signs that a terminal acts on."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c)[0] == "C" else c for c in text
    )


@contextmanager
def run_progress() -> Iterator[Callable[[sf.runs.Run, int, float], None]]:
    """Show a bar for each run under way: a recipe and the parents it needs."""
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
    with bars:

        def progress(run: sf.runs.Run, step: int, accuracy: float) -> None:
            total = run.spec.train.steps
            if run.id not in tasks:
                tasks[run.id] = bars.add_task(run.label, total=total, accuracy="")
            if step % 10 == 0 or step == total:
                text = "" if math.isnan(accuracy) else f"{accuracy:.2f} %"
                bars.update(tasks[run.id], completed=step, accuracy=text)

        yield progress


@contextmanager
def study_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of the studies done; elsewhere a line now and then."""
    began = time.monotonic()
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
        if not stderr.is_terminal and (done % 10 == 0 or done == total):
            stderr.print(
                f"[{time.monotonic() - began:6.0f} s] {done} of {total} studies",
                highlight=False,
                markup=False,
            )

    with bar:
        yield changed


class SweepView:
    """A live table on a terminal; elsewhere one line for each run that ends."""

    def __init__(self, jobs: sf.runs.Graph) -> None:
        """Show these jobs."""
        self._jobs, self._began = jobs, time.monotonic()
        self._live = Live(
            console=stderr, refresh_per_second=4, transient=True, get_renderable=self._render
        )

    def __enter__(self) -> SweepView:
        if stderr.is_terminal:
            self._live.start()
        else:
            self._line(self._counts())
        return self

    def __exit__(self, *_: object) -> None:
        if self._live.is_started:
            self._live.stop()
        self._line(self._counts())

    def changed(self, job: sf.runs.Job) -> None:
        """Take notice of a job that changed; the live table looks for itself."""
        if self._live.is_started:
            return
        if job.state == "running" and job.losses:
            self._line(f"{job.run.label}: its worker died; it goes on in another")
        elif job.state in ("finished", "failed", "skipped"):
            detail = job.error or ("" if math.isnan(job.accuracy) else f"{job.accuracy:.2f} %")
            self._line(f"{job.run.label}: {job.state} {detail}")

    def _line(self, text: str) -> None:
        stderr.print(
            f"[{time.monotonic() - self._began:6.0f} s] {text}", highlight=False, markup=False
        )

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
            f"{self._counts()}   {time.monotonic() - self._began:.0f} s",
            *([table("running", running)] if running else []),
            *([f"and {more:,} more"] if more else []),
            *([table("last to end", ended)] if ended else []),
        )
