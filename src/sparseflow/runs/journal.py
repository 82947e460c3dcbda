"""An append-only file that knows the digest of what it holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from sparseflow.core.errors import StoreError
from sparseflow.core.files import append, cannot_write, sync

_CHUNK = 1 << 16


class Mark(msgspec.Struct, frozen=True):
    """A place in a journal.

    Attributes:
        size: bytes before it.
        sha256: digest of these bytes.
    """

    size: int
    sha256: str


START = Mark(0, hashlib.sha256().hexdigest())
"""Where the first line begins."""


class Journal:
    """Lines that are added at the end, with a running SHA-256."""

    def __init__(self, path: Path) -> None:
        """Refer to a file, which need not exist yet; :meth:`rewind` before adding to it."""
        self._path = path
        self._size, self._sha = 0, hashlib.sha256()

    @property
    def mark(self) -> Mark:
        """Where the next line begins."""
        return Mark(self._size, self._sha.hexdigest())

    def append(self, line: bytes) -> None:
        """Add a line.

        Raises:
            StoreError: if it cannot be written.
        """
        append(self._path, line)
        self._size += len(line)
        self._sha.update(line)

    def rewind(self, mark: Mark) -> None:
        """Forget what was added after a mark.

        Raises:
            StoreError: if what is before the mark is not what it was.
        """
        self._size, self._sha = mark.size, check(self._path, mark)
        try:
            with self._path.open("a+b") as file:
                file.truncate(mark.size)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def sync(self) -> None:
        """Wait until all that was added survives a loss of power.

        Raises:
            StoreError: if that fails.
        """
        sync(self._path)


def check(path: Path, mark: Mark, *, whole: bool = False) -> hashlib._Hash:
    """Return the running digest of what a file holds before a mark.

    Args:
        path: of the file; one that is missing is empty.
        mark: what it must hold.
        whole: it must end there.

    Raises:
        StoreError: if it holds something else.
    """
    sha, left = hashlib.sha256(), mark.size
    try:
        with path.open("rb") as file:
            while left and (chunk := file.read(min(left, _CHUNK))):
                sha.update(chunk)
                left -= len(chunk)
            more = bool(file.read(1))
    except FileNotFoundError:
        more = False
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    if left:
        raise StoreError(
            f"{path} is damaged: {mark.size - left:,} bytes, where {mark.size:,} were written"
        )
    if (whole and more) or mark.sha256 != sha.hexdigest():
        raise StoreError(f"{path} is damaged: its content does not match its checksum")
    return sha
