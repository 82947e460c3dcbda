"""Positions of active weights as bytes, close to the entropy bound.

The gaps between sorted positions are Rice coded (Rice and Plaunt, "Adaptive
variable-length coding for efficient compression of spacecraft television data",
1971): the low ``r`` bits of a gap in binary, the rest in unary, as zeros before a
one. With ``r = 0`` that is a bitmap. The parts are stored separately, so that NumPy
reads and writes each as one array: a byte with ``r``, a plane for each of the low
bits (the lowest first), then the unary parts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from sparseflow.core.errors import MaskError, StoreError

_MOST_LOW_BITS = 48
_MOST = 2**60
"""Entries of a weight at most: positions are int64."""


def encode(indices: Int64[Tensor, " nnz"], size: int) -> UInt8[Tensor, " bytes"]:
    """Encode sorted flat positions; equal positions give equal bytes.

    Memory and time are proportional to the number of positions.

    Args:
        indices: strictly ascending flat positions.
        size: number of entries of the weight.

    Raises:
        MaskError: if the positions are not strictly ascending within the size.

    Example:
        >>> code = encode(torch.tensor([0, 3, 4]), 6)
        >>> code.tolist(), decode(code, 6, 3, "w").tolist()
        ([0, 152], [0, 3, 4])
    """
    places = indices.cpu().numpy()
    steps = np.diff(places, prepend=-1)
    if len(places) and (steps.min() < 1 or places[-1] >= size):
        raise MaskError(f"positions are not strictly ascending within 0 to {size - 1}")
    gaps, low = steps - 1, _low_bits(len(places), size)
    planes = [np.packbits((gaps >> bit & 1).astype(np.uint8)) for bit in range(low)]
    ends = np.cumsum((gaps >> low) + 1)
    unary = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    unary[ends - 1] = 1
    head = np.array([low], dtype=np.uint8)
    return torch.from_numpy(np.concatenate([head, *planes, np.packbits(unary)]))


def read(
    code: Tensor | None, shape: Any, count: Any, name: str
) -> tuple[Int64[Tensor, " nnz"], torch.Size]:
    """Decode positions and the weight's shape from an untrusted file.

    Raises:
        StoreError: if the code is not that of ``count`` positions in a weight of a
            valid shape. Memory is proportional to the size of the file.
    """
    if code is None:
        raise StoreError(f"{name!r} lacks its mask")
    sized = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not sized or math.prod(shape) > _MOST:
        raise StoreError(f"{name!r} has an invalid shape: {str(shape)[:80]}")
    if code.ndim != 1 or code.dtype != torch.uint8:
        raise StoreError(f"the mask of {name!r} is damaged: {code.dtype} of {code.ndim} axes")
    if type(count) is not int:
        raise StoreError(f"{name!r} has an invalid number of active weights: {str(count)[:80]}")
    return decode(code, math.prod(shape), count, name), torch.Size(shape)


def decode(
    code: UInt8[Tensor, " bytes"], size: int, count: int, name: str
) -> Int64[Tensor, " nnz"]:
    """Decode positions, and verify them.

    Args:
        code: from :func:`encode`.
        size: number of entries of the weight.
        count: number of positions.
        name: of the weight, for errors.

    Raises:
        StoreError: if the bytes do not encode exactly ``count`` ascending positions
            within the size.
    """
    data = code.numpy()
    low = int(data[0]) if len(data) else _MOST_LOW_BITS + 1
    width = -(-count // 8)
    if not 0 <= count <= size or low > _MOST_LOW_BITS or len(data) < 1 + low * width:
        raise _damaged(name, count, size)
    planes = data[1 : 1 + low * width].reshape(low, width)
    unary = np.unpackbits(data[1 + low * width :])
    ends = np.flatnonzero(unary)
    length = int(ends[-1]) + 1 if len(ends) else 0
    spare = 8 * width - count
    if len(ends) != count or len(unary) != -(-length // 8) * 8 or (planes[:, -1:] % 2**spare).any():
        raise _damaged(name, count, size)
    high = np.diff(ends, prepend=-1) - 1
    if high.max(initial=0) > size >> low:
        raise _damaged(name, count, size)
    gaps = high << low
    for bit, plane in enumerate(planes):
        gaps |= np.unpackbits(plane, count=count).astype(np.int64) << bit
    places = np.cumsum(gaps + 1) - 1
    # Gaps are bounded above, so a sum that overflowed would have passed the size before.
    if places.max(initial=-1) >= size:
        raise _damaged(name, count, size)
    return torch.from_numpy(places)


def _low_bits(count: int, size: int) -> int:
    """Number r of low bits that minimises the worst length, count · r + (sum of gaps) / 2^r."""
    spread = size - count
    costs = [count * low + (spread >> low) for low in range(_MOST_LOW_BITS + 1)]
    return costs.index(min(costs)) if count else 0


def _damaged(name: str, count: int, size: int) -> StoreError:
    return StoreError(
        f"the mask of {name!r} is damaged: it does not hold {count:,} positions among {size:,}"
    )
