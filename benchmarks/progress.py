"""Where the benchmarks say how far they are."""

from rich.console import Console

progress = Console(stderr=True, highlight=False, soft_wrap=True)


def skipped(what: str, why: str) -> None:
    """Say that something is left out, and go on."""
    progress.print(f"skipped: {what}: {why}")
