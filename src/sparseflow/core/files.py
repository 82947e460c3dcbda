"""Files that are either whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

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

    Equal content gives equal bytes: the metadata is one entry, since the format
    keeps no order among several.
    """
    ready = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_atomic(path, save(ready, {"sparseflow": json.dumps(meta)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file: its tensors and its metadata, empty if not one of ours.

    Raises:
        StoreError: if the file is missing, truncated or of another format.
    """
    if not path.is_file():
        raise StoreError(f"checkpoint {path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("sparseflow", "{}"))
            return {k: file.get_tensor(k) for k in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(
            f"checkpoint {path} cannot be read ({error}): truncated or foreign"
        ) from error
