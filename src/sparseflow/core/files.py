"""Files that are either whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sparseflow.core.errors import StoreError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Raises:
        StoreError: if the folder cannot be written; nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


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
    """Read a safetensors file: its tensors and its metadata, empty if not one of ours.

    Raises:
        StoreError: if the file is missing, truncated, of another format, or
            does not match its checksum (early files have none).
    """
    if not path.is_file():
        raise StoreError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("sparseflow", "{}"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read ({error}): truncated or foreign") from error
    if not isinstance(meta, dict):
        raise StoreError(f"{path} cannot be read (its metadata is no object): foreign")
    written = meta.pop("sha256", None)
    if written is not None and written != _checksum(tensors, meta):
        raise StoreError(f"{path} is damaged: its content does not match its checksum")
    return tensors, meta


def _checksum(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    sha = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
