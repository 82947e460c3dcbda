"""ImageNet-1k as a stream, from parquet files."""

from __future__ import annotations

import math
import os
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from sparseflow.core.errors import DataError
from sparseflow.core.optional import need
from sparseflow.data.dataset import Dataset
from sparseflow.data.normalise import Normalise
from sparseflow.data.parquet import FOLDER, open_split, reading, split_files
from sparseflow.data.stream import BLOCK, Blocks, Images

HUB = "ILSVRC/imagenet-1k"
CLASSES = 1000
NORMALISE = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

AREA = (0.08, 1.0)
"""Smallest and largest share of an image's area in a random crop."""
RATIO = (3 / 4, 4 / 3)
"""Smallest and largest aspect ratio of a random crop."""
CENTRE = 224 / 256
"""Share of the shorter side that the central crop for evaluation has."""


def frame(
    width: int, height: int, chances: Float[Tensor, " chances"] | None
) -> tuple[tuple[float, float, float, float], bool]:
    """Return the box of an image to use, as (left, top, right, bottom), and whether to flip it.

    Without ``chances`` the centre, for evaluation. With them a random resized crop
    (Szegedy et al. 2015): an area between 8 % and 100 %, an aspect ratio between 3:4
    and 4:3 uniform on a logarithmic scale, both clipped to the image, at a random
    position, flipped with probability 1/2.
    """
    if chances is None:
        side = CENTRE * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side), False
    area, ratio, down, across, flip, *_ = chances.tolist()
    part = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
    aspect = math.exp(math.log(RATIO[0]) + ratio * math.log(RATIO[1] / RATIO[0]))
    wide, high = min(math.sqrt(part * aspect), width), min(math.sqrt(part / aspect), height)
    left, top = across * (width - wide), down * (height - high)
    return (left, top, left + wide, top + high), flip < 0.5


def load_imagenet(limit: int | None = None, size: int = 224) -> Dataset:
    """Open ImageNet-1k: images (n, 3, size, size), normalised; classes as int64.

    From ``imagenet/{train,validation}*.parquet`` in the folder that the
    environment variable ``SPARSEFLOW_DATA`` names, else streamed from the hub
    (where its terms must have been accepted). Images are decoded when they are
    used. An epoch is shuffled within blocks of rows.

    Args:
        limit: number of examples of each split, at most.
        size: side of the images in pixels.

    Raises:
        DataError: if the files are missing, damaged, or in another format.
        SparseflowError: if ``datasets`` is not installed.
    """
    return Dataset(*(_open(split, limit, size) for split in ("train", "validation")))


def _open(split: str, limit: int | None, size: int) -> Images:
    rows = open_split("imagenet", split, HUB, ("image", "label"))
    rows = rows.cast_column("image", need("datasets", extra="data").Image(decode=False))
    name = f"ImageNet, split {split}"
    images = Images(
        Blocks(rows, name, BLOCK), name, _count(rows, split), CLASSES, size, frame, NORMALISE
    )
    return images.first(limit)


def _count(rows: object, split: str) -> int:
    folder = os.environ.get(FOLDER)
    if folder is None:
        splits = rows.info.splits  # type: ignore[attr-defined]
        if not splits or split not in splits:
            raise DataError(f"{HUB}: the hub does not say how many rows {split} has")
        return splits[split].num_examples
    parquet = need("pyarrow.parquet", extra="data")
    total = 0
    for path in split_files(Path(folder, "imagenet"), split):
        try:
            total += parquet.read_metadata(path).num_rows
        except Exception as error:
            raise reading(error, str(path)) from error
    return total
