"""Which axes of which weights hold the same hidden units, read off the model's graph.

Hidden units can be put in any other order without changing the function, if
every tensor that mentions them follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from sparseflow.core.errors import MeasureError
from sparseflow.core.operations import SUPPORTED, action, of_module, title


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor that holds the units of a group.

    Attributes:
        dim: which axis.
        group: key in :attr:`Channels.sizes`.
        positions: entries of the axis for each unit, side by side: more than 1
            for a dense layer on the flattened output of a convolution.
    """

    dim: int
    group: str
    positions: int = 1


@dataclass(frozen=True)
class Channels:
    """The groups of hidden units that can be put in any order.

    Attributes:
        sizes: units of each group, named after the first module that makes
            them, in the order of the forward pass.
        axes: the axes of each parameter and buffer by name; none for one that
            mentions no group.
    """

    sizes: dict[str, int]
    axes: dict[str, tuple[Axis, ...]]


def channels(model: nn.Module) -> Channels:
    """Trace a model and group the axes of its weights by hidden units.

    The network's inputs and outputs keep their order, and so do units that
    inputs are added to. What comes after the last layer (a softmax) may be
    anything.

    Raises:
        MeasureError: if the model cannot be traced, or has an operation through
            which units cannot be followed; it is named.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(36, 2))
        >>> groups = channels(net)
        >>> groups.sizes, groups.axes["2.weight"]
        ({'0': 4}, (Axis(dim=1, group='0', positions=9),))
    """
    if of_module(model).action in {"linear", "conv", "norm"}:
        return Channels({}, dict.fromkeys(model.state_dict(), ()))
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise MeasureError(
            f"{type(model).__name__} cannot be traced by torch.fx, which alignment needs: {error}"
        ) from error
    return _Walk(model, graph).result()


@dataclass(frozen=True)
class _Value:
    """What a node of the graph holds.

    ``number``: no tensor; ``fixed``: no units; ``map``: units along dimension 1,
    positions after it; ``flat``: such a map flattened; ``row``: units along the
    last dimension; ``lost``: units that could not be followed, which is an
    ``error`` only if another layer takes them.
    """

    kind: str
    group: int = -1
    error: MeasureError | None = None

    @property
    def moves(self) -> bool:
        return self.group >= 0


_FIXED, _NUMBER = _Value("fixed"), _Value("number")
_WITHOUT_WEIGHTS = frozenset({"keep", "pool", "flatten", "merge", "unknown"})


