"""Parquet files of Hugging Face ``datasets``: from a folder, or from the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseflow.core.errors import DataError, brief
from sparseflow.core.optional import need

FOLDER = "SPARSEFLOW_DATA"
"""Environment variable: the folder whose subfolders hold data sets as parquet files.

It says where the data are, not what they are, so it does not enter a run's identity.
"""


def open_split(name: str, split: str, hub: str, columns: Sequence[str]) -> Any:
    """Open a split as a stream of examples; nothing is copied to a cache.

    Args:
        name: subfolder of :data:`FOLDER`, if that is set.
        split: prefix of the names of the split's files.
        hub: name on the hub, used if :data:`FOLDER` is not set.
        columns: names of the columns that must be there.

    Returns:
        A ``datasets.IterableDataset``.

    Raises:
        DataError: if the files are missing, damaged, or in another format.
        SparseflowError: if ``datasets`` is not installed.
    """
    datasets = need("datasets", extra="data")
    folder = os.environ.get(FOLDER)
    where = f"{hub} on the hub" if folder is None else str(Path(folder, name))
    try:
        if folder is None:
            rows = datasets.load_dataset(hub, split=split, streaming=True)
        else:
            files = [str(path) for path in split_files(Path(folder, name), split)]
            rows = datasets.load_dataset(
                "parquet", data_files={split: files}, split=split, streaming=True
            )
        features = rows.features
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}, split {split}: cannot be read ({brief(error)})") from error
    _check_columns(features, columns, f"{where}, split {split}")
    return rows


def split_files(folder: Path, split: str) -> list[Path]:
    """List the parquet files of a split.

    Raises:
        DataError: if there are none.
    """
    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        raise DataError(
            f"no {split}*.parquet in {folder}: put the data set's parquet files there, or unset "
            f"{FOLDER} to take it from the Hugging Face hub"
        )
    return files


def _check_columns(features: Any, columns: Sequence[str], where: str) -> None:
    missing = [name for name in columns if name not in (features or {})]
    if missing:
        raise DataError(
            f"{where}: no column {missing[0]!r} among {sorted(features or {})}; "
            f"the columns must be {list(columns)}"
        )


def reading(error: Exception, what: str) -> DataError:
    """Return the error that says which examples could not be read, and why."""
    return DataError(f"{what}: damaged, or not images ({brief(error)})")
