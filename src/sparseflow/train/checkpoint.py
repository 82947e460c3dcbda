"""Checkpoints without pickle: weights, masks and optimiser state in safetensors.

A masked weight, and the optimiser's state of it, is stored as its non-zeros. The
file does not depend on the execution, masked dense or sparse: equal networks give
equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.errors import SparseflowError, StoreError, brief
from sparseflow.core.files import load_tensors, save_tensors
from sparseflow.core.parameters import named_weights
from sparseflow.masks import Masks
from sparseflow.masks.state import NonZeros, State, under, without_sign_of_zero
from sparseflow.topology import Topology

FORMAT = "sparseflow-2"


def save_weights(path: Path, model: nn.Module, masks: Masks, run: str, step: int) -> None:
    """Write the model's state and its masks at one step.

    Raises:
        MaskError: if the masks do not fit, or an inactive weight is not zero.
    """
    tensors, shapes = State.of(model, masks).tensors()
    save_tensors(path, tensors, {"format": FORMAT, "run": run, "step": step, "shapes": shapes})


def load_state(path: Path, run: str, step: int | None = None) -> State:
    """Read the model's state, at any step or at ``step``; allocates nothing of dense size.

    Raises:
        StoreError: if the file is missing or damaged, or belongs to another run or step.
    """
    tensors, meta = _load(path, run)
    if step is not None and meta.get("step") != step:
        raise StoreError(f"checkpoint {path} is not that of step {step}: {meta.get('step')}")
    return _state(path, tensors, meta)


def save_resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    topology: Topology,
    run: str,
    extra: Mapping[str, Any],
) -> None:
    """Write everything that the next step depends on, and ``extra`` as JSON.

    Raises:
        MaskError: if an inactive weight is not zero.
    """
    progress = topology.state_dict()
    del progress["masks"]
    memory = progress.pop("memory")
    state = State.of(model, topology.masks)
    tensors, shapes = state.tensors()
    masked = _masked(model, optimizer, state)
    numbers: dict[str, dict[str, Any]] = {}
    packed = optimizer.state_dict()
    for index, slots in packed["state"].items():
        for key, value in slots.items():
            if not isinstance(value, Tensor):
                numbers.setdefault(str(index), {})[key] = value
                continue
            active = _active(value, masked.get(index))
            kind = "optimizer" if active is None else "active"
            tensors[f"{kind}/{index}/{key}"] = value if active is None else active
    tensors |= {f"memory/{name}": tensor for name, tensor in memory.items()}
    meta = {
        "format": FORMAT,
        "run": run,
        "shapes": shapes,
        "topology": progress,
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

    The file may have been written by the other execution, masked dense or sparse.

    Raises:
        StoreError: if the file is missing or damaged, belongs to another run or
            network, or holds only weights.
    """
    tensors, meta = _load(path, run)
    if "optimizer" not in meta:
        raise StoreError(f"checkpoint {path} holds no optimiser state: it cannot be resumed from")
    try:
        _restore(tensors, meta, _state(path, tensors, meta), model, optimizer, topology)
        return dict(meta["extra"])
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError) as e:
        if isinstance(e, SparseflowError):
            raise
        raise StoreError(f"checkpoint {path} holds no state of this run ({brief(e)})") from e


def _restore(
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    topology: Topology,
) -> None:
    packed = meta["optimizer"]
    slots: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in packed["numbers"].items()}
    sizes = dict(enumerate(p.shape for p in _parameters(optimizer)))
    state.restore(model)
    masked = _masked(model, optimizer, state)
    for name, tensor in under(tensors, "optimizer/").items():
        index, key = name.split("/", 1)
        slots.setdefault(int(index), {})[key] = tensor
    for name, tensor in under(tensors, "active/").items():
        index, key = name.split("/", 1)
        weight = masked[int(index)]
        dense = sizes[int(index)] == weight.shape  # else a truly sparse layer: values as they are
        slots.setdefault(int(index), {})[key] = weight.spread(tensor) if dense else tensor
    optimizer.load_state_dict({"state": slots, "param_groups": packed["groups"]})
    memory = under(tensors, "memory/")
    topology.load_state_dict(meta["topology"] | {"masks": state.masks(), "memory": memory})


def resume_extra(path: Path, run: str) -> dict[str, Any]:
    """Read only the ``extra`` of :func:`save_resume`; empty for a file of weights.

    Raises:
        StoreError: if the file is missing or damaged, or belongs to another run.
    """
    return _load(path, run)[1].get("extra", {})


def _load(path: Path, run: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, meta = load_tensors(path)
    if meta.get("format") != FORMAT:
        raise StoreError(f"checkpoint {path} is not one of sparseflow's (no {FORMAT!r} mark)")
    if meta.get("run") != run:
        raise StoreError(f"checkpoint {path} belongs to run {meta.get('run')}, not to {run}")
    return tensors, meta


def _state(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> State:
    try:
        return State.read(tensors, meta.get("shapes"))
    except StoreError as error:
        raise StoreError(f"checkpoint {path}: {error}") from error


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _masked(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: State
) -> dict[int, NonZeros]:
    """Masked weights by their index in the optimiser's state."""
    named = {id(p): name for name, p in named_weights(model).items()}
    names = [named.get(id(p), "") for p in _parameters(optimizer)]
    return {i: state.masked[name] for i, name in enumerate(names) if name in state.masked}


def _active(value: Tensor, weight: NonZeros | None) -> Tensor | None:
    """State of the active connections if the rest of it is zero, else None."""
    if weight is None or value.shape not in (weight.shape, weight.values.shape):
        return None
    if value.shape == weight.values.shape:
        return without_sign_of_zero(value)
    active = value.reshape(-1)[weight.indices.to(value.device)]
    whole = value.count_nonzero() == active.count_nonzero()
    return without_sign_of_zero(active) if whole else None
