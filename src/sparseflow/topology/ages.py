"""Ages of connections: what is grown takes its steps as under a fresh optimiser.

An optimiser that counts steps counts them from the beginning of training. For
every connection grown later, the step of its birth is kept; after each step of the
optimiser its weight is written again, from the weight before the step and the
moments after it, as its own age has it (:mod:`sparseflow.topology.bias`). Nothing
is done before something is grown, nor for connections so old that their age
makes no difference to rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Int32, Int64, Shaped
from torch import Tensor
from torch.optim import Optimizer

from sparseflow.core.errors import TopologyError
from sparseflow.core.parallel import local
from sparseflow.core.select import find
from sparseflow.masks import Masks
from sparseflow.topology.bias import Group, Update
from sparseflow.topology.weights import Weight

SETTLING = 1000
"""Steps between two looks for connections whose age makes no difference any more."""

SMALL = 1 << 16
"""Weights up to this size are read and written together: for them calls cost, not bytes."""


class Ages:
    """Since when each connection is there, and the steps of those that are young.

    Attributes:
        births: by weight, the optimiser's count of steps at the birth of each connection,
            in order; 0 for those as old as the optimiser. A weight without young
            connections has none.
    """

    def __init__(
        self, weights: Mapping[str, Weight], optimizer: Optimizer, update: Update | None
    ) -> None:
        """Look after weights that have no young connection so far.

        Args:
            weights: by name.
            optimizer: takes their steps.
            update: how it makes a step, by age; None where age does not matter.
        """
        self._weights, self._optimizer, self._update = weights, optimizer, update
        self.births: dict[str, Tensor] = {}
        self._positions: dict[str, Tensor] = {}
        self._young: list[_Young] | None = None

    def move(self, before: Masks, after: Masks) -> None:
        """Follow the connections at an update; those that are new are born now.

        Args:
            before: where weights and their state were.
            after: where they are.
        """
        if self._update is None:
            return
        for name in self._weights:
            positions = after.indices(name)
            where, stays = find(positions, before.indices(name))
            births = torch.full_like(positions, self._steps(name), dtype=torch.int32)
            old = self.births.get(name)
            births[stays] = 0 if old is None else old[where[stays]]
            self._keep(name, births, positions)
        self.settle()

    def settle(self) -> None:
        """Let go of connections whose age makes no difference any more."""
        for name, births in tuple(self.births.items()):
            cohorts = births.unique()
            old = self._settled(self._weights[name], cohorts[cohorts > 0])
            if len(old):
                young = births.masked_fill(torch.isin(births, old), 0)
                self._keep(name, young, self._positions[name])

    def settle_at(self, step: int) -> None:
        """Let go of the old now and then, by a count of steps that is saved.

        A training that was interrupted then does so when the uninterrupted one does,
        and ends bit for bit like it.
        """
        if step % SETTLING == 0:
            self.settle()

    def hooks_before(self) -> Iterator[Any]:
        """Note weights before a step, until the handle is removed."""
        if self._update is not None:
            yield self._optimizer.register_step_pre_hook(self._before_step)

    def hooks_after(self) -> Iterator[Any]:
        """Write them after it, until the handle is removed."""
        if self._update is not None:
            yield self._optimizer.register_step_post_hook(self._after_step)

    def _before_step(self, *_: Any) -> None:
        if self.births and self._young is None:
            self._young = list(self._groups())
        for young in self._young or ():
            young.note()

    def _after_step(self, *_: Any) -> None:
        for young in self._young or ():
            young.write()

    def load(self, births: Mapping[str, Tensor], places: Masks) -> None:
        """Restore :attr:`births`.

        Args:
            births: by weight.
            places: where weights and their state are.

        Raises:
            TopologyError: if there is not one birth a connection.
        """
        self.births, self._positions, self._young = {}, {}, None
        for name, born in births.items():
            positions = places.indices(name)
            if born.shape != positions.shape:
                raise TopologyError(
                    f"topology state has {len(born):,} births for the {len(positions):,} "
                    f"connections of {name}"
                )
            if self._update is not None:
                self._keep(name, born.to(positions.device), positions)

    def _keep(self, name: str, births: Tensor, positions: Tensor) -> None:
        self._young = None
        if bool(births.any()):
            self.births[name], self._positions[name] = births, positions
        else:
            self.births.pop(name, None)
            self._positions.pop(name, None)

    def _steps(self, name: str) -> int:
        """Steps of a weight that the optimiser has counted."""
        return int(self._optimizer.state.get(self._weights[name].parameter, {}).get("step", 0))

    def _settled(self, weight: Weight, births: Tensor) -> Tensor:
        """Births whose factors are those of the optimiser's own count, to rounding."""
        assert self._update is not None
        group = self._optimizer.param_groups[self._group(weight)]
        steps = self._steps(weight.name)
        ages = torch.cat([births.new_tensor([steps]), steps - births]) + 1  # at the next step
        factors = torch.stack(tuple(self._update.factors(ages.clamp_(min=1).double(), group)))
        own, each = factors[:, :1], factors[:, 1:]
        rounding = torch.finfo(_precise(weight.parameter.dtype)).eps / 4
        return births[((each - own).abs() <= rounding * own.abs()).all(0)]

    def _group(self, weight: Weight) -> int:
        for number, group in enumerate(self._optimizer.param_groups):
            if any(parameter is weight.parameter for parameter in group["params"]):
                return number
        raise TopologyError(f"the optimiser does not hold {weight.name} any more")

    def _groups(self) -> Iterator[_Young]:
        """Young connections, those together that take their steps alike."""
        assert self._update is not None
        alike: dict[tuple[int, torch.dtype, torch.device], list[str]] = defaultdict(list)
        for name in self.births:
            parameter = self._weights[name].parameter
            alike[self._group(self._weights[name]), parameter.dtype, parameter.device].append(name)
        for (group, *_), names in alike.items():
            names.sort(key=lambda name: _size(self._weights[name]))  # small ones are one piece
            yield _Young(
                self._optimizer,
                group,
                self._update,
                [self._weights[name] for name in names],
                [self.births[name] for name in names],
                [self._positions[name] for name in names],
            )


