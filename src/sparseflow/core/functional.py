"""Loss and gradient of any model on a batch, without touching its training.

``loss(model, batch) -> scalar`` is the one convention; a batch is any pytree
of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparseflow.core.errors import MeasureError

Loss = Callable[[nn.Module, Any], Tensor]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore buffers, random streams and training flags on the way out.

    Batch-norm statistics, dropout's random numbers and the like are then the
    same afterwards as if the code inside had never run.
    """
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    flags = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=[d for d in devices if d is not None]):
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
        depends on, its gradient by name; zeros for the others.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = sum(batch_size(chunk) for chunk in chunks)
    value: Tensor | None = None
    sums: list[Tensor] = []
    with undisturbed(model), torch.enable_grad():
        for chunk in chunks:
            share = batch_size(chunk) / total
            part = loss(model, chunk)
            grads = torch.autograd.grad(part, list(named.values()), materialize_grads=True)
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
    a list, a generator, a ``DataLoader`` are many.

    Raises:
        MeasureError: if there is none.

    >>> len(batches((torch.ones(4, 2), torch.ones(4)))), len(batches([torch.ones(4, 2)] * 3))
    (1, 3)
    """
    single = isinstance(data, Tensor | tuple | Mapping) or not isinstance(data, Iterable)
    found = [data] if single else list(data)
    if not found:
        raise MeasureError("the data hold no batch")
    return found


def split(batch: Any, size: int) -> list[Any]:
    """Cut a batch into chunks of ``size`` examples, the last one shorter.

    Smaller chunks keep activations in cache: on a CPU 1,000 MNIST images take
    half the time in chunks of 250.
    """

    def part(start: int) -> Any:
        stop = start + size
        return pytree.tree_map(
            lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) and leaf.ndim else leaf, batch
        )

    return [part(start) for start in range(0, batch_size(batch), size)]
