"""Which execution a run has: masked dense, or truly sparse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.backends import cudnn

from sparseflow.core.choices import Execution
from sparseflow.core.errors import SparseUnavailable, SpecError, first_line
from sparseflow.masks import Masks
from sparseflow.runs.spec import RunSpec
from sparseflow.sparse.kernels.library import core
from sparseflow.topology import served

Resolved = Literal["dense", "sparse"]

AUTO_DENSITY = 0.3
"""Density up to which ``auto`` is sparse.

Well below where a training step breaks even, so that sparse execution is never
the slower one: with the portable kernels, the slowest, LeNet-300-100 breaks
even at a density of a little under 0.5, with the others above that; LeNet5,
which the layout alone makes faster, at about 1. At 0.3 a step is 1.3 (portable),
2.3 (AVX2) and 2.4 (AVX-512) times as fast as masked dense for the former, and
2.0, 3.3 and 3.8 times for the latter (batch 128, one thread).
"""


def check_execution(execution: Execution, device: str) -> None:
    """Refuse an execution that is not to be had here.

    Raises:
        SpecError: if sparse execution is asked for on another device than the CPU.
        SparseUnavailable: if the compiled core that it needs is missing.
    """
    if execution != "sparse":
        return
    if torch.device(device).type != "cpu":
        raise SpecError(
            f"execution=sparse runs on the CPU, not on device {device}: "
            "set execution=auto or execution=dense"
        )
    core()


def check_device(device: str) -> None:
    """Raise a SpecError unless tensors can be made and read on a device."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SpecError(f"device {device!r} cannot be used here: {first_line(error)}") from error


def accelerator(device: str) -> str | None:
    """Name of the GPU that a device is, for the record; None for other devices."""
    on_gpu = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else None


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """Let a GPU compute alike every time, and in float32 as a CPU does.

    A run that was interrupted ends bit for bit as if it had not been: algorithms
    that add up in another order each time, or that are chosen by timing them, have
    no place in it. Convolutions round to TF32 unless told otherwise.

    Settings of PyTorch are restored on leaving; the environment variable that
    cuBLAS reads when it starts stays.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    exact = cudnn.flags(
        enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )
    try:
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("highest")
        with exact:
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        torch.set_float32_matmul_precision(precision)


def resolve(spec: RunSpec, masks: Masks, device: str) -> Resolved:
    """Choose the execution of a run that starts with these masks.

    ``auto`` is sparse where that is surely faster: on the CPU, with the compiled
    core, from a density of at most :data:`AUTO_DENSITY` on, for a method that it can
    serve. A run that starts dense, as pruning does, is masked dense throughout.
    Nothing is timed: one specification on one installation is always executed alike.

    Raises:
        SpecError: if sparse execution is asked for on another device than the CPU.
        SparseUnavailable: if the compiled core that it needs is missing.
    """
    check_execution(spec.execution, device)
    if spec.execution != "auto":
        return spec.execution
    fits = torch.device(device).type == "cpu" and masks.density <= AUTO_DENSITY
    return "sparse" if fits and served(spec.method) and _available() else "dense"


def _available() -> bool:
    try:
        core()
    except SparseUnavailable:
        return False
    return True
