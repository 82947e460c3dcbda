"""MNIST from the four IDX files inside the package, checked before use."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseflow.core.errors import DataError
from sparseflow.data.dataset import Dataset, Examples

FOLDER = Path(__file__).parent / "mnist_files"

_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@lru_cache(maxsize=1)
def load_mnist(folder: Path = FOLDER) -> Dataset:
    """Load MNIST: images (n, 1, 28, 28) in [0, 1], classes as int64.

    Raises:
        DataError: if a file is missing, truncated or has another checksum.
    """
    return Dataset(_load(folder, "train"), _load(folder, "t10k"))


def _load(folder: Path, part: str) -> Examples:
    images = _images(_read(folder, f"{part}-images-idx3-ubyte"))
    return Examples(images, _labels(_read(folder, f"{part}-labels-idx1-ubyte")))


def _read(folder: Path, name: str) -> bytes:
    path = folder / f"{name}.gz"
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"MNIST file {path} is missing: install the package again") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"MNIST file {path} is damaged ({error}): install it again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256[name]:
        raise DataError(
            f"MNIST file {path} is not the canonical one: SHA-256 {digest[:12]}…, "
            f"expected {_SHA256[name][:12]}…: install the package again"
        )
    return content


def _images(content: bytes) -> Tensor:
    _, count, rows, columns = struct.unpack(">IIII", content[:16])
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(count, 1, rows, columns)
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def _labels(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))
