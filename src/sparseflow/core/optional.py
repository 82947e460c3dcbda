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
