"""Files that are either whole or absent, and that keep what was said to be written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparseflow.core.errors import StoreError

try:
    import fcntl
except ImportError:  # no such locks on Windows: there, what a killed writer left stays
    fcntl = None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Once this returns the new content survives a loss of power. What writers of
    the same file left when they were killed is removed.

    Raises:
        StoreError: if the folder cannot be written, or is full; nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        make_folder(path.parent)
        _remove_orphans(path)
        with _claimed(temporary):
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file.

    Raises:
        StoreError: if it cannot be written; a part of the data may have been.
    """
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise cannot_write(path, error) from error


def sync(path: Path) -> None:
    """Wait until what was written to a file survives a loss of power.

    Raises:
        StoreError: if that fails.
    """
    try:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if they are not there.

    Raises:
        OSError: if that cannot be.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def orphans(folder: Path, name: str = "*") -> Iterator[Path]:
    """Temporary files in a folder whose writers are dead."""
    if fcntl is None:
        return
    for path in folder.glob(f".{name}.*.part"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path


def cannot_write(path: Path, error: OSError) -> StoreError:
    """Make the error that names a path and why the system refuses to write there."""
    return StoreError(f"cannot write {path}: {error.strerror}")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-like metadata to a safetensors file, atomically.

    A SHA-256 of all of it goes into the metadata. Equal content gives equal
    bytes: the metadata is one entry, since the format keeps no order among
    several.
    """
    ready = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    plain = json.loads(json.dumps(meta))
    text = json.dumps(plain | {"sha256": _checksum(ready, plain)})
    write_atomic(path, save(ready, {"sparseflow": text}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file: its tensors and its metadata.

    Raises:
        StoreError: if the file is missing, truncated, of another format, or
            does not match its checksum.
    """
    if not path.is_file():
        raise StoreError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("sparseflow", "{}")
            meta = json.loads(text)
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read ({error}): truncated or foreign") from error
    if not isinstance(meta, dict):
        raise StoreError(f"{path} cannot be read (its metadata is no object): foreign")
    exact = json.dumps(meta) == text
    written = meta.pop("sha256", None)
    if written is None:
        raise StoreError(
            f"{path} has no checksum: damaged, or not written by sparseflow 0.2 or later"
        )
    if not (exact and written == _checksum(tensors, meta)):
        raise StoreError(f"{path} is damaged: its content does not match its checksum")
    return tensors, meta


def _checksum(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


@contextmanager
def _claimed(temporary: Path) -> Iterator[None]:
    """Make a file and hold a lock on it, which the system drops when this process dies."""
    if fcntl is None:
        yield
        return
    while True:
        descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o666)
        with suppress(OSError):  # a file system without locks: then nobody takes it for an orphan
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # taken for an orphan before it was locked
    try:
        yield
    finally:
        os.close(descriptor)


def _remove_orphans(path: Path) -> None:
    for orphan in orphans(path.parent, path.name):
        orphan.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where folders can be opened."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
