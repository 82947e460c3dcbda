"""Parquet files in the layout of Hugging Face ``datasets``: from a folder, or from the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseflow.core.errors import DataError, brief
from sparseflow.core.optional import need

FOLDER = "SPARSEFLOW_DATA"
"""Environment variable: folder whose subfolders hold data sets as parquet files.

It says where the data are, not what they are, so it is no part of a run.
"""


def open_split(name: str, split: str, hub: str, columns: Sequence[str]) -> Any:
    """Open a split as a stream of examples; nothing is copied to a cache.

    Args:
        name: subfolder of :data:`FOLDER`, if that is set.
        split: files of the folder whose names start so.
        hub: name on the hub, asked if there is no folder.
        columns: an image and a class, by these names.

    Returns:
        A ``datasets.IterableDataset``.

    Raises:
        DataError: if the files are missing, damaged, or of another layout.
        SparseflowError: if ``datasets`` is not installed.
    """
    datasets = need("datasets", extra="data")
    folder = os.environ.get(FOLDER)
    where = f"{hub} on the hub" if folder is None else str(Path(folder, name))
    try:
        if folder is None:
            found = datasets.load_dataset(hub, split=split, streaming=True)
        else:
            files = [str(path) for path in split_files(Path(folder, name), split)]
            found = datasets.load_dataset(
                "parquet", data_files={split: files}, split=split, streaming=True
            )
        features = found.features
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}, split {split}: cannot be read ({brief(error)})") from error
    _check_columns(features, columns, f"{where}, split {split}")
    return found


def split_files(folder: Path, split: str) -> list[Path]:
    """List the parquet files of a split.

    Raises:
        DataError: if there are none.
    """
    found = sorted(folder.glob(f"{split}*.parquet"))
    if not found:
        raise DataError(
            f"no {split}*.parquet in {folder}: put the data set's parquet files there, or unset "
            f"{FOLDER} to take it from the Hugging Face hub"
        )
    return found


def _check_columns(features: Any, columns: Sequence[str], where: str) -> None:
    missing = [name for name in columns if name not in (features or {})]
    if missing:
        raise DataError(
            f"{where}: no column {missing[0]!r} among {sorted(features or {})}; "
            f"the columns are to be {list(columns)}"
        )


def reading(error: Exception, what: str) -> DataError:
    """Say that examples could not be read."""
    return DataError(f"{what}: damaged, or not images ({brief(error)})")
