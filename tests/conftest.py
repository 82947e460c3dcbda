"""Shared fixtures; shapes in annotations are checked in tests only."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.cli import Cli
from hypothesis import settings
from jaxtyping import install_import_hook

# Not models: torch.fx traces their forwards with proxies, which are no tensors.
FOLDERS = Path(find_spec("sparseflow").origin).parent.glob("[!_]*")
# Nor recipes: they make functions at every call, and each would be decorated again.
UNCHECKED = {"models", "recipes"}
ROOMS = [f"sparseflow.{path.stem}" for path in FOLDERS if path.stem not in UNCHECKED]
install_import_hook(ROOMS, "beartype.beartype")

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What soaks is slow too."""
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def global_seed() -> None:
    """Every test starts from one state of the global random stream."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def elsewhere() -> Callable[[str], str]:
    """Run code in a fresh process, under another hash seed; return what it prints."""

    def run(code: str) -> str:
        env = os.environ | {"PYTHONHASHSEED": "12345"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return run


@pytest.fixture(scope="session")
def crew() -> Iterator[Callable[[int], object]]:
    """A crew of a number of ranks, started once: ``crew(2)(work, *args)``."""
    from helpers.ranks import Crew  # noqa: PLC0415  (after the import hook)

    crews: dict[int, Crew] = {}

    def of(count: int) -> Crew:
        if count not in crews:
            crews[count] = Crew(count)
        return crews[count]

    yield of
    for each in crews.values():
        each.close()


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, with an empty store."""
    return Cli(tmp_path / "runs", capsys, monkeypatch)
