"""Put the hidden units of one solution in the order of another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from sparseflow.core.errors import MeasureError
from sparseflow.core.optional import need
from sparseflow.core.random import generator
from sparseflow.masks import Masks
from sparseflow.measure.channels import Axis, Channels, channels
from sparseflow.measure.distance import distance
from sparseflow.measure.states import check_finite, check_same, fitted, real

Order = Int64[Tensor, "_"]

# A step counts as better only beyond rounding, or ties would turn for ever.
_MARGIN = 1e-12


@dataclass(frozen=True, eq=False)
class Alignment:
    """One solution with its hidden units in the order that suits another best.

    Attributes:
        state: b with its units permuted, dense; it computes the same function.
        permutations: unit i of the aligned state is unit ``permutation[i]`` of
            b; by group of units, named after the module that makes them.
        distance_before: L2 distance from a to b over the parameters.
        distance_after: the same to the aligned state; never larger.
        sweeps: passes over all groups in the descent that won.
        channels: which axes of which tensors each permutation acts on.
    """

    state: dict[str, Tensor]
    permutations: dict[str, Order]
    distance_before: float
    distance_after: float
    sweeps: int
    channels: Channels

    def apply(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Permute other tensors of the same names likewise.

        For b's masks, its other checkpoints or its optimiser's momentum. Masks
        come back as :class:`sparseflow.masks.Masks`, the rest as a dict.

        Raises:
            MeasureError: if a name is not the model's or a shape does not fit.
        """
        moved = _permute(tensors, self.channels, self.permutations)
        return Masks(moved) if isinstance(tensors, Masks) else moved


@torch.no_grad()
def align(
    model: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    seed: int = 0,
    starts: int = 8,
    max_sweeps: int = 100,
) -> Alignment:
    """Permute the hidden units of b so that its weights come as near to a's as they can.

    Weight matching (Ainsworth et al. 2023, Git Re-Basin, arXiv 2209.04836,
    algorithm 1): one group of units after another gets the permutation that
    minimises ‖a - P(b)‖ with the others held fixed, a linear assignment
    problem, until nothing changes. One hidden layer is solved exactly; with
    several the descent can stop early, so it starts from the order given, from
    a match layer by layer from the input, and from random permutations, visits
    the groups in random orders, and keeps the best. It is never worse than b
    as it is. The distance is over the parameters; batch-norm statistics follow.

    Args:
        model: the architecture of both; see :func:`channels` for what can be
            traced. A truly sparse one is traced in its dense form.
        a: the state that stays, of a dense or a truly sparse model.
        b: the state whose units are permuted.
        seed: of the random starts and orders.
        starts: descents in all, at least 1.
        max_sweeps: passes over all groups in one descent, at most.

    Raises:
        MeasureError: if a state does not fit the model or holds a parameter
            that is not finite, or its hidden units cannot be followed through
            an operation.
        SparseflowError: if SciPy is not installed.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> a = net.state_dict()
        >>> turn = torch.tensor([2, 0, 1])
        >>> b = {"0.weight": a["0.weight"][turn], "0.bias": a["0.bias"][turn],
        ...      "2.weight": a["2.weight"][:, turn], "2.bias": a["2.bias"]}
        >>> alignment = align(net, a, b)
        >>> alignment.distance_after, alignment.permutations["0"].tolist()
        (0.0, [1, 2, 0])
    """
    model, states = fitted(model, {"a": a, "b": b})
    a, b = states.values()
    check_same(states)
    if starts < 1 or max_sweeps < 1:
        raise MeasureError(f"starts={starts} and max_sweeps={max_sweeps} must be 1 or more")
    names = [name for name, _ in model.named_parameters()]
    check_finite(states, names)
    groups = channels(model)
    matching = _Matching(groups, {n: a[n] for n in names}, {n: b[n] for n in names})
    best, sweeps, similarity = matching.identity(), 0, matching.similarity(matching.identity())
    for start in range(starts):
        stream = generator(seed, "align", start)
        tried, used = matching.descend(matching.start(start, stream), stream, max_sweeps)
        value = matching.similarity(tried)
        if value > similarity + _MARGIN * matching.scale:
            best, sweeps, similarity = tried, used, value
    state = _permute(b, groups, best)
    before = distance(a, b, only=names).l2
    after = distance(a, state, only=names).l2
    if after > before:
        best, state, after = matching.identity(), _permute(b, groups, matching.identity()), before
    return Alignment(state, best, before, after, sweeps, groups)