class _Young:
    """Young connections of weights of one parameter group, dtype and device, as one vector.

    Connections of one weight and one birth are a cohort: what depends on the age is
    worked out once for each.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        group: int,
        update: Update,
        weights: Sequence[Weight],
        births: Sequence[Int32[Tensor, " _"]],
        positions: Sequence[Int64[Tensor, " _"]],
    ) -> None:
        self._optimizer, self._index, self._update = optimizer, group, update
        self._weights = weights
        cohorts: list[Tensor] = []  # births
        members: list[Tensor] = []  # cohort of each connection
        places: list[Tensor] = []  # of each connection in its weight
        for weight, born, at in zip(weights, births, positions, strict=True):
            young = born.nonzero().squeeze(1)
            here, which = weight.places(at[young])
            values, cohort = born[young][which].unique(return_inverse=True)
            members.append(cohort + sum(map(len, cohorts)))
            cohorts.append(values)
            places.append(here)
        self._members = torch.cat(members)
        owners = [torch.full_like(born, i) for i, born in enumerate(cohorts)]
        counted = torch.as_tensor(self._states()[0]["step"]).device  # often the host
        self._births = torch.cat(cohorts).to(counted, torch.float64)
        self._owners = torch.cat(owners).long().to(counted)
        self._pieces = list(_pieces([_size(weight) for weight in weights], places))

    def note(self) -> None:
        """Keep the weights before a step."""
        self._before = self._read([weight.parameter.detach() for weight in self._weights])

    @torch.no_grad()
    def write(self) -> None:
        """Write the weights after it; weights without a gradient were not part of it."""
        stepped = [weight.parameter.grad is not None for weight in self._weights]
        if not any(stepped):
            return
        update, states = self._update, self._states()
        group = self._optimizer.param_groups[self._index]
        moments = [self._read([s[key] for s in states]) for key in update.moments(group)]
        gradient = None
        if update.gradient:
            parameters = [weight.parameter for weight in self._weights]
            gradient = self._read([p if p.grad is None else p.grad for p in parameters])
        factors = self._factors(states, group)
        # Set by GradScaler for the time of the step, where a fused optimiser itself skips it.
        skipped = getattr(self._optimizer, "found_inf", None)
        before = self._before if skipped is None else self._before.clone()
        after = update.stepped(before, moments, factors, gradient, group)
        if skipped is not None:
            after = torch.where(skipped > 0, self._before, after)
        dtype = self._weights[0].parameter.dtype
        after = (torch.view_as_complex(after) if dtype.is_complex else after).to(dtype)
        own = [local(weight.parameter.detach()) for weight in self._weights]
        parts = after.split([len(piece.places) for piece in self._pieces])
        for piece, values in zip(self._pieces, parts, strict=True):
            piece.write(own, values, stepped)

    def _states(self) -> list[Mapping[str, Any]]:
        return [self._optimizer.state[weight.parameter] for weight in self._weights]

    def _factors(self, states: Sequence[Mapping[str, Any]], group: Group) -> Sequence[Tensor]:
        """What depends on the age, for every connection."""
        steps = torch.stack([torch.as_tensor(state["step"]) for state in states])
        # At least 1: an older state of the optimiser may have been loaded alone.
        ages = (steps[self._owners] - self._births).clamp_(min=1)
        factors = torch.stack(tuple(self._update.factors(ages, group)))
        factors = factors.to(self._before.device, self._before.dtype, non_blocking=True)
        factors = factors.index_select(1, self._members)
        return (factors if self._before.ndim == 1 else factors.unsqueeze(-1)).unbind()

    def _read(self, tensors: Sequence[Tensor]) -> Tensor:
        """One number for each connection, in float32 at least; a pair of them if complex."""
        here = [local(tensor) for tensor in tensors]
        parts = [piece.read(here) for piece in self._pieces]
        vector = parts[0] if len(parts) == 1 else torch.cat(parts)
        vector = torch.view_as_real(vector) if vector.is_complex() else vector
        return vector.to(_precise(vector.dtype))


class _Piece:
    """Weights that are read and written together: one large one, or all the small ones."""

    def __init__(
        self, which: Sequence[int], sizes: Sequence[int], places: Sequence[Int64[Tensor, " _"]]
    ) -> None:
        """Take the places of the connections in each weight.

        Args:
            which: the weights, among those of a :class:`_Young`.
            sizes: of these weights.
            places: flat, in these weights.
        """
        self._which = which
        starts = accumulate(sizes, initial=0)
        self.places = torch.cat([at + start for at, start in zip(places, starts, strict=False)])

    def read(self, tensors: Sequence[Tensor]) -> Shaped[Tensor, " n"]:
        """The connections' numbers in tensors of the weights' shapes."""
        return self._flat(tensors).index_select(0, self.places)

    def write(self, tensors: Sequence[Tensor], values: Tensor, stepped: Sequence[bool]) -> None:
        """Write the connections' numbers into those tensors that took a step."""
        mine = [i for i in self._which if stepped[i]]
        if not mine:
            return
        flat = self._flat(tensors).index_copy_(0, self.places, values)
        if len(self._which) > 1 or not tensors[mine[0]].is_contiguous():  # else written in place
            parts = flat.split([tensors[i].numel() for i in self._which])
            after = {i: p.view(tensors[i].shape) for i, p in zip(self._which, parts, strict=True)}
            torch._foreach_copy_([tensors[i] for i in mine], [after[i] for i in mine])

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        flat = [tensors[i].reshape(-1) for i in self._which]
        return flat[0] if len(flat) == 1 else torch.cat(flat)


def _pieces(sizes: Sequence[int], places: Sequence[Tensor]) -> Iterator[_Piece]:
    small = [i for i, size in enumerate(sizes) if size <= SMALL]
    large = [[i] for i, size in enumerate(sizes) if size > SMALL]
    for which in [small, *large] if small else large:
        yield _Piece(which, [sizes[i] for i in which], [places[i] for i in which])


def _size(weight: Weight) -> int:
    return local(weight.parameter.detach()).numel()


def _precise(dtype: torch.dtype) -> torch.dtype:
    """The real type in which the weights of a type are worked out."""
    return torch.promote_types(dtype.to_real(), torch.float32)
