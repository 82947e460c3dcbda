"""The command line, run in this process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


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
