"""Checkpoints without pickle: weights, masks and optimiser state in safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.errors import StoreError
from sparseflow.core.files import load_tensors, save_tensors
from sparseflow.masks import Masks
from sparseflow.topology import Topology

FORMAT = "sparseflow-1"


def save_weights(path: Path, model: nn.Module, masks: Masks, run: str, step: int) -> None:
    """Write the model's state and its masks at one step."""
    tensors = {f"weights/{n}": t for n, t in model.state_dict().items()}
    tensors |= {f"masks/{n}": m for n, m in masks.items()}
    save_tensors(path, tensors, {"format": FORMAT, "run": run, "step": step})


def load_weights(path: Path, run: str) -> tuple[dict[str, Tensor], Masks]:
    """Read the model's state and its masks.

    Raises:
        StoreError: if the file is missing, damaged, or of another run.
    """
    tensors, meta = load_tensors(path)
    _check(path, meta, run)
    return _under(tensors, "weights/"), Masks(_under(tensors, "masks/"))


def save_resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    topology: Topology,
    run: str,
    extra: Mapping[str, Any],
) -> None:
    """Write all that the next step depends on, and ``extra`` as JSON."""
    state = topology.state_dict()
    tensors = {f"weights/{n}": t for n, t in model.state_dict().items()}
    tensors |= {f"masks/{n}": m for n, m in state.pop("masks").items()}
    numbers: dict[str, dict[str, Any]] = {}
    packed = optimizer.state_dict()
    for index, slots in packed["state"].items():
        for key, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    meta = {
        "format": FORMAT,
        "run": run,
        "topology": state,
        "optimizer": {"groups": packed["param_groups"], "numbers": numbers},
        "extra": dict(extra),
    }
    save_tensors(path, tensors, meta)


def load_resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    topology: Topology,
    run: str,
) -> dict[str, Any]:
    """Restore :func:`save_resume` into fresh objects of the same kind; return ``extra``.

    Raises:
        StoreError: if the file is missing, damaged, of another run, or holds
            weights alone.
    """
    tensors, meta = load_tensors(path)
    _check(path, meta, run)
    if "optimizer" not in meta:
        raise StoreError(f"checkpoint {path} holds no optimiser state: it cannot be resumed")
    packed = meta["optimizer"]
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in packed["numbers"].items()}
    for name, tensor in _under(tensors, "optimizer/").items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = tensor
    model.load_state_dict(_under(tensors, "weights/"))
    optimizer.load_state_dict({"state": state, "param_groups": packed["groups"]})
    topology.load_state_dict(meta["topology"] | {"masks": _under(tensors, "masks/")})
    return meta["extra"]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _check(path: Path, meta: Mapping[str, Any], run: str) -> None:
    if meta.get("format") != FORMAT:
        raise StoreError(f"checkpoint {path} is not one of sparseflow's (no {FORMAT!r} mark)")
    if meta.get("run") != run:
        raise StoreError(f"checkpoint {path} belongs to run {meta.get('run')}, not to {run}")
