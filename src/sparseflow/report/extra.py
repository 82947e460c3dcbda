"""The optional libraries of the report, asked for only when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from sparseflow.core.errors import SparseflowError


def need(module: str) -> Any:
    """Import a module that needs the ``report`` extra.

    Raises:
        SparseflowError: if the extra is not installed, saying how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SparseflowError(
            f"the report needs {error.name}: pip install 'sparseflow[report]'"
        ) from error
