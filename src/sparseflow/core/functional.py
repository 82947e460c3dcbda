"""Loss and gradient of any model on a batch, without touching its training.

``loss(model, batch) -> scalar`` is the one convention; a batch is any pytree
of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparseflow.core.errors import MeasureError
from sparseflow.core.parallel import refuse_wrapped
from sparseflow.core.parameters import SparseWeight, named_weights, sparse_weights

Loss = Callable[[nn.Module, Any], Tensor]
RowGradient = Callable[[slice], Tensor]
"""The dense gradient of a weight, asked for by output rows."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore buffers, random streams and training flags on the way out.

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
        known = [d for d in devices if d is not None]
        with torch.random.fork_rng(devices=known), recording(layers, None):
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                setattr(module, name, buffer.copy_(value))
        for module, flag in flags:
            module.training = flag


def batch_size(batch: Any) -> int:
    """Return the length of the first tensor in the pytree."""
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.shape[0]
    raise ValueError("a batch must hold at least one tensor with a first dimension")


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


def gradient(
    model: nn.Module, loss: Loss, chunks: Sequence[Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss and its dense gradient over the chunks of one probe.

    The gradient is that of ``loss`` alone: weight decay lives in the optimiser.
    ``.grad`` is left alone and gradient hooks do not fire. Chunks are weighted
    by their number of examples, so a probe split in chunks gives the gradient
    of the whole.

    Returns:
        The scalar loss and, for each trainable parameter that the loss
        depends on, its gradient by name; zeros for the others. That of a truly
        sparse layer is over its non-zeros, under the name of its weight.

    Raises:
        MeasureError: if the model is wrapped or sharded for data parallel training.
    """
    with undisturbed(model):
        return _gradient(model, loss, chunks, {})


def dense_gradient(
    model: nn.Module, loss: Loss, chunks: Sequence[Any]
) -> dict[str, Tensor | RowGradient]:
    """The same gradient, for growth: of sparse layers it is dense too, and comes by rows.

    It is made when it is asked for, from the activations of the whole probe,
    which are kept meanwhile.
    """
    sparse = {name: Recorded(layer) for name, layer in sparse_weights(model).items()}
    with undisturbed(model):
        _, found = _gradient(model, loss, chunks, sparse)
    return {**found, **{name: source for name, source in sparse.items() if name in found}}


def _gradient(
    model: nn.Module, loss: Loss, chunks: Sequence[Any], sparse: Mapping[str, Recorded]
) -> tuple[Tensor, dict[str, Tensor]]:
    refuse_wrapped(model)
    named = {name: p for name, p in named_weights(model).items() if p.requires_grad}
    total = sum(batch_size(chunk) for chunk in chunks)
    value: Tensor | None = None
    sums: list[Tensor] = []
    for chunk in chunks:
        share = batch_size(chunk) / total
        for source in sparse.values():
            source.layer.record = []
        with torch.enable_grad():
            part = loss(model, chunk)
            grads = torch.autograd.grad(part, list(named.values()), materialize_grads=True)
        for source in sparse.values():
            source.parts.append((share, source.layer.record or []))
        if value is None:
            value, sums = part.detach() * share, [g * share for g in grads]
        else:
            value = value + part.detach() * share
            for total_grad, grad in zip(sums, grads, strict=True):
                total_grad.add_(grad, alpha=share)
    if value is None:
        raise ValueError("a probe needs at least one chunk")
    return value, dict(zip(named, sums, strict=True))


def batches(data: Any) -> list[Any]:
    """List the batches of ``data``: one batch, or an iterable of batches.

    A tensor, a tuple, a mapping or any other registered pytree is one batch;
    a list, a generator, a ``DataLoader`` are many. A list of two tensors of
    equal length is refused: it may be meant as one batch of inputs and targets.

    Raises:
        MeasureError: if there is none, or for such a list.

    >>> len(batches((torch.ones(4, 2), torch.ones(4)))), len(batches([torch.ones(4, 2)] * 3))
    (1, 3)
    """
    single = isinstance(data, Tensor | tuple | Mapping) or not isinstance(data, Iterable)
    found = [data] if single else list(data)
    if isinstance(data, list) and _looks_like_inputs_and_targets(data):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in data)
        raise MeasureError(
            f"the data are a list of two tensors of shapes {shapes}: pass a tuple (x, y) for one "
            "batch of inputs and targets, or iter([...]) for two batches of inputs alone"
        )
    if not found:
        raise MeasureError("the data hold no batch")
    return found


def _looks_like_inputs_and_targets(items: list[Any]) -> bool:
    lengths = [item.shape[:1] for item in items if isinstance(item, Tensor)]
    return len(items) == len(lengths) == 2 and lengths[0] == lengths[1]


def split(batch: Any, size: int) -> list[Any]:
    """Cut a batch into chunks of ``size`` examples, the last one shorter.

    Smaller chunks keep activations in cache: on a CPU 1,000 MNIST images take
    half the time in chunks of 250. A mapping that is no pytree, as a tokenizer
    returns, is taken as a dict.
    """
    if isinstance(batch, Mapping) and pytree.tree_is_leaf(batch):
        batch = dict(batch)

    def part(start: int) -> Any:
        stop = start + size
        return pytree.tree_map(
            lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) and leaf.ndim else leaf, batch
        )

    return [part(start) for start in range(0, batch_size(batch), size)]
