"""Shared fixtures; shapes in annotations are checked in tests only."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Not models: torch.fx traces their forwards with proxies, which are no tensors.
FOLDERS = Path(find_spec("sparseflow").origin).parent.glob("[!_]*")
ROOMS = [f"sparseflow.{path.stem}" for path in FOLDERS if path.stem != "models"]
install_import_hook(ROOMS, "beartype.beartype")

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


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
    """So many ranks, started once: ``crew(2)(work, *args)``."""
    from ranks import Crew  # noqa: PLC0415  (after the import hook)

    crews: dict[int, Crew] = {}

    def of(count: int) -> Crew:
        if count not in crews:
            crews[count] = Crew(count)
        return crews[count]

    yield of
    for each in crews.values():
        each.close()


class Cli:
    """Runs the command line in this process, in a store of its own."""

    def __init__(
        self, store: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
    ) -> None:
        self.store, self._capsys, self._patch = store, capsys, patch

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        self._patch.setenv("SPARSEFLOW_RUNS", str(self.store))
        self._patch.setattr("sys.argv", ["sparseflow", *arguments])
        with pytest.raises(SystemExit) as ended:
            _main()()
        out, err = self._capsys.readouterr()
        assert (ended.value.code or 0) == code, err
        return out, err

    def json(self, *arguments: str) -> object:
        return json.loads(self(*arguments, "--json")[0])

    def fails(self, *arguments: str) -> str:
        """Return the error, which must be one line and no traceback."""
        self._patch.setenv("SPARSEFLOW_RUNS", str(self.store))
        self._patch.setattr("sys.argv", ["sparseflow", *arguments])
        with pytest.raises(SystemExit) as ended:
            _main()()
        out, err = self._capsys.readouterr()
        assert ended.value.code not in (0, None)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, err
        assert err.rstrip().splitlines()[-1] == errors[0]
        assert "Traceback" not in err + out
        return errors[0]


def _main() -> Callable[[], None]:
    from sparseflow.cli import main  # noqa: PLC0415  (after the import hook)

    return main


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, with an empty store."""
    return Cli(tmp_path / "runs", capsys, monkeypatch)
