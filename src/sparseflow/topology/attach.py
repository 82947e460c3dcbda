"""Attach masks and a method to any optimiser: the only file with hooks.

How it keeps its promise. A post-accumulate hook masks ``.grad`` as soon as a
backward pass has filled it, so clipping, accumulation and closures see the
sparse gradient; before a step that updates the masks it first adds the dense
gradient to a buffer. A step-post-hook then projects weights and optimiser
state, and runs the update. Post-accumulate hooks do not fire under
``torch.autograd.grad``: measurements stay clean.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.errors import MaskError, TopologyError
from sparseflow.core.schedules import Moment
from sparseflow.masks import Masks
from sparseflow.topology.methods import Method
from sparseflow.topology.propose import updated, with_zeros

_ATTACHED: weakref.WeakKeyDictionary[torch.optim.Optimizer, set[int]] = weakref.WeakKeyDictionary()
"""Parameters of each optimiser that a topology looks after."""

Around = Callable[["Topology"], AbstractContextManager[None]]


class Topology:
    """Masks, method and optimiser of one training; made by :func:`attach`.

    Attributes:
        masks: the current masks, a value that is replaced at every update.
        method: the method.
        step: optimiser steps seen.
        updates: mask updates made.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        masks: Masks,
        method: Method,
        seed: int = 0,
        around: Around | None = None,
    ) -> None:
        """See :func:`attach`."""
        _check(model, optimizer, masks, method)
        named = dict(model.named_parameters())
        self.method = method
        self.step = 0
        self.updates = 0
        self._seed = seed
        self._around = around or (lambda topology: nullcontext())
        self._optimizer = optimizer
        self._parameters = {name: named[name] for name in masks}
        self._initial_lr = _learning_rate(optimizer, "initial_lr")
        self._deferred = False
        self._dense_grads: dict[str, Tensor] = {}
        self._collected: dict[str, weakref.ref[Tensor]] = {}
        self._ids = {id(p) for p in self._parameters.values()}
        _ATTACHED.setdefault(optimizer, set()).update(self._ids)
        self._install(masks)
        self._handles = [
            p.register_post_accumulate_grad_hook(self._grad_hook(name))
            for name, p in self._parameters.items()
        ]
        self._handles.append(optimizer.register_step_post_hook(self._after_step))

    @property
    def moment(self) -> Moment:
        """Step and learning-rate ratio now."""
        rate = _learning_rate(self._optimizer, "lr")
        return Moment(self.step, rate / self._initial_lr if self._initial_lr else float("nan"))

    def detach(self) -> None:
        """Remove every hook; model and optimiser are then as if never attached."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _ATTACHED.get(self._optimizer, set()).difference_update(self._ids)

    def state_dict(self) -> dict[str, Any]:
        """Return masks and counters, for a checkpoint between two steps."""
        return {
            "step": self.step,
            "updates": self.updates,
            "deferred": self._deferred,
            "initial_lr": self._initial_lr,
            "masks": dict(self.masks),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; weights and optimiser state are projected.

        Raises:
            TopologyError: if a key is missing or the masks name other parameters.
            MaskError: if a mask has another shape.
        """
        missing = {"step", "updates", "deferred", "initial_lr", "masks"} - set(state)
        if missing:
            raise TopologyError(f"topology state lacks {', '.join(sorted(missing))}")
        masks = Masks(state["masks"])
        if set(masks) != set(self._parameters):
            odd = ", ".join(sorted(set(masks) ^ set(self._parameters)))
            raise TopologyError(f"topology state and masks differ in: {odd}")
        for name, mask in masks.items():
            if mask.shape != self._parameters[name].shape:
                own = tuple(self._parameters[name].shape)
                raise MaskError(f"mask {name!r} has shape {tuple(mask.shape)}, not {own}")
        self.step, self.updates = int(state["step"]), int(state["updates"])
        self._deferred, self._initial_lr = bool(state["deferred"]), float(state["initial_lr"])
        self._dense_grads = {}
        self._install(masks)

    def _install(self, masks: Masks) -> None:
        self.masks = Masks({n: m.to(self._parameters[n].device) for n, m in masks.items()})
        self._multipliers = {n: m.to(self._parameters[n].dtype) for n, m in self.masks.items()}
        self._inactive = {n: ~m for n, m in self.masks.items()}
        self._collecting = self._collects_next()
        self._project()

    def _collects_next(self) -> bool:
        due = self._deferred or self.method.due(self.step + 1)
        return self.method.growth_gradient == "batch" and due

    def _grad_hook(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            grad = parameter.grad
            if grad is None:
                return
            if grad.layout != torch.strided:
                raise TopologyError(f"{name} has a {grad.layout} gradient; masks need a dense one")
            if self._collecting:
                self._collect(name, grad)
            grad.masked_fill_(self._inactive[name], 0)

        return hook

    def _collect(self, name: str, grad: Tensor) -> None:
        """Add up the dense gradient; active entries of ``.grad`` are already sums.

        A ``.grad`` that is another tensor than at the last pass is not its
        continuation: that pass was thrown away (by ``zero_grad`` after a step
        that GradScaler skipped, say), and its gradient with it.
        """
        if name in self._dense_grads and self._collected[name]() is grad:
            self._dense_grads[name].masked_fill_(self.masks[name], 0).add_(grad)
        else:
            self._dense_grads[name] = grad.detach().clone()
            self._collected[name] = weakref.ref(grad)

    def _after_step(self, *_: object) -> None:
        self.step += 1
        self._project()
        if self._deferred or self.method.due(self.step):
            self._update()
        self._dense_grads = {}
        self._collecting = self._collects_next()

    @torch.no_grad()
    def _update(self) -> None:
        gradients = self._growth_gradients()
        self._deferred = gradients is not None and not all(
            bool(torch.isfinite(g).all()) for g in gradients.values()
        )
        if self._deferred:
            return
        moment = self.moment
        with self._around(self):
            self._install(
                updated(self.method, self._parameters, self.masks, gradients, moment, self._seed)
            )
            self.updates += 1
            for name, parameter in self._parameters.items():
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(self._inactive[name], 0)

    def _growth_gradients(self) -> Mapping[str, Tensor] | None:
        source = self.method.growth_gradient
        if source is None:
            return None
        found = self._dense_grads if source == "batch" else source()
        return with_zeros(found, self._parameters)

    @torch.no_grad()
    def _project(self) -> None:
        """Zero weights and optimiser state wherever a mask is off."""
        tensors: list[Tensor] = []
        multipliers: list[Tensor] = []
        for name, parameter in self._parameters.items():
            multiplier = self._multipliers[name]
            state = self._optimizer.state.get(parameter, {})
            for tensor in (parameter, *state.values()):
                if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                    tensors.append(tensor)
                    multipliers.append(multiplier.to(tensor.dtype))
        if tensors:
            torch._foreach_mul_(tensors, multipliers)


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    masks: Masks | Mapping[str, Tensor],
    method: Method,
    *,
    seed: int = 0,
    around: Around | None = None,
) -> Topology:
    """Keep a model sparse under any optimiser, and change its masks as a method says.

    From now on, after every ``optimizer.step()``: inactive weights, and every
    optimiser-state tensor of the weight's shape, are exactly zero; on the steps
    that the method names, masks have changed. Newly grown connections start at
    zero with clean state; one dropped and grown at once keeps both. Clean means
    zero, also where an optimiser's fresh state is another value (Rprop's step
    sizes, Adagrad's initial accumulator). Adafactor's factored state has no
    place per weight and stays as it is.

    The training loop does not change: accumulation, clipping, parameter groups,
    closures and ``GradScaler`` work as before. A non-finite growth gradient
    defers the update to the next step. ``method.due`` may be asked about one
    step more than once. Ranks of a data-parallel job are not kept in step here:
    growth from the training batch would follow each rank's own gradient.

    Args:
        model: the model whose parameters the masks name.
        optimizer: any first-order optimiser that holds these parameters.
        masks: from :func:`sparseflow.sparsify` or your own bool tensors.
        method: :class:`Static`, :class:`SET`, :class:`RigL`, ...
        seed: of random growth, stream ("update", step, parameter name).
        around: a context-manager factory entered around every mask update, for
            measurements just before and just after it.

    Returns:
        The :class:`Topology`; ``.masks`` are the current masks.

    Raises:
        TopologyError: for LBFGS, an object that is no method, or parameters
            that are frozen, attached already or not held by the optimiser.
        MaskError: if the masks do not fit the model.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Linear(10, 10)
        >>> masks = sf.sparsify(net, density=0.2, pattern="constant_fan_in")
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> topology = attach(net, optimizer, masks, sf.RigL(sf.every(1)))
        >>> net(torch.ones(4, 10)).square().mean().backward()
        >>> optimizer.step()
        >>> topology.updates, topology.masks.nnz, int(net.weight.count_nonzero()) <= 20
        (1, 20, True)
    """
    values = masks if isinstance(masks, Masks) else Masks(masks)
    return Topology(model, optimizer, values, method, seed, around)


def _check(
    model: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks, method: Method
) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TopologyError(
            "LBFGS keeps its history as flat vectors over all parameters and searches along "
            "dense directions: masks cannot hold. Use a first-order optimiser"
        )
    if isinstance(method, type) or not isinstance(method, Method):
        hint = ": make an instance of it" if isinstance(method, type) else ""
        raise TopologyError(f"{method!r} is no method (due, update, growth_gradient){hint}")
    masks.check(model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    missing = [name for name in masks if id(named[name]) not in held]
    if missing:
        raise TopologyError(f"the optimiser does not hold the masked {', '.join(missing)}")
    frozen = [name for name in masks if not named[name].requires_grad]
    if frozen:
        raise TopologyError(f"the masked {', '.join(frozen)} are frozen: leave them out")
    taken = [name for name in masks if id(named[name]) in _ATTACHED.get(optimizer, set())]
    if taken:
        raise TopologyError(f"{', '.join(taken)} are attached already: detach that topology first")


def _learning_rate(optimizer: torch.optim.Optimizer, key: str) -> float:
    group = optimizer.param_groups[0]
    return float(group.get(key, group["lr"]))
