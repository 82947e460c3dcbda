"""Small data sets as parquet files, in the layout of Hugging Face ``datasets``."""

import io
from pathlib import Path

import numpy as np
import pytest

datasets = pytest.importorskip("datasets", reason="needs the extra 'data'")
image = pytest.importorskip("PIL.Image", reason="needs the extra 'data'")


def picture(width: int, height: int, seed: int, kind: str = "PNG") -> bytes:
    """An encoded image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write(path: Path, images: list[bytes], classes: list[int], names=("img", "label")) -> None:
    """One parquet file of a split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {names[0]: {"bytes": b, "path": None}, names[1]: c}
        for b, c in zip(images, classes, strict=True)
    ]
    kinds = {names[0]: datasets.Image(), names[1]: datasets.Value("int64")}
    datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).to_parquet(path)


def write_cifar(folder: Path, train: int = 96, test: int = 40) -> None:
    """A small CIFAR-10: image i of a split has class i mod 10."""
    for first, (split, count) in enumerate((("train", train), ("test", test))):
        images = [picture(32, 32, 1000 * first + i) for i in range(count)]
        write(folder / "cifar10" / f"{split}.parquet", images, [i % 10 for i in range(count)])


def write_imagenet(folder: Path, train: tuple[int, ...] = (20, 21), validation: int = 12) -> None:
    """A small ImageNet of JPEGs of many sizes; the training split is of several files."""
    sizes = np.random.default_rng(0)

    def images(count: int, first: int) -> list[bytes]:
        sides = sizes.integers(40, 90, (count, 2)).tolist()
        return [picture(w, h, first + i, "JPEG") for i, (w, h) in enumerate(sides)]

    names = ("image", "label")
    for part, count in enumerate(train):
        path = folder / "imagenet" / f"train-{part:05}-of-{len(train):05}.parquet"
        write(path, images(count, 100 * part), [7 * i % 1000 for i in range(count)], names)
    path = folder / "imagenet" / "validation-00000-of-00001.parquet"
    write(path, images(validation, 999), list(range(validation)), names)
