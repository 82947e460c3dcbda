"""Progress of the benchmarks, on standard error."""

from rich.console import Console

progress = Console(stderr=True, highlight=False, soft_wrap=True)


class NotHereError(Exception):
    """This machine lacks what a benchmark is about."""


def skipped(what: str, why: str) -> None:
    """Report that something is left out."""
    progress.print(f"skipped: {what}: {why}")
