"""A split that is read from files on demand: images from blocks of a stream."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseflow.core.errors import DataError
from sparseflow.core.optional import need
from sparseflow.core.transfer import sent
from sparseflow.data.dataset import Batch, Where
from sparseflow.data.parquet import reading

BLOCK = 4096
"""Rows that are read together, and within which an epoch is shuffled."""

_CACHED = 2
"""Blocks in memory: a batch may span two."""

Frame = Callable[[int, int, Float[Tensor, " chances"] | None], tuple[tuple[float, ...], bool]]
"""Function of width, height and uniform numbers; returns a box, and whether to flip it."""


class Blocks:
    """Rows of a stream by block: the next block is read on, any other is skipped to."""

    def __init__(self, rows: Any, name: str, size: int) -> None:
        """Read from an ``IterableDataset``."""
        self._rows, self._name, self.size = rows, name, size
        self._cache: OrderedDict[int, dict[str, list[Any]]] = OrderedDict()
        self._reader: Iterator[dict[str, list[Any]]] = iter(())
        self._next = -1

    def __getitem__(self, number: int) -> dict[str, list[Any]]:
        """Return the columns of a block.

        Raises:
            DataError: if the stream is damaged, or ends before that block.
        """
        if number not in self._cache:
            self._cache[number] = self._read(number)
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return self._cache[number]

    def _read(self, number: int) -> dict[str, list[Any]]:
        try:
            if number != self._next:
                self._reader = iter(self._rows.skip(number * self.size).iter(self.size))
            block = next(self._reader)
        except StopIteration:
            self._next = -1
            raise DataError(f"{self._name} ends before row {number * self.size:,}") from None
        except Exception as error:
            self._next = -1
            raise reading(error, self._name) from error
        self._next = number + 1
        return block


@dataclass(frozen=True, eq=False)
class Images:
    """Encoded images and their classes; images are decoded when they are used.

    Attributes:
        blocks: rows with an ``image`` of bytes and a ``label``.
        name: name of the split in errors.
        count: number of examples.
        classes: number of classes.
        size: side of the square images that are returned, in pixels.
        frame: chooses the box of each image.
        finish: turns bytes into inputs of a model.
        device: device of the batches.
        pool: threads that decode; Pillow releases the GIL.
    """

    blocks: Blocks
    name: str
    count: int
    classes: int
    size: int
    frame: Frame
    finish: Callable[[Tensor], Tensor]
    device: torch.device | str = "cpu"
    pool: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)

    def __len__(self) -> int:
        """Number of examples."""
        return self.count

    def order(self, stream: torch.Generator) -> Int[Tensor, " n"]:
        """Shuffle within each block and leave the blocks in order: a stream is read forwards."""
        blocks = torch.arange(self.count).split(self.blocks.size)
        return torch.cat([part[torch.randperm(len(part), generator=stream)] for part in blocks])

    def __getitem__(self, where: Where) -> Batch:
        """Return inputs and classes of these examples, without augmentation."""
        return self._batch(where, None)

    def varied(self, where: Int[Tensor, " n"], chances: Float[Tensor, "n chances"]) -> Batch:
        """Return the same, augmented."""
        return self._batch(where, chances)

    def to(self, device: torch.device | str) -> Images:
        """Return the split with its batches on a device."""
        return replace(self, device=device)

    def first(self, count: int | None) -> Images:
        """Return the first ``count`` examples, or all."""
        return self if count is None else replace(self, count=min(count, self.count))

    def _batch(self, where: Where, chances: Tensor | None) -> Batch:
        numbers = torch.arange(self.count)[where].tolist()
        wanted: dict[int, tuple[bytes, int]] = {}
        for number in numbers:  # in the order of blocks, also across the end of an epoch
            block, place = divmod(number, self.blocks.size)
            rows = self.blocks[block]
            if place >= len(rows["label"]):
                raise DataError(f"{self.name} ends before row {number:,}")
            wanted[number] = rows["image"][place]["bytes"], rows["label"][place]
        drawn = [None] * len(numbers) if chances is None else list(chances.unbind())
        images = self.pool.map(self._decoded, (wanted[n][0] for n in numbers), numbers, drawn)
        x = sent(torch.from_numpy(np.stack(list(images))), self.device).permute(0, 3, 1, 2)
        y = torch.tensor([wanted[n][1] for n in numbers])
        if not 0 <= int(y.min()) <= int(y.max()) < self.classes:
            raise DataError(f"{self.name}: a class is not between 0 and {self.classes - 1}")
        return self.finish(x), sent(y, self.device)

    def _decoded(self, content: bytes, number: int, chances: Tensor | None) -> np.ndarray:
        library = need("PIL.Image", extra="data")
        try:
            with library.open(io.BytesIO(content)) as opened:
                image = opened.convert("RGB")
        except Exception as error:
            raise reading(error, f"{self.name}, row {number:,}") from error
        width, height = image.size
        box, flipped = self.frame(width, height, chances)
        image = image.resize((self.size, self.size), library.Resampling.BILINEAR, box)
        pixels = np.asarray(image)
        return pixels[:, ::-1] if flipped else pixels
