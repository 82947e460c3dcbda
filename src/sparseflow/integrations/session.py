"""What the callbacks of all trainers share: masks from a training's first step to its last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparseflow.core.errors import StoreError, TopologyError
from sparseflow.core.functional import Loss
from sparseflow.core.parallel import whole
from sparseflow.core.parameters import named_weights, sparse_weights
from sparseflow.masks import Masks, churn
from sparseflow.masks.state import under
from sparseflow.measure import gradient_flow
from sparseflow.topology import Method, Topology, attach

FORMAT = "sparseflow-topology-1"

Start = Masks | Mapping[str, Tensor] | Callable[[nn.Module], Masks]
"""Masks, or what makes them of the model, such as ``partial(sf.sparsify, density=0.1)``."""


@dataclass(frozen=True, eq=False)
class Saved:
    """A topology between two steps, as a checkpoint holds it.

    Attributes:
        masks: the masks.
        memory: what the method remembers.
        progress: everything else of ``topology.state_dict()``.
    """

    masks: Masks
    memory: Mapping[str, Tensor]
    progress: Mapping[str, Any]

    @classmethod
    def of(cls, topology: Topology) -> Saved:
        """Take the state of a topology."""
        progress = topology.state_dict()
        del progress["masks"]
        return cls(topology.masks, progress.pop("memory"), progress)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-like metadata; the masks take about as many bits as they hold."""
        tensors, meta = self.masks.packed()
        tensors |= {f"memory/{name}": tensor for name, tensor in self.memory.items()}
        return tensors, meta | {"format": FORMAT, "progress": dict(self.progress)}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], where: str) -> Saved:
        """Undo :meth:`packed`.

        Raises:
            StoreError: if something else was stored ``where`` it says, or it is damaged.
        """
        if meta.get("format") != FORMAT:
            raise StoreError(f"{where} holds no topology of sparseflow (no {FORMAT!r} mark)")
        memory = under(tensors, "memory/")
        masks = {name: t for name, t in tensors.items() if not name.startswith("memory/")}
        return cls(Masks.unpacked(masks, meta, where), memory, meta["progress"])


class Session:
    """Attaches a topology to a trainer's optimiser, and says how it stands."""

    def __init__(
        self, start: Start, method: Method, *, seed: int, probe: Any, loss: Loss | None
    ) -> None:
        """Wait for a training to begin.

        Raises:
            TopologyError: if there is a probe and no loss.
        """
        if probe is not None and loss is None:
            raise TopologyError("a probe needs a loss: loss(model, batch) -> scalar")
        self._start, self._method, self._seed = start, method, seed
        self._probe, self._loss = probe, loss
        self._model: nn.Module
        self._logged: Masks
        self._topology: Topology | None = None
        self._ended: Saved | None = None

    @property
    def saved(self) -> Saved | None:
        """State of the training under way, or of the last one; None before the first."""
        return self._ended if self._topology is None else Saved.of(self._topology)

    @property
    def masks(self) -> Masks | None:
        """Its masks."""
        if self._topology is not None:
            return self._topology.masks
        return None if self._ended is None else self._ended.masks

    def begin(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        saved: Saved | None = None,
    ) -> None:
        """Attach: to saved masks, or those of the training before, or new ones.

        Raises:
            TopologyError: as :func:`sparseflow.attach`, or if the masked weights
                are in several optimisers.
            MaskError: if the masks do not fit the model.
            StoreError: if the model has weights that the saved masks would set to zero.
        """
        self.end()
        if saved is not None:
            _check_zeros(model, saved.masks)
            masks = saved.masks
        elif self.masks is not None:
            masks = self.masks
        else:
            masks = self._start(model) if callable(self._start) else Masks(self._start)
        optimizer = _holding(model, optimizers, masks)
        topology = attach(model, optimizer, masks, self._method, seed=self._seed)
        if saved is not None:
            state = {**saved.progress, "masks": saved.masks, "memory": saved.memory}
            topology.load_state_dict(state)
        self._model, self._topology, self._logged = model, topology, topology.masks

    def end(self, masks: Masks | None = None) -> None:
        """Detach, and keep the state of the last step, or with these masks."""
        if self._topology is not None:
            self._topology.detach()
            self._ended, self._topology = Saved.of(self._topology), None
            if masks is not None:
                self._ended = replace(self._ended, masks=masks)

    def metrics(self) -> dict[str, float]:
        """Say how the training stands, under names that start with ``sparse/``.

        ``sparsity`` and ``active`` weights; ``updates`` of the masks so far and
        ``churn``, the share of connections lost, since this was last asked for; with a
        probe, ``flow``, ``flow_kernels``, ``flow_biases`` and ``probe_loss``.

        Raises:
            TopologyError: if no training is under way.
        """
        if self._topology is None:
            raise TopologyError("no training is under way: a topology is attached when one begins")
        masks, last = self._topology.masks, self._logged
        self._logged = masks
        found = {
            "sparsity": 1 - masks.density,
            "active": masks.nnz,
            "updates": self._topology.updates,
            "churn": churn(last, masks),
        }
        if self._probe is not None and self._loss is not None:
            device = next(self._model.parameters()).device
            probe = pytree.tree_map_only(Tensor, lambda t: t.to(device), self._probe)
            flow = gradient_flow(self._model, self._loss, probe, masks)
            found |= {
                "flow": flow.total,
                "flow_kernels": flow.kernels,
                "flow_biases": flow.biases,
                "probe_loss": flow.loss,
            }
        return {f"sparse/{name}": float(value) for name, value in found.items()}


def _holding(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], masks: Masks
) -> torch.optim.Optimizer:
    """Return the optimiser of the masked weights."""
    masks.check(model)
    named = named_weights(model)
    wanted = {id(named[name]) for name in masks}
    for optimizer in optimizers:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if wanted <= held or len(optimizers) == 1:
            return optimizer
    raise TopologyError(
        f"none of the {len(optimizers)} optimisers holds all masked weights, and a topology has "
        "one: take masks of the weights of one of them"
    )


@torch.no_grad()
def _check_zeros(model: nn.Module, masks: Masks) -> None:
    """Refuse masks that are not those the loaded weights were trained under."""
    masks.check(model)
    named, layers = named_weights(model), sparse_weights(model)
    for name in (n for n in masks if n not in layers):
        weight = whole(named[name])
        kept = weight.reshape(-1)[masks.indices(name).to(weight.device)]
        if lost := int(weight.count_nonzero() - kept.count_nonzero()):
            raise StoreError(
                f"{name} has {lost:,} weights that are not zero where the saved masks are off: "
                "weights and topology are of different checkpoints"
            )
