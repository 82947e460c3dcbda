"""JSON files that name their kind and their owner, and whose checksum reveals damage.

    {"schema": 3, "kind": "result", "id": "da68d4094177746c", ..., "sha256": "..."}

The checksum is the last field, on a separate line, and covers every byte before
the comma that ends the line above it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sparseflow.core.errors import StoreError
from sparseflow.core.files import write_atomic

SCHEMA = 3
"""Version of what a store holds; files of another are refused."""

_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n\Z')


def save_document(
    path: Path, kind: str, owner: str, content: Mapping[str, Any], *, indent: int = 1
) -> None:
    """Write a JSON object with its kind, owner and checksum, atomically.

    Numbers that are not finite become null.

    Args:
        path: of the file.
        kind: what it is, such as ``result``.
        owner: id of the run or study that it belongs to.
        content: the other fields; anything that msgspec encodes.
        indent: spaces for each level; -1 for no white space at all.

    Raises:
        StoreError: if it cannot be written.
    """
    whole = {"schema": SCHEMA, "kind": kind, "id": owner, **content}
    text = msgspec.json.format(msgspec.json.encode(whole), indent=indent)
    covered = text.removesuffix(b"}").removesuffix(b"\n")
    seal = f',\n "sha256": "{hashlib.sha256(covered).hexdigest()}"\n}}\n'
    write_atomic(path, covered + seal.encode())


def load_document(path: Path, kind: str, owner: str) -> dict[str, Any]:
    """Read the fields that :func:`save_document` was given.

    Args:
        path: of the file.
        kind: what the file must be.
        owner: id of the run or study that it must belong to.

    Raises:
        StoreError: if the file is missing or damaged, or has another owner or schema.
    """
    try:
        data = path.read_bytes()
        content = json.loads(data)
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {str(error) or 'nested too deep'}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} is damaged: it holds no JSON object")
    _check_schema(path, content.pop("schema", SCHEMA))
    seal = _SEAL.search(data)
    if seal is None:
        raise StoreError(f"{path} is damaged: it has no checksum")
    if hashlib.sha256(data[: seal.start()]).hexdigest() != seal[1].decode():
        raise StoreError(f"{path} is damaged: its content does not match its checksum")
    of = content.pop("kind", None), content.pop("id", None)
    if of != (kind, owner):
        raise StoreError(f"{path} is the {of[0]} of {of[1]}, not the {kind} of {owner}")
    del content["sha256"]
    return content


def _check_schema(path: Path, schema: Any) -> None:
    if schema in (1, 2):
        raise StoreError(
            f"{path} has schema {schema}, of sparseflow 0.1, which this version does not read: "
            "choose another store, or install sparseflow==0.1.0"
        )
    if schema != SCHEMA:
        raise StoreError(
            f"{path} has schema {schema!r}; this version reads {SCHEMA}: "
            "install a newer sparseflow or choose another store"
        )
