"""Optional libraries, imported when they are first used."""

from __future__ import annotations

import importlib
from typing import Any

from sparseflow.core.errors import SparseflowError


def need(module: str, *, extra: str) -> Any:
    """Import a module that an extra of the package installs.

    Args:
        module: full name.
        extra: ``measure`` (maps of distances), ``report`` (tables,
            figures and the page; ``measure`` included), ``onnx`` (export),
            ``data`` (CIFAR-10 and ImageNet),
            ``ray`` (sweeps on a cluster), ``huggingface`` and ``lightning``
            (callbacks of their trainers) or ``tensorboard`` (event files).

    Raises:
        SparseflowError: if it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SparseflowError(
            f"this needs {error.name}: pip install 'sparseflow[{extra}]'"
        ) from error


class Late:
    """A module that is imported when one of its names is first used; see :func:`late`."""

    def __init__(self, module: str, extra: str) -> None:
        """Import nothing yet."""
        self._module, self._extra = module, extra

    def __getattr__(self, name: str) -> Any:
        """Take a name from the module, or one of the modules within it."""
        if name.startswith("__"):  # asked for by tools that look at every object
            raise AttributeError(name)
        module = need(self._module, extra=self._extra)
        try:
            return getattr(module, name)
        except AttributeError:
            return need(f"{self._module}.{name}", extra=self._extra)


def late(module: str, *, extra: str) -> Any:
    """Stand for a module that comes with an extra, without importing it before it is used.

    Args:
        module: its full name.
        extra: as for :func:`need`.

    Example:
        >>> shelf = late("collections", extra="report")
        >>> shelf.abc.Sized
        <class 'collections.abc.Sized'>
    """
    return Late(module, extra)
