"""CIFAR-10 as tensors, from parquet files."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from sparseflow.core.errors import DataError
from sparseflow.data.augment import CropFlip
from sparseflow.data.dataset import Dataset, Examples
from sparseflow.data.normalise import Normalise
from sparseflow.data.parquet import open_split, reading

HUB = "uoft-cs/cifar10"
NORMALISE = Normalise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))

_CHUNK = 2000


@lru_cache(maxsize=1)
def load_cifar10(limit: int | None = None) -> Dataset:
    """Load CIFAR-10: images (n, 3, 32, 32), stored as bytes and normalised batch by batch.

    From ``cifar10/{train,test}*.parquet`` in the folder that the environment
    variable ``SPARSEFLOW_DATA`` names, else from the hub. All images are decoded
    once per process, which takes seconds.

    Args:
        limit: number of examples of each split, at most.

    Raises:
        DataError: if the files are missing, damaged, or in another format.
        SparseflowError: if ``datasets`` is not installed.
    """
    return Dataset(*(_load(split, limit) for split in ("train", "test")))


def _load(split: str, limit: int | None) -> Examples:
    rows = open_split("cifar10", split, HUB, ("img", "label"))
    rows = rows if limit is None else rows.take(limit)
    images, classes = [], []
    try:
        for part in rows.with_format("numpy").iter(_CHUNK):
            images.append(torch.from_numpy(np.stack(list(part["img"]))))
            classes.append(torch.from_numpy(np.asarray(part["label"], dtype=np.int64)))
        x, y = torch.cat(images), torch.cat(classes)
    except Exception as error:
        raise reading(error, f"CIFAR-10, split {split}") from error
    if x.shape[1:] != (32, 32, 3) or x.dtype != torch.uint8 or not 0 <= y.min() <= y.max() < 10:
        raise DataError(
            f"CIFAR-10, split {split}: images of shape {tuple(x.shape[1:])} and classes from "
            f"{int(y.min())} to {int(y.max())}, expected (32, 32, 3) and 0 to 9"
        )
    return Examples(x.permute(0, 3, 1, 2).contiguous(), y, NORMALISE, CropFlip())
