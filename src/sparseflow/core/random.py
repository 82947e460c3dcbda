"""Named random streams: every draw names its purpose."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator for the stream called ``names`` under ``seed``.

    Streams of different names are independent, and one name gives the same numbers
    in every process, on every machine and rank: the state is a SHA-256 digest, since
    Python's ``hash`` of a string differs between processes.

    >>> a, b = generator(0, "mask", "fc1"), generator(0, "mask", "fc2")
    >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).any())
    False
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(n).__name__}:{n}" for n in names)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
