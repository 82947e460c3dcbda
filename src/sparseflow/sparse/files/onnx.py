"""ONNX: the dense equivalent of a model, for other runtimes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.errors import StoreError, brief
from sparseflow.core.files import write_atomic
from sparseflow.core.functional import undisturbed
from sparseflow.core.optional import need
from sparseflow.sparse.convert.model import to_dense
from sparseflow.sparse.layers.registry import has_sparse_layer


def export_onnx(path: Path | str, model: nn.Module, *, example_input: Tensor) -> None:
    """Write the dense equivalent of a model, in evaluation mode, as ONNX.

    ONNX has no sparse layers that runtimes compute with: zeros are stored and
    multiplied. Any number of examples may be given to the file's ``input``; its
    ``output`` is the model's. Needs the extra ``onnx``.

    Args:
        path: of the file.
        model: dense or truly sparse; it is left alone.
        example_input: an input of one example or more.

    Raises:
        SparseflowError: if the extra is not installed.
        StoreError: if the model cannot be exported, or the file cannot be written.
    """
    for module in ("onnx", "onnxscript"):
        need(module, extra="onnx")
    dense = to_dense(model) if has_sparse_layer(model) else model
    # The exporter would take a batch of one for a constant.
    several = torch.cat([example_input, example_input])
    with undisturbed(dense), _quiet():
        try:
            program: Any = torch.onnx.export(
                dense.eval(),
                (several,),
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
                dynamo=True,
            )
            proto = program.model_proto
            _forget_origin(proto)
            content = proto.SerializeToString(deterministic=True)
        except Exception as error:  # the exporter raises many kinds
            name = type(model).__name__
            raise StoreError(f"{name} cannot be exported to ONNX ({brief(error)})") from error
    write_atomic(Path(path), content)


def _forget_origin(proto: Any) -> None:
    """Drop what differs where models do not: stack traces, and the order of attributes."""
    for node in proto.graph.node:
        attributes = sorted(node.attribute, key=lambda a: a.name)
        del node.metadata_props[:], node.attribute[:]
        node.attribute.extend(attributes)
        node.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter logs and warns about its own internals."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
