"""Memory for the kernels' large results, reused rather than returned to the system.

Fresh memory costs a page fault and zeroing on first touch, which for results of tens of
megabytes takes as long as a kernel; and the C library returns such memory to the system
whenever a tensor is freed, so that every training step would pay again.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref

import torch
from torch import Tensor

LARGE = 1 << 20
"""Bytes from which a result comes from the pool."""
CAPACITY = 256 << 20
"""Most bytes that the pool holds for later results."""


class Pool:
    """Buffers that no tensor uses any more, for the next results of the same size.

    A tensor of the pool is like any other, except that its storage cannot grow; its buffer
    returns when the last tensor that shares the storage is gone.

    Args:
        capacity: most bytes of unused buffers to hold; those unused for longest go first.

    >>> pool = Pool(capacity=64 << 20)
    >>> first = pool.empty((1024, 1024))
    >>> at = first.data_ptr()
    >>> del first
    >>> pool.unused, pool.empty((2048, 512)).data_ptr() == at
    (4194304, True)
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Start empty."""
        self.capacity = capacity
        # In order of return. A finalizer may run, and return a buffer, while this very
        # thread holds the lock, so the lock must be re-entrant.
        self._unused: list[Tensor] = []
        self._lock = threading.RLock()

    @property
    def unused(self) -> int:
        """Bytes held."""
        with self._lock:
            return sum(buffer.nbytes for buffer in self._unused)

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised float32 tensor on the CPU; from the pool if it is large."""
        size = 4 * math.prod(shape)
        if size < LARGE:
            return torch.empty(shape, dtype=torch.float32, device="cpu")
        buffer = self._take(size)
        # The storage owns the lease; when torch frees it, the finalizer returns the buffer.
        lease = (ctypes.c_byte * size).from_address(buffer.data_ptr())
        weakref.finalize(lease, self._give_back, buffer).atexit = False
        return torch.frombuffer(lease, dtype=torch.float32).view(shape)

    def _take(self, size: int) -> Tensor:
        with self._lock:
            for at in reversed(range(len(self._unused))):
                if self._unused[at].nbytes == size:
                    return self._unused.pop(at)
        return torch.empty(size, dtype=torch.uint8, device="cpu")

    def _give_back(self, buffer: Tensor) -> None:
        with self._lock:
            self._unused.append(buffer)
            while self.unused > self.capacity:
                self._unused.pop(0)


POOL = Pool()


def empty(*shape: int) -> Tensor:
    """An uninitialised float32 tensor of this shape for a kernel's result."""
    return POOL.empty(shape)
