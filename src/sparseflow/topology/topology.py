"""Masks, method and optimiser of one training: what happens around each step.

How it keeps its promise. A post-accumulate hook masks ``.grad`` as soon as a backward pass has
filled it, so clipping, accumulation and closures see the sparse gradient. Before a step that
updates the masks the dense one is collected (``passes.py``) and compared with the ``.grad`` that
is read. Around a step, whichever way it is taken (``steps.py``), weights and optimiser state are
projected and the update is run; what is loaded is masked at once (``loading.py``). Such hooks do
not fire under ``torch.autograd.grad``: measurements stay clean.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from sparseflow.core.errors import TopologyError
from sparseflow.core.parallel import Ranks
from sparseflow.core.schedules import Moment
from sparseflow.core.wrappers import bare, bare_optimizer
from sparseflow.masks import Masks
from sparseflow.masks.entries import as_tensor
from sparseflow.topology.ages import Ages
from sparseflow.topology.check import (
    bare_names,
    check,
    check_agreement,
    check_closure,
    check_copy,
    check_memory,
    check_sizes,
)
from sparseflow.topology.growth import Gradients, Growth
from sparseflow.topology.loading import Loads, Place
from sparseflow.topology.memory import Memory, restored
from sparseflow.topology.method import Method
from sparseflow.topology.propose import look, positions, stored_by, updated
from sparseflow.topology.slots import Slots
from sparseflow.topology.steps import ATTACHED, Rates, Steps
from sparseflow.topology.view import Layers, NotFiniteError
from sparseflow.topology.weights import (
    MaskedWeight,
    held,
    pass_hooks,
    read_masks,
    weights_under,
)

_STATE = {"step", "updates", "deferred", "initial_lr", "masks", "memory"}

Around = Callable[["Topology"], AbstractContextManager[None]]


class Topology:
    """Masks, method and optimiser of one training; made by :func:`attach`.

    Attributes:
        masks: the masks of the forward pass, a value that is replaced at every update.
        method: the method.
        step: optimiser steps taken.
        updates: mask updates made.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> topology = sf.attach(net, optimizer, sf.sparsify(net, 0.5), sf.Static())
        >>> topology.masks.density, topology.step
        (0.5, 0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        masks: Masks,
        method: Method,
        seed: int = 0,
        around: Around | None = None,
        process_group: ProcessGroup | None = None,
        fresh_steps: bool = True,
    ) -> None:
        """See :func:`attach`."""
        self._ranks = Ranks.of(model, process_group)
        model, masks = bare(model), bare_names(model, masks)
        optimizer = bare_optimizer(optimizer)
        check(model, optimizer, masks, method)
        self.method, self._model = method, model
        self.step: int = 0
        self.updates: int = 0
        self._seed, self._fresh_steps = seed, fresh_steps
        self._around = around or (lambda topology: nullcontext())
        self._optimizer = optimizer
        self._device = optimizer.param_groups[0]["params"][0].device
        self._weights = weights_under(model, masks, self._ranks)
        self._parameters = {name: weight.parameter for name, weight in self._weights.items()}
        self._steps = Steps(optimizer, self._before_step, self._read, self._after_step)
        self._slots = Slots(self._steps.optimizers, self._weights)
        self._ages = Ages(self._weights, *self._slots.served(method, fresh_steps=fresh_steps))
        self._rates = Rates(optimizer, self._parameters)
        self._places = [Place(model, weight) for weight in self._weights.values()]
        self._loads = Loads(self._weights, self._places, self._steps)
        self._growth = Growth(method, self._weights, self._ranks, self._device)
        self._memory = Memory()
        self._stored: Masks | None = None
        self.masks = self._agreed(held(self._weights, masks))
        self._install(
            self.masks, self._stored_by_method(self._look(None, self._weights), self.masks)
        )
        ATTACHED.add(self._parameters.values(), self._steps)
        self._growth.collect(1)
        self._handles = list(self._hooks())

    def __deepcopy__(self, memo: dict[int, Any]) -> Topology:
        """Copy a topology together with model and optimiser, whose copies it looks after.

        Raises:
            TopologyError: if the optimiser is not copied before it, the model holds it,
                or the method grows from a function of the model.
        """
        optimizer = self._steps.optimizers[0]
        check_copy(optimizer, self._model, self.method, memo)
        parts = copy.deepcopy(self._model, memo), memo[id(optimizer)], self.masks, self.method
        twin = Topology(
            *parts, self._seed, self._around, self._ranks.group, fresh_steps=self._fresh_steps
        )
        memo[id(self)] = twin
        twin.load_state_dict(self.state_dict())
        if not self._handles:
            twin.detach()
        return twin

    def __reduce__(self) -> Any:
        """Refuse to be pickled: nothing would tie a topology to the model that uses it."""
        raise TopologyError(
            "a topology cannot be pickled: save topology.state_dict() with those of model and "
            "optimiser; then attach(model, optimizer, masks, method) and load_state_dict"
        )

    @property
    def moment(self) -> Moment:
        """Step and learning-rate ratio now, that of the first masked weight's group."""
        return next(iter(self._rates.moments(self.step).values()))

    def detach(self) -> None:
        """Remove every hook; model and optimiser are then as if never attached."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for weight in self._weights.values():
            weight.passes.collect(False)  # what is set aside ends: the network is its forward pass
        self._loads.forget()
        ATTACHED.remove(self._parameters.values())

    def state_dict(self) -> dict[str, Any]:
        """Return masks and counters, for a checkpoint between two steps.

        Masks of truly sparse layers are sorted flat positions, int64. ``memory`` is
        what the method remembers, by name.
        """
        memory = self._memory.tensors()
        for name, weight in self._weights.items():
            if isinstance(weight, MaskedWeight) and weight.aside is not None:
                assert self._stored is not None
                memory[f"aside/{name}"] = weight.aside
                memory[f"stored/{name}"] = self._stored.indices(name)
        memory |= {f"born/{name}": births for name, births in self._ages.births.items()}
        return {
            "step": self.step,
            "updates": self.updates,
            "deferred": self._growth.deferred,
            "initial_lr": dict(self._rates.initial),
            "masks": {n: as_tensor(self.masks.entry(n)) for n in self.masks},
            "memory": memory,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; weights and optimiser state are projected.

        Load those of model and optimiser first: they are masked as they are loaded, and
        what these masks name comes back.

        Raises:
            TopologyError: if a key is missing, the masks name other parameters, or what the
                method remembers has another shape.
            MaskError: if a mask has another shape, or connections that a truly
                sparse layer lacks: load the state of model and optimiser first.
        """
        if missing := _STATE - set(state):
            raise TopologyError(f"topology state lacks {', '.join(sorted(missing))}")
        if odd := sorted(set(state["masks"]) ^ set(self._weights)):
            raise TopologyError(f"topology state and masks differ in: {', '.join(odd)}")
        masks = self._agreed(read_masks(self._weights, state["masks"]))
        memory, aside, stored, born = restored(state["memory"], self._parameters)
        memory.check(self._look(masks=masks, memory=memory))
        check_memory(memory, self._ranks, self._device)
        self._rates.restore(state["initial_lr"])
        self.step, self.updates = int(state["step"]), int(state["updates"])
        self._growth.deferred = bool(state["deferred"])
        self._memory = memory
        self._loads.bring_back()
        for name, weight in self._weights.items():
            if isinstance(weight, MaskedWeight):
                weight.aside = aside.get(name)
        self._install(masks, positions(self._weights, stored) if stored else None)
        self._ages.load(born, self._lasting)
        self._growth.collect(self.step + 1)

    def _agreed(self, masks: Masks) -> Masks:
        """Return masks that may be installed: they are the same on every rank."""
        check_agreement(masks, self._ranks, self._device)
        check_sizes(self._weights, masks, self._ranks)
        return masks

    def _hooks(self) -> Iterator[Any]:
        for weight in self._weights.values():
            yield from pass_hooks(weight, self._refuse_capture)
        # Young connections are written within the step: between what comes before and after it.
        yield from self._ages.hooks_after()
        yield from self._steps.hooks()
        yield from self._ages.hooks_before()
        yield from self._loads.hooks()

    @property
    def _lasting(self) -> Masks:
        """Where weights and their state last beyond a step."""
        return self.masks if self._stored is None else self._stored

    @torch.no_grad()
    def _install(self, masks: Masks, stored: Masks | None) -> None:
        self.masks, self._stored = masks, stored
        for name, weight in self._weights.items():
            kept = None if stored is None else stored.entry(name)
            weight.bring_back()
            weight.install(masks.entry(name), self._steps.states(weight.parameter), kept)
        self._project()
        self._set_aside()

    def _set_aside(self) -> None:
        for weight in self._weights.values():
            weight.set_aside()

    def _before_step(self, closure: bool) -> None:
        for weight in self._weights.values():
            self._refuse_capture(weight.parameter)
        for place in self._places:
            place.check()
        self._loads.check(self.masks)
        self._growth.forget()
        if self._stored is not None:
            check_closure(self.method, closure)
            for weight in self._weights.values():
                weight.bring_back()

    def _read(self) -> None:
        self._growth.read(self.step + 1, lambda: self._steps.unit)

    def _refuse_capture(self, parameter: Tensor) -> None:
        """Refuse what a CUDA graph would replay: these hooks run at its capture alone."""
        if parameter.is_cuda and self.method.changes and torch.cuda.is_current_stream_capturing():
            raise TopologyError(
                f"{type(self.method).__name__} changes masks, and a captured CUDA graph replays "
                "those of its capture: capture forward and backward alone, with "
                "torch.cuda.make_graphed_callables, or attach Static()"
            )

    def _after_step(self, taken: bool) -> None:
        if taken:
            wanted = self._growth.wanted(self.step + 1)
            self.step += 1
            self._slots.check()
            self._ages.settle_at(self.step)
            self._project()
            if wanted:
                self._look_and_update()
        self._set_aside()
        self._growth.collect(self.step + 1)

    @torch.no_grad()
    def _look_and_update(self) -> None:
        names, gradients = self._growth.part()
        if not names:  # nothing was trained: nothing changes
            return
        layers, before = self._look(gradients, names), self._memory
        due = self._growth.deferred or self.method.due(self.step)
        try:
            if type(self.method).observe is not Method.observe:
                for connections in layers.values():  # seen whole or not at all
                    connections.check_gradient()
                self.method.observe(layers)
                self._memory.check(layers)
            if due:
                before = self._memory.copy()
                self._update(layers)
        except NotFiniteError:
            self._growth.deferred, self._memory = due, before

    def _update(self, layers: Layers) -> None:
        masks = self._agreed(updated(self.method, self._weights, layers, self.masks))
        self._memory.check(layers)
        stored = self._stored_by_method(layers, masks)
        self._growth.deferred = False
        self._set_aside()
        with self._around(self):
            for name, connections in layers.items():
                self._memory.move(name, connections.indices, masks.indices(name))
            check_memory(self._memory, self._ranks, self._device)
            before = self._lasting
            self._install(masks, stored)
            self._ages.move(before, self._lasting)
            self.updates += 1

    def _look(
        self,
        gradients: Gradients | None = None,
        names: Iterable[str] | None = None,
        masks: Masks | None = None,
        memory: Memory | None = None,
    ) -> Layers:
        return look(
            {name: self._weights[name] for name in names or self._weights},
            self.masks if masks is None else masks,
            gradients,
            self._rates.moments(self.step),
            self._seed,
            self._ranks,
            self._memory if memory is None else memory,
        )

    def _stored_by_method(self, layers: Layers, masks: Masks) -> Masks | None:
        stored = stored_by(self.method, self._weights, layers, masks, self._stored)
        check_agreement(stored or masks, self._ranks, self._device)
        return stored

    @torch.no_grad()
    def _project(self) -> None:
        """Zero weights and optimiser state wherever a mask is off."""
        pairs = [
            p for w in self._weights.values() for p in w.products(self._steps.states(w.parameter))
        ]
        if pairs:
            tensors, multipliers = zip(*pairs, strict=True)
            torch._foreach_mul_(tensors, multipliers)
