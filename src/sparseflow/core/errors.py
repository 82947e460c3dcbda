"""The errors that sparseflow raises on purpose, and the did-you-mean helper.

Every one derives from :class:`SparseflowError`, so the command line can turn
each into one clear line and a non-zero exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparseflowError(Exception):
    """Base of every error raised on purpose.

    Example:
        >>> import sparseflow as sf, torch
        >>> try:
        ...     sf.sparsify(torch.nn.Linear(4, 2), density=2.0)
        ... except SparseflowError as error:
        ...     print(type(error).__name__)
        MaskError
    """


class MaskError(SparseflowError, ValueError):
    """A mask, a density or an allocation that does not fit the model."""


class TopologyError(SparseflowError, ValueError):
    """A method, schedule or optimiser that cannot be attached to a model."""


class DataError(SparseflowError):
    """A data set that is missing, damaged or of an unexpected format."""


class SpecError(SparseflowError, ValueError):
    """A run specification with an unknown field or an impossible value."""


class StoreError(SparseflowError):
    """A file of a store that is missing, damaged, foreign or of another schema."""


class MeasureError(SparseflowError, ValueError):
    """A measurement that is undefined for its arguments, or did not converge."""


class SparseUnavailable(SparseflowError, RuntimeError):  # noqa: N818  (a state, not a mistake)
    """Sparse execution was requested, but the C++ core is missing or cannot run here."""


class KernelError(SparseflowError, ValueError):
    """A tensor or a topology that the sparse kernels do not support."""


class DivergedError(SparseflowError):
    """Training reached a loss that is not finite."""


class Interrupted(SparseflowError):  # noqa: N818  (asked for, not a mistake)
    """Work that stopped at a signal; everything done so far is saved."""

    def __init__(self, message: str, number: int) -> None:
        """Take the message, and the signal's number."""
        super().__init__(message, number)
        self.number = number

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[0])


def first_line(error: BaseException) -> str:
    r"""Return the first line of a foreign error's message; its type if the message is empty.

    >>> first_line(ValueError("too long\nin frame 3"))
    'too long'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def brief(error: BaseException) -> str:
    r"""Return the type and the first line of a foreign error.

    >>> brief(ValueError("too long\nin frame 3"))
    'ValueError: too long'
    """
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def unknown(kind: str, word: str, choices: Iterable[str]) -> str:
    """Return the text of an error for an unknown name, with a suggestion.

    >>> unknown("method", "riggl", ["rigl", "set"])
    "unknown method 'riggl'; did you mean 'rigl'? (known: rigl, set)"
    """
    names = sorted(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {word!r}{hint} (known: {', '.join(names)})"
