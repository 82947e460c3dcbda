"""Atomic and durable files: readers see all of a file or nothing, also after a loss of power."""

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
except ImportError:  # Windows lacks these locks: temporary files of killed writers stay there
    fcntl = None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that readers see the old content or the new one, never a part of it.

    Once this returns, the new content survives a loss of power. Temporary files that
    killed writers of the same file left behind are removed.

    Raises:
        StoreError: if the folder cannot be written to, or the disk is full; nothing is left behind.
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
        StoreError: if that fails; a part of the data may have been written.
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
    """Create a folder and its missing parents.

    Raises:
        OSError: if one of them cannot be created.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def orphans(folder: Path, name: str = "*") -> Iterator[Path]:
    """Yield the temporary files in a folder whose writers are dead."""
    if fcntl is None:
        return
    for path in folder.glob(f".{name}.*.part"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path


def cannot_write(path: Path, error: OSError) -> StoreError:
    """Return the error that names a path and the reason why it cannot be written."""
    return StoreError(f"cannot write {path}: {error.strerror}")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-like metadata to a safetensors file, atomically.

    A SHA-256 of everything is part of the metadata. Equal content gives equal
    bytes: all metadata is one entry, since the format does not preserve the
    order of several.
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
        raise StoreError(f"{path} cannot be read (its metadata is not a JSON object): foreign")
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
    """Create a file and hold a lock on it, which the system releases when this process dies."""
    if fcntl is None:
        yield
        return
    while True:
        descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o666)
        with suppress(OSError):  # a file system without locks: its orphans are not removed
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # another writer removed it as an orphan before it was locked
    try:
        yield
    finally:
        os.close(descriptor)


def _remove_orphans(path: Path) -> None:
    for orphan in orphans(path.parent, path.name):
        orphan.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Make the entries of a folder durable, on systems where a folder can be opened."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
