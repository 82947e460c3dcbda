"""Attach masks and a method to any optimiser: the only hooks on parameters and optimisers.

How it keeps its promise. A post-accumulate hook masks ``.grad`` as soon as a
backward pass has filled it, so clipping, accumulation and closures see the
sparse gradient; before a step that updates the masks it first adds the dense
gradient to a buffer. A step-post-hook then projects weights and optimiser
state, and runs the update. Post-accumulate hooks do not fire under
``torch.autograd.grad``: measurements stay clean. A truly sparse layer has
nothing to mask or to project; before an update its passes are recorded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from sparseflow.core.errors import MaskError, TopologyError
from sparseflow.core.functional import RowGradient
from sparseflow.core.parallel import Ranks
from sparseflow.core.schedules import Moment
from sparseflow.core.wrappers import bare, bare_optimizer
from sparseflow.masks import Masks
from sparseflow.masks.entries import Entry, Places
from sparseflow.topology.check import (
    ATTACHED,
    bare_names,
    check,
    check_agreement,
    check_copy,
    check_sizes,
)
from sparseflow.topology.memory import Memory
from sparseflow.topology.method import Method
from sparseflow.topology.propose import look, positions, updated
from sparseflow.topology.view import Layers, NotFiniteError
from sparseflow.topology.weights import (
    MaskedWeight,
    Slots,
    SparseValues,
    Weight,
    held,
    weights_under,
)

Around = Callable[["Topology"], AbstractContextManager[None]]


class Topology:
    """Masks, method and optimiser of one training; made by :func:`attach`.

    Attributes:
        masks: the masks of the forward pass, a value that is replaced at every update.
        method: the method.
        step: optimiser steps taken.
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
        process_group: ProcessGroup | None = None,
    ) -> None:
        """See :func:`attach`."""
        self._ranks = Ranks.of(model, process_group)
        model, masks = bare(model), bare_names(model, masks)
        optimizer = bare_optimizer(optimizer)
        check(model, optimizer, masks, method)
        self.method = method
        self.step: int = 0
        self.updates: int = 0
        self._seed = seed
        self._around = around or (lambda topology: nullcontext())
        self._optimizer = optimizer
        self._weights = weights_under(model, masks)
        self._initial_lr = _learning_rate(optimizer, "initial_lr")
        self._deferred = False
        self._memory = Memory()
        self._stored: Masks | None = None
        self._ids = {id(w.parameter) for w in self._weights.values()}
        self.masks = self._agreed(held(self._weights, masks))
        self._install(self.masks, self._stored_by_method(self._look(None)))
        self._begin()

    def _begin(self) -> None:
        """Look after the weights from now on."""
        ATTACHED.setdefault(self._optimizer, set()).update(self._ids)
        self._collect()
        self._handles = list(self._hooks())

    def __deepcopy__(self, memo: dict[int, Any]) -> Topology:
        """Copy a topology together with model and optimiser, whose copies it looks after.

        Raises:
            TopologyError: if the optimiser is not copied before it, or the method grows
                from a function of the model.
        """
        check_copy(self._optimizer, self.method, memo)
        twin = memo[id(self)] = object.__new__(type(self))
        shared = {"method", "masks", "_stored", "_ranks", "_around"}
        for name in vars(self).keys() - {"_handles", "_ids"}:
            value = getattr(self, name)
            setattr(twin, name, value if name in shared else copy.deepcopy(value, memo))
        twin._ids = {id(w.parameter) for w in twin._weights.values()}
        twin._handles = []
        if self._handles:
            twin._begin()
        return twin

    def __reduce__(self) -> Any:
        """Refuse to be pickled: nothing would tie a topology to the model that uses it."""
        raise TopologyError(
            "a topology cannot be pickled: save topology.state_dict() with those of model and "
            "optimiser; then attach(model, optimizer, masks, method) and load_state_dict"
        )

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
        for weight in self._weights.values():
            weight.collect(False)  # what is set aside ends here: the network is its forward pass
        ATTACHED.get(self._optimizer, set()).difference_update(self._ids)

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
        return {
            "step": self.step,
            "updates": self.updates,
            "deferred": self._deferred,
            "initial_lr": self._initial_lr,
            "masks": {n: _tensor(self.masks.entry(n)) for n in self.masks},
            "memory": memory,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; weights and optimiser state are projected.

        Raises:
            TopologyError: if a key is missing or the masks name other parameters.
            MaskError: if a mask has another shape, or connections that a truly
                sparse layer lacks: load the state of model and optimiser first.
        """
        missing = {"step", "updates", "deferred", "initial_lr", "masks", "memory"} - set(state)
        if missing:
            raise TopologyError(f"topology state lacks {', '.join(sorted(missing))}")
        given = state["masks"]
        if set(given) != set(self._weights):
            odd = ", ".join(sorted(set(given) ^ set(self._weights)))
            raise TopologyError(f"topology state and masks differ in: {odd}")
        masks = self._agreed(self._masks(given))
        self.step, self.updates = int(state["step"]), int(state["updates"])
        self._deferred, self._initial_lr = bool(state["deferred"]), float(state["initial_lr"])
        self._remember(masks, dict(state["memory"]))
        self._collect()

    @torch.no_grad()
    def _remember(self, masks: Masks, memory: dict[str, Tensor]) -> None:
        """Install masks with what the method remembers, and values that were set aside."""
        aside: dict[str, Tensor] = {}
        stored: dict[str, Tensor] = {}
        for name, weight in self._weights.items():
            for part, tensors in (("aside", aside), ("stored", stored)):
                if f"{part}/{name}" in memory:
                    tensors[name] = memory.pop(f"{part}/{name}").to(weight.parameter.device)
        self._memory = Memory.of(memory)
        for weight in self._weights.values():
            self._memory.to(weight.name, weight.parameter.device)
            if isinstance(weight, MaskedWeight):
                weight.aside = aside.get(weight.name)
        self._install(masks, positions(self._weights, stored) if stored else None)

    def _masks(self, given: Mapping[str, Tensor]) -> Masks:
        """Read the masks of a state, held either way."""
        masks = Masks({n: _entry(given, n, w.shape) for n, w in self._weights.items()})
        for name, weight in self._weights.items():
            if masks.shape(name) != weight.shape:
                own = tuple(weight.shape)
                raise MaskError(f"mask {name!r} has shape {tuple(masks.shape(name))}, not {own}")
            if isinstance(weight, SparseValues):
                masks.within(name, weight.indices())
        return held(self._weights, masks)

    def _agreed(self, masks: Masks) -> Masks:
        """Return masks that may be installed: they are the same on every rank."""
        check_agreement(masks, self._ranks, self._optimizer.param_groups[0]["params"][0].device)
        check_sizes(self._weights, masks, self._ranks)
        return masks

    def _hooks(self) -> Iterator[Any]:
        yield self._optimizer.register_step_pre_hook(self._before_step)
        for weight in self._weights.values():
            yield weight.parameter.register_hook(weight.arriving)
            yield weight.parameter.register_post_accumulate_grad_hook(weight.accumulated)
        yield self._optimizer.register_step_post_hook(self._after_step)

    def _state(self, weight: Weight) -> Slots:
        return self._optimizer.state.get(weight.parameter, {})

    @torch.no_grad()
    def _install(self, masks: Masks, stored: Masks | None) -> None:
        self.masks, self._stored = masks, stored
        for name, weight in self._weights.items():
            kept = None if stored is None else stored.entry(name)
            weight.bring_back()
            weight.install(masks.entry(name), self._state(weight), kept)
        self._project()
        self._set_aside()

    def _set_aside(self) -> None:
        """Leave in the model what its forward pass uses, and nothing else."""
        for weight in self._weights.values():
            weight.set_aside()

    def _wants_gradient(self) -> bool:
        """Say whether the coming step is one whose dense gradient the method asks for."""
        due = self._deferred or self.method.due(self.step + 1)
        return due or self.method.gradients == "all"

    def _collect(self) -> None:
        """Collect dense gradients from now on if the next step needs them."""
        on = self.method.growth_gradient == "batch" and self._wants_gradient()
        for weight in self._weights.values():
            weight.collect(on)

    def _before_step(self, _: object, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._stored is None:
            return
        # The arguments are those of the unbound step: the optimiser itself comes first.
        if any(each is not None for each in (*arguments[1:], named.get("closure"))):
            raise TopologyError(
                f"{type(self.method).__name__} keeps weights beyond the mask of the forward pass, "
                "and a closure would run the network with them: call step() without one"
            )
        for weight in self._weights.values():
            weight.bring_back()

    def _after_step(self, *_: object) -> None:
        wanted = self._wants_gradient()
        self.step += 1
        self._project()
        if wanted:
            self._look_and_update()
        self._set_aside()
        self._collect()

    @torch.no_grad()
    def _look_and_update(self) -> None:
        layers = self._look(self._growth_gradients())
        try:
            if type(self.method).observe is not Method.observe:
                for connections in layers.values():  # seen whole or not at all
                    connections.check_gradient()
                self.method.observe(layers)
                self._memory.check(layers)
            if self._deferred or self.method.due(self.step):
                self._update(layers)
        except NotFiniteError:
            self._deferred = self._deferred or self.method.due(self.step)

    def _update(self, layers: Layers) -> None:
        masks = self._agreed(updated(self.method, self._weights, layers))
        self._memory.check(layers)
        stored = self._stored_by_method(layers, masks)
        self._deferred = False
        self._set_aside()
        with self._around(self):
            for name, connections in layers.items():
                self._memory.move(name, connections.indices, masks.indices(name))
            self._install(masks, stored)
            self.updates += 1

    def _look(self, gradients: Mapping[str, Tensor | RowGradient] | None) -> Layers:
        return look(
            self._weights,
            self.masks,
            gradients,
            self.moment,
            self._seed,
            self._ranks,
            self._memory,
        )

    def _stored_by_method(self, layers: Layers, masks: Masks | None = None) -> Masks | None:
        """Where weights live on: what the method says, and the masks themselves."""
        found = self.method.stored(layers)
        if found is None:
            return None
        masks = self.masks if masks is None else masks
        if odd := sorted(set(found) ^ set(masks)):
            raise TopologyError(
                f"{type(self.method).__name__}.stored must return all layers and no others: "
                f"{', '.join(odd)}"
            )
        return positions(
            self._weights, {n: torch.cat([found[n], masks.indices(n)]).unique() for n in masks}
        )

    def _growth_gradients(self) -> Mapping[str, Tensor | RowGradient] | None:
        source = self.method.growth_gradient
        if source is None or callable(source):
            return None if source is None else source()
        found = {name: weight.collected() for name, weight in self._weights.items()}
        return {name: gradient for name, gradient in found.items() if gradient is not None}

    @torch.no_grad()
    def _project(self) -> None:
        """Zero weights and optimiser state wherever a mask is off."""
        pairs = [p for w in self._weights.values() for p in w.products(self._state(w))]
        if pairs:
            tensors, multipliers = zip(*pairs, strict=True)
            torch._foreach_mul_(tensors, multipliers)


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    masks: Masks | Mapping[str, Tensor],
    method: Method,
    *,
    seed: int = 0,
    around: Around | None = None,
    process_group: ProcessGroup | None = None,
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
    step more than once.

    In a data-parallel job every rank attaches alike, and all have the same masks
    at every step: growth follows the mean gradient over ranks, and a digest of
    the masks is compared here, at each update and when a state is loaded. Names
    are those of the bare model, also where it is inside a
    ``DistributedDataParallel``. Parameters sharded by ``fully_shard`` keep
    their shards; masks are whole on every rank.

    Args:
        model: the model whose parameters the masks name.
        optimizer: any first-order optimiser that holds these parameters.
        masks: from :func:`sparseflow.sparsify` or your own bool tensors.
        method: :class:`Static`, :class:`SET`, :class:`RigL`, ...
        seed: of random growth, stream ("update", step, parameter name).
        around: a context-manager factory entered around every mask update, for
            measurements just before and just after it.
        process_group: the ranks that train this model together; by default those
            of its ``DistributedDataParallel``, else all that there are. Ranks that
            train models of their own give a group of one.

    Returns:
        The :class:`Topology`; ``.masks`` are the current masks.

    Raises:
        TopologyError: for LBFGS, an object that is not a method, or parameters
            that are frozen, attached already or not held by the optimiser; on all
            ranks if their masks differ, now or at an update.
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
    return Topology(model, optimizer, Masks(masks), method, seed, around, process_group)


def _learning_rate(optimizer: torch.optim.Optimizer, key: str) -> float:
    group = optimizer.param_groups[0]
    return float(group.get(key, group["lr"]))


def _tensor(entry: Entry) -> Tensor:
    return entry.positions if isinstance(entry, Places) else entry.mask()


def _entry(masks: Mapping[str, Tensor], name: str, shape: torch.Size) -> Entry | Tensor:
    if isinstance(masks, Masks):
        return masks.entry(name)
    if masks[name].dtype == torch.int64:
        return Masks.from_indices({name: (masks[name], shape)}).entry(name)
    return masks[name]
