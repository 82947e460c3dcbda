"""Gradient flow: the norm of the gradient over the active parameters."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.batches import Part
from sparseflow.core.chunks import Chunks, parts_of
from sparseflow.core.functional import Loss, gradient, scalar, undisturbed
from sparseflow.core.parameters import named_weights, sparse_weights
from sparseflow.masks import Masks


@dataclass(frozen=True)
class Flow:
    """Gradient norms of one network on one probe; all are L2 norms, not squares.

    Attributes:
        loss: mean loss on the probe, without weight decay.
        total: norm over the active parameters: masked weights and everything
            that has no mask (Evci et al. 2022).
        kernels: the same over weights alone (parameters of two or more axes,
            values of truly sparse layers).
        biases: the same over the others. Biases dominate ``total`` in badly
            initialised sparse networks, so the two are told apart.
        dense: norm of the dense gradient, inactive weights included; NaN if a
            layer is truly sparse, whose dense gradient is never made here.
        effective: mean over parameter tensors of their norms, which layers of
            different size enter equally (effective gradient flow, Tessera et
            al. 2021, arXiv 2102.01670).
        per_layer: norm of each parameter by name, over its active entries.
    """

    loss: float
    total: float
    kernels: float
    biases: float
    dense: float
    effective: float
    per_layer: dict[str, float]


def gradient_flow(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    masks: Mapping[str, Tensor] | None = None,
    *,
    chunk: int | Chunks | None = None,
) -> Flow:
    """Measure gradient flow on a fixed probe batch; training is not disturbed.

    Neither gradients, nor buffers (batch-norm statistics), nor random streams
    change, and no hook of :func:`sparseflow.attach` fires.

    Args:
        model: any module, measured in the mode it is in.
        loss: ``loss(model, batch) -> scalar``, without weight decay.
        batch: any pytree of tensors, or an iterable of such batches; the paper
            takes the first 1,000 training examples.
        masks: masks of (some) parameters; the others count whole.
        chunk: examples at a time, or all that :class:`Chunks` says of how the
            batch is cut. Without it a batch is measured in chunks of 250 if its
            loss is the mean over them, else as a whole. Batch norm in training
            mode normalises each chunk by itself.

    Raises:
        MaskError: if the masks do not fit the model.
        MeasureError: if nothing is trainable, the loss is not a scalar tensor,
            or it is not the mean over chunks of the size asked for.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Linear(3, 2)
        >>> masks = sf.sparsify(net, density=0.5)
        >>> probe = (torch.ones(8, 3), torch.zeros(8, dtype=torch.long))
        >>> flow = gradient_flow(net, sf.cross_entropy, probe, masks)
        >>> flow.total <= flow.dense
        True
    """
    values = Masks(masks or {})
    values.check(model)
    value, grads = gradient(model, loss, parts_of(model, loss, batch, chunk))
    active = _active(model, grads, values)
    return _flow(float(value), grads, active, sparse_weights(model))


def _active(model: nn.Module, grads: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """The gradient where masks are on: zero elsewhere, or of sparse layers left out."""
    layers, active = sparse_weights(model), dict(grads)
    for name in (n for n in masks if n in grads):
        if name not in layers:
            active[name] = grads[name] * masks[name]
        elif masks.entry(name).count < len(grads[name]):
            where = masks.within(name, layers[name].indices())
            active[name] = torch.zeros_like(grads[name]).index_copy_(0, where, grads[name][where])
    return active


def _flow(
    loss: float,
    grads: Mapping[str, Tensor],
    active: Mapping[str, Tensor],
    sparse: Container[str],
) -> Flow:
    norms, full = _norms(active), _norms(grads)
    is_kernel = torch.tensor(
        [g.ndim > 1 or name in sparse for name, g in grads.items()], device=norms.device
    )
    return Flow(
        loss=loss,
        total=float(norms.norm()),
        kernels=float(norms[is_kernel].norm()),
        biases=float(norms[~is_kernel].norm()),
        dense=math.nan if any(name in sparse for name in grads) else float(full.norm()),
        effective=float(norms.mean()),
        per_layer=dict(zip(active, norms.tolist(), strict=True)),
    )


def _norms(grads: Mapping[str, Tensor]) -> Tensor:
    """L2 norm of each; squares of half precision would overflow."""
    wide = [g.float() if g.itemsize < 4 else g for g in grads.values()]
    norms = [norm.double() for norm in torch._foreach_norm(wide)]
    return torch.stack([norm.to(norms[0].device) for norm in norms])


@dataclass(frozen=True)
class Decrease:
    """What one gradient step really gains, and the first-order prediction of it.

    Attributes:
        actual: loss before minus loss after the step.
        predicted: lr · ‖∇L‖² over the active parameters.
    """

    actual: float
    predicted: float

    @property
    def ratio(self) -> float:
        """Actual over predicted: 1 in the limit of small steps."""
        return self.actual / self.predicted if self.predicted else float("nan")


@torch.no_grad()
def step_decrease(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    masks: Mapping[str, Tensor],
    lr: float,
    *,
    chunk: int | Chunks | None = None,
) -> Decrease:
    """Try one step of gradient descent on the probe and take it back.

    ‖∇L‖² is the first-order decrease of the loss; how much of it a real step
    keeps says whether a large gradient norm is worth anything. The weights are
    restored bit for bit. Batch and chunk are those of :func:`gradient_flow`.

    Raises:
        MaskError: if the masks do not fit the model.
        MeasureError: as for :func:`gradient_flow`.

    Example:
        >>> import sparseflow as sf
        >>> net, batch = nn.Linear(3, 1), (torch.ones(4, 3), torch.zeros(4, 1))
        >>> def loss(model, batch): return (model(batch[0]) - batch[1] - 1).square().mean()
        >>> gain = step_decrease(net, loss, batch, sf.full_masks(sf.maskable(net)), lr=1e-3)
        >>> 0.9 < gain.ratio < 1
        True
    """
    values = Masks(masks)
    values.check(model)
    parts = parts_of(model, loss, batch, chunk)
    before, grads = gradient(model, loss, parts)
    active = _active(model, grads, values)
    total = _flow(float(before), grads, active, sparse_weights(model)).total
    named = {n: p for n, p in named_weights(model).items() if n in grads}
    saved = {n: p.detach().clone() for n, p in named.items()}
    try:
        for name, parameter in named.items():
            parameter.sub_(active[name], alpha=lr)
        after = _mean(model, loss, parts)
    finally:
        for name, parameter in named.items():
            parameter.copy_(saved[name])
    return Decrease(float(before) - after, lr * total**2)


def mean_loss(model: nn.Module, loss: Loss, batch: Any, chunk: int | Chunks | None = None) -> float:
    """Mean loss over a batch, or an iterable of batches, in the mode that the model is in.

    Raises:
        MeasureError: if the loss is not a scalar tensor, or not the mean over
            chunks of the size asked for.
    """
    return _mean(model, loss, parts_of(model, loss, batch, chunk))


@torch.no_grad()
def _mean(model: nn.Module, loss: Loss, parts: Sequence[Part]) -> float:
    with undisturbed(model):
        values = [float(scalar(loss(model, batch))) * weight for batch, weight in parts]
    return sum(values) / sum(weight for _, weight in parts)
