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
from itertools import accumulate, compress
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor
from torch.optim import Optimizer

from sparseflow.core.errors import TopologyError
from sparseflow.core.parallel import is_sharded, local
from sparseflow.core.select import find
from sparseflow.core.transfer import sent
from sparseflow.masks import Masks
from sparseflow.topology.bias import Group, Update
from sparseflow.topology.weights import Weight

SETTLING = 1000
"""Steps between two looks for connections whose age makes no difference any more."""

SMALL = 1 << 12
"""Weights up to this size are read with one call for all of them."""


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
        self._noted: list[_Young] = []

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
        self._gather()  # here, where a GPU is waited for anyway

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

    def _gather(self) -> None:
        if self.births and self._young is None:
            self._young = list(self._groups())

    def _before_step(self, *_: Any) -> None:
        self._gather()
        self._noted = self._young or []
        for young in self._noted:
            young.note()

    def _after_step(self, *_: Any) -> None:
        # Of a step that calls that of its base class the hooks run twice: nothing is left then.
        noted, self._noted = self._noted, []
        for young in noted:
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
        ages = np.array([steps, *(steps - birth for birth in births.tolist())]) + 1.0  # next time
        factors = np.stack(self._update.factors(ages.clip(min=1), group))
        own, each = factors[:, :1], factors[:, 1:]
        rounding = torch.finfo(_precise(weight.parameter.dtype)).eps / 4
        old = (abs(each - own) <= rounding * abs(own)).all(0)
        return births[torch.from_numpy(old).to(births.device)]

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
            names.sort(key=lambda name: _size(self._weights[name]))  # the small ones come first
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
        counted = torch.as_tensor(self._states()[0]["step"]).device
        self._births: Any = torch.cat(cohorts).to(counted, torch.float64)
        self._owners: Any = torch.cat(owners).long().to(counted)
        self._on_host = counted.type == "cpu"
        if self._on_host:
            self._births, self._owners = self._births.numpy(), self._owners.numpy()
        self._places, self._counts = places, [len(at) for at in places]
        self._sharded = any(is_sharded(weight.parameter) for weight in weights)
        sizes = [_size(weight) for weight in weights]
        self._small = sum(size <= SMALL for size in sizes)
        if self._small:
            starts = accumulate(sizes[: self._small - 1], initial=0)
            joined = zip(places[: self._small], starts, strict=True)
            self._joined = torch.cat([at + start for at, start in joined])

    @torch.no_grad()
    def note(self) -> None:
        """Keep the weights before a step."""
        (self._before,) = self._read([weight.parameter for weight in self._weights])

    @torch.no_grad()
    def write(self) -> None:
        """Write the weights after it; weights without a gradient were not part of it."""
        stepped = [weight.parameter.grad is not None for weight in self._weights]
        if not any(stepped):
            return
        update, states = self._update, self._states()
        group = self._optimizer.param_groups[self._index]
        moments = self._read(*([s[key] for s in states] for key in update.moments(group)))
        gradient = None
        if update.gradient:
            parameters = [weight.parameter for weight in self._weights]
            (gradient,) = self._read([p if p.grad is None else p.grad for p in parameters])
        factors = self._factors(states, group)
        # Set by GradScaler for the time of the step, where a fused optimiser itself skips it.
        skipped = getattr(self._optimizer, "found_inf", None)
        before = self._before if skipped is None else self._before.clone()
        after = update.stepped(before, moments, factors, gradient, group)
        if skipped is not None:
            after = torch.where(skipped > 0, self._before, after)
        dtype = self._weights[0].parameter.dtype
        after = (torch.view_as_complex(after) if dtype.is_complex else after).to(dtype)
        parts = after.split(self._counts)
        for i in compress(range(len(parts)), stepped):
            own = local(self._weights[i].parameter)
            flat = own.reshape(-1).index_copy_(0, self._places[i], parts[i])
            if not own.is_contiguous():  # else written in place
                own.copy_(flat.view(own.shape))

    def _states(self) -> list[Mapping[str, Any]]:
        return [self._optimizer.state[weight.parameter] for weight in self._weights]

    def _factors(self, states: Sequence[Mapping[str, Any]], group: Group) -> Sequence[Tensor]:
        """What depends on the age, for every connection."""
        counts = [state["step"] for state in states]
        steps = np.array([float(n) for n in counts]) if self._on_host else torch.stack(counts)
        # At least 1: an older state of the optimiser may have been loaded alone.
        ages = (steps[self._owners] - self._births).clip(min=1)
        by_cohort = self._update.factors(ages, group)
        factors = (
            torch.from_numpy(np.stack(by_cohort))
            if self._on_host
            else torch.stack(tuple(by_cohort))
        )
        factors = sent(factors.to(self._before.dtype), self._before.device)
        factors = factors.index_select(1, self._members)
        return (factors if self._before.ndim == 1 else factors.unsqueeze(-1)).unbind()

    def _read(self, *kinds: Sequence[Tensor]) -> Sequence[Tensor]:
        """Numbers of each kind, one a connection, in float32 at least; pairs of them if complex.

        Args:
            kinds: for each a tensor of every weight.
        """
        if self._sharded:
            kinds = tuple([local(tensor) for tensor in tensors] for tensors in kinds)
        here = [[tensor.reshape(-1) for tensor in tensors] for tensors in kinds]
        parts = []
        if self._small:
            # One call for all: for such weights it is calls that cost, not bytes.
            joined = torch.cat([tensor for tensors in here for tensor in tensors[: self._small]])
            parts.append(joined.view(len(kinds), -1).index_select(1, self._joined))
        for i in range(self._small, len(self._weights)):
            each = [tensors[i].index_select(0, self._places[i]) for tensors in here]
            parts.append(torch.stack(each))
        numbers = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers
        return numbers.to(_precise(numbers.dtype)).unbind()


def _size(weight: Weight) -> int:
    return local(weight.parameter.detach()).numel()


def _precise(dtype: torch.dtype) -> torch.dtype:
    """The real type in which the weights of a type are worked out."""
    return torch.promote_types(dtype.to_real(), torch.float32)
