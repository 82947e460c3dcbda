"""A run's network in one file, for use without the run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sparseflow.core.choices import Format
from sparseflow.runs.build import load_data, make_model
from sparseflow.runs.run import Run
from sparseflow.sparse.files.onnx import export_onnx
from sparseflow.sparse.files.storage import write


def export(run: Run, step: int, path: Path, kind: Format = "sparse") -> None:
    """Write the network of a kept checkpoint.

    Args:
        run: the run.
        step: one of its kept steps.
        path: of the file.
        kind: ``sparse`` for :func:`sparseflow.load`; ``onnx`` for the dense
            equivalent.

    Raises:
        StoreError: if that step was not kept, or a file is damaged or cannot be
            written.
        SparseflowError: if ``onnx`` is asked for and the extra is not installed.
    """
    run.check_code()
    state = run.state(step)
    example = load_data(run.spec).train[: run.spec.train.batch][0]
    if kind == "onnx":
        model = make_model(run.spec)
        state.restore(model)
        export_onnx(path, model, example_input=example)
    else:
        write(path, _structure(run), state, example)


def _structure(run: Run) -> nn.Module:
    with torch.device("meta"):
        return make_model(run.spec)