class _Matching:
    """The sum of a · P(b) over all parameters, and how to raise it.

    As ‖a - P(b)‖² = ‖a‖² + ‖b‖² - 2 a · P(b), the largest is the nearest.
    """

    def __init__(self, groups: Channels, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        self._sizes = groups.sizes
        self._axes = {name: groups.axes[name] for name in a if groups.axes[name]}
        self._a = {name: real(a[name]).cpu() for name in self._axes}
        self._b = {name: real(b[name]).cpu() for name in self._axes}
        self._users = {
            group: [n for n, axes in self._axes.items() if any(x.group == group for x in axes)]
            for group in groups.sizes
        }
        norms = [(float(self._a[n].norm()), float(self._b[n].norm())) for n in self._axes]
        self.scale = sum((x * y for x, y in norms), 0.0)
        self._solve = need("scipy.optimize", extra="measure").linear_sum_assignment

    def identity(self) -> dict[str, Order]:
        return {group: torch.arange(size) for group, size in self._sizes.items()}

    def start(self, number: int, stream: torch.Generator) -> dict[str, Order]:
        """The order given first, then layer by layer, then random ones."""
        if number == 0:
            return self.identity()
        if number == 1:
            return self._from_the_input()
        return {g: torch.randperm(size, generator=stream) for g, size in self._sizes.items()}

    def similarity(self, orders: Mapping[str, Order], only: str | None = None) -> float:
        """Sum of a · P(b), over the tensors that mention one group or over all."""
        names = self._axes if only is None else self._users[only]
        return sum((float((self._a[n] * self._moved(n, orders)).sum()) for n in names), 0.0)

    def descend(
        self, orders: dict[str, Order], stream: torch.Generator, max_sweeps: int
    ) -> tuple[dict[str, Order], int]:
        """Improve one group after another until a whole sweep changes nothing."""
        groups, orders = list(self._sizes), dict(orders)
        for sweep in range(1, max_sweeps + 1):
            changed = False
            for i in torch.randperm(len(groups), generator=stream).tolist():
                tried = orders | {groups[i]: self._best(groups[i], orders)}
                # A group on both axes of one weight makes the problem quadratic: the
                # assignment is then a guess, and is kept only if it helps.
                gain = self.similarity(tried, groups[i]) - self.similarity(orders, groups[i])
                if gain > _MARGIN * self.scale:
                    orders, changed = tried, True
            if not changed:
                return orders, sweep
        return orders, max_sweeps

    def _from_the_input(self) -> dict[str, Order]:
        """Match each group by those of its weights whose other axes are matched already."""
        orders: dict[str, Order] = {}
        for group in self._sizes:
            orders[group] = self._best(group, orders)
        return orders

    def _best(self, group: str, orders: Mapping[str, Order]) -> Order:
        """Solve for one group, the others as in ``orders``; what is not there is not used."""
        gains = torch.zeros(self._sizes[group], self._sizes[group], dtype=torch.float64)
        for name in self._users[group]:
            for axis in self._axes[name]:
                rest = tuple(x for x in self._axes[name] if x != axis)
                if axis.group == group and all(x.group in orders for x in rest):
                    moved = _turn(self._b[name], rest, orders)
                    gains += _rows(self._a[name], axis) @ _rows(moved, axis).T
        _, columns = self._solve(gains.numpy(), maximize=True)
        return torch.as_tensor(columns, dtype=torch.long)

    def _moved(self, name: str, orders: Mapping[str, Order]) -> Tensor:
        return _turn(self._b[name], self._axes[name], orders)


def _rows(tensor: Tensor, axis: Axis) -> Tensor:
    """One row per unit."""
    return tensor.movedim(axis.dim, 0).reshape(tensor.shape[axis.dim] // axis.positions, -1)


def _turn(tensor: Tensor, axes: tuple[Axis, ...], orders: Mapping[str, Order]) -> Tensor:
    for axis in axes:
        order = orders[axis.group].to(tensor.device)
        within = torch.arange(axis.positions, device=tensor.device)
        index = (order[:, None] * axis.positions + within).flatten()
        tensor = tensor.index_select(axis.dim, index)
    return tensor


def _permute(
    tensors: Mapping[str, Tensor], groups: Channels, orders: Mapping[str, Order]
) -> dict[str, Tensor]:
    permuted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in groups.axes:
            raise MeasureError(f"{name!r} names no parameter or buffer of the aligned model")
        for axis in groups.axes[name]:
            wanted = groups.sizes[axis.group] * axis.positions
            if tensor.ndim <= axis.dim or tensor.shape[axis.dim] != wanted:
                raise MeasureError(
                    f"{name!r} has shape {tuple(tensor.shape)}; its axis {axis.dim} "
                    f"must have {wanted} entries"
                )
        moved = _turn(tensor.detach(), groups.axes[name], orders)
        permuted[name] = moved.clone() if not groups.axes[name] else moved
    return permuted
