"""What a method is: the base class, what it may know of its run, and the registry."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from jaxtyping import Int64
from torch import Tensor, nn

from sparseflow.core.errors import SpecError
from sparseflow.core.functional import Loss, RowGradient
from sparseflow.core.parameters import Layer
from sparseflow.core.registry import Registry
from sparseflow.core.values import USE, Value, registering
from sparseflow.topology.view import Connections, Layers

Source = Callable[[], Mapping[str, Tensor | RowGradient]]
"""Gives dense gradients by name; of a truly sparse layer by rows, so that it is never whole."""

GrowthGradient = Literal["batch", "probe"] | Source | None

M = TypeVar("M", bound="Method")

_COLOR = re.compile("#[0-9a-fA-F]{6}")


@dataclass(frozen=True, eq=False)
class Task:
    """What a method may know of the run that it serves in.

    Attributes:
        model: the network as it is trained.
        loss: ``loss(model, batch) -> scalar``, without weight decay.
        probe: a fixed batch of training examples.
        density: share of the maskable weights that is asked for.
        layers: the maskable layers.
        steps: length of the training.
        last_update: step after which masks do not change any more.
    """

    model: nn.Module
    loss: Loss
    probe: Any
    density: float
    layers: Mapping[str, Layer]
    steps: int
    last_update: int


class Method(Value):
    """Base of all methods.

    A method is a frozen dataclass: what it remembers between steps is kept for
    it, in ``layers.state`` and the ``state`` and ``dense`` of each layer.

    Attributes:
        gradients: steps whose dense gradient is asked for: those that update
            masks, or all. Truly sparse layers serve the former alone.

    Example:
        >>> import sparseflow as sf
        >>> @dataclass(frozen=True)
        ... class Halve(Method):
        ...     at: int = 100
        ...     def due(self, step):
        ...         return step == self.at
        ...     def update_layer(self, connections):
        ...         largest = connections.values.abs().topk(len(connections.indices) // 2).indices
        ...         return connections.indices[largest].sort().values
        >>> net = nn.Linear(4, 4)
        >>> masks = sf.full_masks(sf.maskable(net))
        >>> sf.propose(Halve(), net, masks, sf.Moment(100)).density
        0.5
    """

    gradients: ClassVar[Literal["updates", "all"]] = "updates"

    @property
    def growth_gradient(self) -> GrowthGradient:
        """Source of ``view.gradient``: the training batch, a probe, a function, or None."""
        return None

    def due(self, step: int) -> bool:
        """Say whether the masks change after this optimiser step (1 is the first)."""
        raise NotImplementedError

    def observe(self, layers: Layers) -> None:
        """Look at every step whose gradient was asked for, before any update.

        A step whose gradient is not finite is left out.
        """

    def update(self, layers: Layers) -> Mapping[str, Int64[Tensor, " k"]]:
        """Return the sorted flat positions of the new connections of every layer."""
        after = {}
        for name, connections in layers.items():
            after[name] = self.update_layer(connections)
            connections.release()  # sharded weights are gathered one at a time
        return after

    def update_layer(self, connections: Connections) -> Int64[Tensor, " k"]:
        """Return the sorted flat positions of one layer's new connections."""
        raise NotImplementedError

    def empties(self, name: str) -> bool:
        """Say whether a layer is meant to end without connections; else a warning names it."""
        return False

    def stored(self, layers: Layers) -> Mapping[str, Int64[Tensor, " k"]] | None:
        """Return positions at which weights live on though the forward pass leaves them out.

        Asked when attached and after every update. None: the mask of the forward
        pass is all there is. Such weights receive gradients and are updated; between
        steps the network itself holds exact zeros there.
        """
        del layers
        return None

    def check(self, steps: int) -> None:
        """Refuse a training of another length than the method can serve in.

        Raises:
            TopologyError: naming the field and what would be right.
        """

    def last_update(self, steps: int) -> int:
        """Step after which masks do not change any more, in a training of ``steps``."""
        return steps

    @property
    def changes(self) -> bool:
        """Say whether masks ever change."""
        return True

    @property
    def grows(self) -> bool:
        """Say whether an update may add connections."""
        return self.changes


METHODS: Registry[type[Method]] = Registry("method", USE)


def register_method(
    name: str,
    *,
    label: str = "",
    group: str = "Other",
    color: tuple[str, str] | None = None,
    recipes: bool = True,
    marks: tuple[str, ...] | None = None,
    mask: Any = None,
) -> Callable[[type[M]], type[M]]:
    """Make a method known by name: to recipes, to ``--set method=NAME`` and to reports.

    Args:
        name: such as ``mine``; every family then has the recipes ``mine``,
            ``mine-liu`` and ``mine+``.
        label: what reports call it; by default the class's name.
        group: methods of one group share a panel in pictures.
        color: in light and in dark pictures; by default one that is free.
        recipes: whether there are recipes of it.
        marks: suffixes of its recipes, which say their initialisation; by default all.
        mask: mask that they start from (such as ``{"kind": "erk", "density": 0.5}``);
            by default the one that ``rigl`` starts from.

    Raises:
        SpecError: if the name is taken, the class is not a method, or ``color`` or ``mask``
            could not be used.

    Example:
        >>> import sparseflow as sf
        >>> @sf.register_method("largest-first")
        ... @dataclass(frozen=True)
        ... class LargestFirst(sf.SET):
        ...     def grow_score(self, view):
        ...         return view.weight.abs()
        >>> sf.METHODS["largest-first"].__name__
        'LargestFirst'
    """
    if color is not None and not (len(color) == 2 and all(map(_COLOR.fullmatch, color))):
        raise SpecError(
            f"register_method({name!r}): color={color!r} should be two, in light and in dark "
            'pictures, such as ("#d55e00", "#ff8848")'
        )
    if mask is not None and not (isinstance(mask, Mapping) and isinstance(mask.get("kind"), str)):
        raise SpecError(
            f"register_method({name!r}): mask={mask!r} should name its kind, such as "
            '{"kind": "erk", "density": 0.5}'
        )

    def add(cls: type[M]) -> type[M]:
        facts = {"label": label or cls.__name__, "group": group, "color": color, "marks": marks}
        return registering(METHODS, name, **facts, recipes=recipes, mask=mask)(cls)

    return add
