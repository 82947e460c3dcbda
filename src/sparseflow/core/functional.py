"""Loss and gradient of any model on a batch, without touching its training.

``loss(model, batch) -> scalar`` is the one convention; a batch is any pytree
of tensors, cut in parts by :mod:`sparseflow.core.chunks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparseflow.core.batches import Part
from sparseflow.core.errors import MeasureError
from sparseflow.core.parallel import refuse_wrapped
from sparseflow.core.parameters import SparseWeight, named_weights, sparse_weights

Loss = Callable[[nn.Module, Any], Tensor]
RowGradient = Callable[[slice], Tensor]
"""The dense gradient of a weight, asked for by output rows."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore buffers, random streams and training flags on leaving.

    Batch-norm statistics, dropout's random numbers and the like are then the
    same afterwards as if the code inside had never run. What sparse layers
    record of training is put aside meanwhile.
    """
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    layers = list(sparse_weights(model).values())
    flags = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        indexed = [d for d in devices if d is not None]
        with torch.random.fork_rng(devices=indexed), recording(layers, None):
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                setattr(module, name, buffer.copy_(value))
        for module, flag in flags:
            module.training = flag


@contextmanager
def recording(layers: Iterable[SparseWeight], record: list[Any] | None) -> Iterator[None]:
    """Let sparse layers record into this list, or nowhere, and then where they did before."""
    before = [(layer, layer.record) for layer in layers]
    try:
        for layer, _ in before:
            layer.record = record
        yield
    finally:
        for layer, old in before:
            layer.record = old


@dataclass(eq=False)
class Recorded:
    """The dense gradient of a sparse layer, made from what its backward passes recorded.

    Attributes:
        layer: the layer.
        parts: what was recorded, each part with a factor or None for 1.
    """

    layer: SparseWeight
    parts: list[tuple[float | None, list[Any]]] = field(default_factory=list)

    def __call__(self, rows: slice) -> Float[Tensor, " rows *rest"]:
        """Return the gradient of these output rows; zeros if nothing was recorded."""
        total: Tensor | None = None
        for share, record in self.parts:
            if not record:
                continue
            with recording([self.layer], record):
                part = self.layer.weight_gradient(rows)
            if total is not None:
                total.add_(part, alpha=1 if share is None else share)
            else:
                total = part if share is None else part * share
        if total is not None:
            return total
        start, stop, _ = rows.indices(self.layer.shape[0])
        return self.layer.values.new_zeros((stop - start, *self.layer.shape[1:]))

    def active(self) -> Float[Tensor, " nnz"]:
        """Return the gradient of the layer's values alone."""
        total = torch.zeros_like(self.layer.values)
        for share, record in self.parts:
            if record:
                with recording([self.layer], record):
                    part = self.layer.values_gradient()
                total = total + (part if share is None else part * share)
        return total

    def with_active(self, values: Float[Tensor, " nnz"]) -> RowGradient:
        """The same gradient, with other entries at the layer's connections."""
        positions, width = self.layer.indices(), self.layer.shape[1:].numel()

        def rows_of(rows: slice) -> Tensor:
            block = self(rows).to(values.dtype)
            start = rows.start * width
            inside = (positions >= start) & (positions < rows.stop * width)
            block.view(-1)[positions[inside] - start] = values[inside]
            return block

        return rows_of


def scalar(value: Any, name: str = "the loss") -> Tensor:
    """Return what a loss gives, if it is one number.

    Raises:
        MeasureError: for anything else, such as the output of a model that holds a loss.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.reshape(())
    what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    hint = "; take its .loss" if hasattr(value, "loss") else ""
    raise MeasureError(f"{name} returns {what}; it should be a scalar tensor{hint}")


def logits_of(output: Any) -> Tensor:
    """Return the tensor that a model gives: its output, or the logits among several.

    Raises:
        MeasureError: if it gives neither.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else None
    logits = getattr(output, "logits", logits)
    if isinstance(logits, Tensor):
        return logits
    raise MeasureError(
        f"the model gives {type(output).__name__}; wrap it so that it gives its logits"
    )


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a model's call: one input, a tuple of them, or a mapping of named ones.

    Raises:
        MeasureError: for a ``DataLoader``, whose batches may be more than inputs.
    """
    if isinstance(example, DataLoader):
        raise MeasureError(
            "the inputs are a DataLoader: pass those of one batch, such as x of x, y"
        )
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def gradient(
    model: nn.Module, loss: Loss, parts: Sequence[Part]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss and its dense gradient over the parts of one probe.

    The gradient is that of ``loss`` alone: weight decay lives in the optimiser.
    ``.grad`` is left alone and gradient hooks do not fire. Parts count by their
    weights, so that a probe cut by :func:`~sparseflow.core.chunks.parts_of`
    gives the gradient of the whole.

    Returns:
        The scalar loss and, for each trainable parameter, its gradient by name;
        zeros for those that the loss does not depend on. That of a truly sparse
        layer is over its non-zeros, under the name of its weight.

    Raises:
        MeasureError: if the model is wrapped or sharded for data parallel training,
            nothing in it is trainable, or the loss is not a scalar tensor that
            depends on something trainable.
    """
    with undisturbed(model):
        return _gradient(model, loss, parts, {})


def dense_gradient(
    model: nn.Module, loss: Loss, parts: Sequence[Part]
) -> dict[str, Tensor | RowGradient]:
    """The same gradient, for growth: that of sparse layers is dense too, and comes by rows.

    It is made when it is asked for, from the activations of the whole probe,
    which are kept meanwhile.
    """
    sparse = {name: Recorded(layer) for name, layer in sparse_weights(model).items()}
    with undisturbed(model):
        _, gradients = _gradient(model, loss, parts, sparse)
    return {**gradients, **{name: rows for name, rows in sparse.items() if name in gradients}}


def _gradient(
    model: nn.Module, loss: Loss, parts: Sequence[Part], sparse: Mapping[str, Recorded]
) -> tuple[Tensor, dict[str, Tensor]]:
    refuse_wrapped(model)
    named = {name: p for name, p in named_weights(model).items() if p.requires_grad}
    if not named:
        raise MeasureError(f"{type(model).__name__} has no trainable parameter: all are frozen")
    if not parts:
        raise ValueError("a probe needs at least one chunk")
    total = sum(weight for _, weight in parts)
    value: Tensor | None = None
    sums: list[Tensor] = []
    for batch, weight in parts:
        share = weight / total
        for source in sparse.values():
            source.layer.record = []
        with torch.enable_grad():
            part = scalar(loss(model, batch))
            if not part.requires_grad:
                raise MeasureError("the loss does not depend on any trainable parameter")
            grads = torch.autograd.grad(part, list(named.values()), materialize_grads=True)
        # Embeddings may give sparse gradients, which have neither norms nor entries to mask.
        grads = [g.to_dense() if g.is_sparse else g for g in grads]
        for source in sparse.values():
            source.parts.append((share, source.layer.record or []))
        if value is None:
            value, sums = part.detach() * share, [g * share for g in grads]
        else:
            value = value + part.detach() * share
            for total_grad, grad in zip(sums, grads, strict=True):
                total_grad.add_(grad, alpha=share)
    assert value is not None
    return value, dict(zip(named, sums, strict=True))