class _Walk:
    """One pass over the graph, joining groups where tensors meet."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self._model = model
        self._names: dict[int, list[str]] = {}
        for named in (model.named_parameters, model.named_buffers):
            for name, tensor in named(remove_duplicate=False):
                self._names.setdefault(id(tensor), []).append(name)
        self._parent: list[int] = []
        self._made: list[tuple[str, int]] = []
        self._pinned: set[int] = set()
        self._axes: dict[tuple[str, int], tuple[int, int]] = {}
        self._values: dict[fx.Node, _Value] = {}
        for node in graph.nodes:
            self._values[node] = self._visit(node)

    def result(self) -> Channels:
        pinned = {self._root(group) for group in self._pinned}
        roots = sorted({self._root(group) for group in range(len(self._parent))} - pinned)
        axes: dict[str, tuple[Axis, ...]] = {n: () for names in self._names.values() for n in names}
        for (name, dim), (group, positions) in sorted(self._axes.items()):
            root = self._root(group)
            if root not in pinned:
                axes[name] += (Axis(dim, self._made[root][0], positions),)
        return Channels(dict(self._made[root] for root in roots), axes)

    # ---- groups

    def _open(self, name: str, size: int) -> int:
        self._parent.append(len(self._parent))
        self._made.append((name, size))
        return len(self._parent) - 1

    def _root(self, group: int) -> int:
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def _size(self, group: int) -> int:
        return self._made[self._root(group)][1]

    def _join(self, node: fx.Node, first: int, second: int) -> None:
        one, two = sorted((self._root(first), self._root(second)))
        if self._size(one) != self._size(two):
            raise self._refusal(node, f"{self._size(one)} units meet {self._size(two)}")
        self._parent[two] = one

    def _attach(
        self, node: fx.Node, tensor: Tensor | None, dim: int, group: int, positions: int = 1
    ) -> None:
        """Say that an axis of a tensor holds the units of a group."""
        if tensor is None:
            return
        if id(tensor) not in self._names:
            raise self._refusal(node, "its weight is computed, not a parameter")
        for name in self._names[id(tensor)]:
            other, layout = self._axes.setdefault((name, dim), (group, positions))
            if layout != positions:
                raise self._refusal(node, f"{name!r} is used with two different layouts")
            self._join(node, other, group)

    def _refusal(self, node: fx.Node, why: str) -> MeasureError:
        what = title(node, self._module_of(node))
        return MeasureError(
            f"hidden units of {type(self._model).__name__} cannot be followed through {what} "
            f"(node {node.name!r}): {why}; {SUPPORTED}"
        )

    def _module_of(self, node: fx.Node) -> nn.Module | None:
        is_module = node.op == "call_module"
        return self._model.get_submodule(str(node.target)) if is_module else None

    # ---- nodes

    def _visit(self, node: fx.Node) -> _Value:
        inputs = [self._values[n] for n in node.all_input_nodes]
        if node.op in {"placeholder", "get_attr", "output"}:
            self._pinned |= {value.group for value in inputs if value.moves}
            return _FIXED
        module = self._module_of(node)
        what = action(node, module)
        tensors = [value for value in inputs if value.kind != "number"]
        arithmetic = getattr(node.target, "__module__", "") == "_operator"
        if what == "number" or (not tensors and arithmetic):
            return _NUMBER
        lost = next((value for value in tensors if value.kind == "lost"), None)
        moving = [value for value in tensors if value.moves]
        several = len(tensors) > 1 and what != "merge"
        if lost is not None or (moving and (what == "unknown" or several)):
            return self._lose(node, what, moving, lost)
        if what == "merge":
            return self._merge(node, tensors)
        if not moving and what not in {"linear", "conv"}:
            self._check_harmless(node, module, what)
            return _FIXED
        return self._pass(node, module, what, tensors[0])

    def _lose(self, node: fx.Node, what: str, moving: list[_Value], lost: _Value | None) -> _Value:
        """Give units up: they keep their order, and no layer may take them any more."""
        if lost is not None and lost.error is not None and what not in _WITHOUT_WEIGHTS:
            raise lost.error
        self._pinned |= {value.group for value in moving}
        error = self._refusal(node, "its effect on them is not known")
        return lost or _Value("lost", moving[0].group, error)

    def _pass(self, node: fx.Node, module: Any, what: str, value: _Value) -> _Value:
        """Follow units through an operation on one tensor."""
        positions_only = what in {"conv", "pool"} and value.kind in {"flat", "row"}
        if positions_only or (what == "linear" and value.kind == "map"):
            raise self._refusal(node, f"the units do not lie along the dimension of a {what}")
        if what in {"linear", "conv"}:
            return self._layer(node, module, what, value)
        if what == "norm":
            positions = self._positions(node, module.num_features, value)
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                self._attach(node, tensor, 0, value.group, positions)
        elif what == "slope":
            if module.num_parameters > 1:
                self._attach(node, module.weight, 0, value.group)
        elif what == "flatten" and value.kind == "map":
            return _Value("flat", value.group)
        return value

    def _layer(self, node: fx.Node, module: Any, what: str, value: _Value) -> _Value:
        if getattr(module, "groups", 1) != 1:
            raise self._refusal(node, f"it is a grouped convolution, groups={module.groups}")
        linear = what == "linear"
        if value.moves:
            features = module.in_features if linear else module.in_channels
            positions = self._positions(node, features, value)
            self._attach(node, module.weight, 1, value.group, positions)
        size = module.out_features if linear else module.out_channels
        group = self._open(str(node.target), size)
        self._attach(node, module.weight, 0, group)
        self._attach(node, module.bias, 0, group)
        return _Value("row" if linear else "map", group)

    def _positions(self, node: fx.Node, features: int, value: _Value) -> int:
        size = self._size(value.group)
        if features % size or (value.kind != "flat" and features != size):
            raise self._refusal(node, f"it takes {features} features and gets {size} units")
        return features // size

    def _merge(self, node: fx.Node, values: list[_Value]) -> _Value:
        moving = [value for value in values if value.moves]
        if not moving:
            return _FIXED
        if any(n.op == "get_attr" for n in node.all_input_nodes):
            raise self._refusal(node, "a parameter outside a layer takes part in it")
        if len({value.kind for value in moving}) > 1:
            raise self._refusal(node, "its operands hold units along different dimensions")
        for value in moving[1:]:
            self._join(node, moving[0].group, value.group)
        if len(moving) < len(values):
            self._pinned.add(moving[0].group)
        return moving[0]

    def _check_harmless(self, node: fx.Node, module: nn.Module | None, what: str) -> None:
        """Refuse an unknown operation with weights: it would make units unseen."""
        if what == "unknown":
            weights = module is not None and any(True for _ in module.parameters())
            if weights or any(n.op == "get_attr" for n in node.all_input_nodes):
                raise self._refusal(node, "it is not known which units its weights make")
