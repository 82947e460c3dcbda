"""The command line: thin, and never a traceback."""

from __future__ import annotations

import sys

import typer

from sparseflow.cli.app import app
from sparseflow.cli.show import plain
from sparseflow.core.errors import Interrupted, SparseflowError

INTERRUPTED = 130
"""Exit code that the parser makes of an interrupt."""


def main() -> None:
    """Run the command line; every expected error is one line and a non-zero exit code."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="sparseflow", standalone_mode=False)
        if code == INTERRUPTED:
            _fail("interrupted: the same command goes on from the last checkpoint", code)
    except Interrupted as error:
        code = _fail(str(error), 128 + error.number)
    except SparseflowError as error:
        code = _fail(str(error), 1)
    except typer.Abort:
        code = _fail("aborted", INTERRUPTED)
    except BrokenPipeError:
        code = 0
    except OSError as error:
        code = _fail(f"{error.filename or 'the system'}: {error.strerror}", 1)
    except Exception as error:  # a usage error of the parser, whichever version it is of
        if not hasattr(error, "format_message"):
            raise
        message, code = error.format_message(), getattr(error, "exit_code", 2)  # type: ignore[attr-defined]
        _fail(message, code)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    print(f"error: {plain(' '.join(message.splitlines()))}", file=sys.stderr)
    return code
