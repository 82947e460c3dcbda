"""What all callbacks share: a topology from the first step of training to the last."""

from __future__ import annotations

import warnings
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
from sparseflow.core.wrappers import bare
from sparseflow.masks import Masks, churn
from sparseflow.masks.state import under
from sparseflow.measure import gradient_flow
from sparseflow.sparse.layers import SparseLayer
from sparseflow.topology import Method, Topology, attach

FORMAT = "sparseflow-topology-1"

Start = Masks | Mapping[str, Tensor] | Callable[[nn.Module], Masks]
"""Masks, or a function of the model that makes them: ``partial(sf.sparsify, density=0.1)``."""


@dataclass(frozen=True, eq=False)
class Saved:
    """The state of a topology, as a checkpoint holds it.

    Attributes:
        masks: the masks.
        memory: what the method remembers.
        progress: everything else in ``topology.state_dict()``.
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
        """Return tensors and JSON-like metadata; masks are encoded near their entropy."""
        tensors, meta = self.masks.packed()
        tensors |= {f"memory/{name}": tensor for name, tensor in self.memory.items()}
        return tensors, meta | {"format": FORMAT, "progress": dict(self.progress)}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], where: str) -> Saved:
        """Return what :meth:`packed` returned the parts of.

        Raises:
            StoreError: naming ``where``, if it holds something else or is damaged.
        """
        if meta.get("format") != FORMAT:
            raise StoreError(f"{where} holds no topology of sparseflow (no {FORMAT!r} mark)")
        memory = under(tensors, "memory/")
        masks = {name: t for name, t in tensors.items() if not name.startswith("memory/")}
        return cls(Masks.unpacked(masks, meta, where), memory, meta["progress"])


class Session:
    """Attaches a topology to a trainer's optimiser, and measures it."""

    def __init__(
        self, start: Start, method: Method, *, seed: int, probe: Any, loss: Loss | None
    ) -> None:
        """Attach nothing yet.

        Raises:
            TopologyError: if there is a probe but no loss.
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
        """State of the current training, or of the last one; None before the first."""
        return self._ended if self._topology is None else Saved.of(self._topology)

    @property
    def masks(self) -> Masks | None:
        """Masks of the current training, or of the last one; None before the first."""
        if self._topology is not None:
            return self._topology.masks
        return None if self._ended is None else self._ended.masks

    def begin(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        saved: Saved | None = None,
    ) -> None:
        """Attach: to the saved masks, else to those of this model's last training, or new ones.

        Raises:
            TopologyError: as :func:`sparseflow.attach`; also if several optimisers share
                the masked weights.
            MaskError: if the masks do not fit the model.
            StoreError: if the model has nonzero weights where the saved masks are off.
        """
        self.end()
        if saved is not None:
            _check_zeros(model, saved.masks)
            masks = saved.masks
        elif self.masks is not None and bare(model) is self._model:
            masks = self.masks
        else:
            masks = self._start(model) if callable(self._start) else Masks(self._start)
        optimizer = _holding(model, optimizers, masks)
        topology = attach(model, optimizer, masks, self._method, seed=self._seed)
        if saved is not None:
            state = {**saved.progress, "masks": saved.masks, "memory": saved.memory}
            topology.load_state_dict(state)
        self._model, self._topology, self._logged = bare(model), topology, topology.masks

    def end(self, masks: Masks | None = None) -> None:
        """Detach, and remember the state of the last step, or that state with these masks."""
        if self._topology is not None:
            self._topology.detach()
            self._ended, self._topology = Saved.of(self._topology), None
            if masks is not None:
                self._ended = replace(self._ended, masks=masks)

    def hold(self) -> None:
        """Set final weights that the masks leave out to zero; averages of weights have some.

        Warns:
            UserWarning: with their number.

        Raises:
            KernelError: if values of different positions were averaged in a copy.
        """
        if self._ended is None:
            return
        for layer in sparse_weights(self._model).values():
            if isinstance(layer, SparseLayer):
                layer.check_copies()
        masks, named = self._ended.masks, named_weights(self._model)
        before = {name: int(whole(named[name]).count_nonzero()) for name in masks}
        masks.apply(self._model)
        lost = sum(n - int(whole(named[name]).count_nonzero()) for name, n in before.items())
        if lost:
            warnings.warn(
                f"{lost:,} weights outside of the final masks were not zero when training ended, "
                "as in an average over changing masks: they are now",
                stacklevel=2,
            )

    def metrics(self) -> dict[str, float]:
        """Measure the training, under names that start with ``sparse/``.

        ``sparsity``; ``active``, the number of active weights; ``updates`` of the masks so
        far; ``churn``, the share of connections lost since the last call; with a probe
        also ``flow``, ``flow_kernels``, ``flow_biases`` and ``probe_loss``.

        Raises:
            TopologyError: if no training is in progress.
        """
        if self._topology is None:
            raise TopologyError(
                "no training is in progress: a topology is attached when one begins"
            )
        masks, last = self._topology.masks, self._logged
        self._logged = masks
        values = {
            "sparsity": 1 - masks.density,
            "active": masks.nnz,
            "updates": self._topology.updates,
            "churn": churn(last, masks),
        }
        if self._probe is not None and self._loss is not None:
            device = next(self._model.parameters()).device
            probe = pytree.tree_map_only(Tensor, lambda t: t.to(device), self._probe)
            flow = gradient_flow(self._model, self._loss, probe, masks)
            values |= {
                "flow": flow.total,
                "flow_kernels": flow.kernels,
                "flow_biases": flow.biases,
                "probe_loss": flow.loss,
            }
        return {f"sparse/{name}": float(value) for name, value in values.items()}


def _holding(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], masks: Masks
) -> torch.optim.Optimizer:
    """Return the optimiser that holds the masked weights."""
    masks.check(model)
    named = named_weights(model)
    wanted = {id(named[name]) for name in masks}
    for optimizer in optimizers:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if wanted <= held or len(optimizers) == 1:
            return optimizer
    raise TopologyError(
        f"none of the {len(optimizers)} optimisers holds all masked weights, and a topology needs "
        "one: mask only the weights of one optimiser"
    )


@torch.no_grad()
def _check_zeros(model: nn.Module, masks: Masks) -> None:
    """Refuse masks other than those with which the loaded weights were trained."""
    masks.check(model)
    named, layers = named_weights(model), sparse_weights(model)
    for name in (n for n in masks if n not in layers):
        weight = whole(named[name])
        active = weight.reshape(-1)[masks.indices(name).to(weight.device)]
        if lost := int(weight.count_nonzero() - active.count_nonzero()):
            raise StoreError(
                f"{name} has {lost:,} nonzero weights where the saved masks are off: "
                "weights and topology come from different checkpoints"
            )
