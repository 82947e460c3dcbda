"""The methods: frozen values that say when and how masks change.

A method of your own subclasses the nearest one and overrides a score::

    @sf.register_method("mine")
    @dataclass(frozen=True)
    class Mine(sf.RigL):
        noise: float = 0.5

        def grow_score(self, view): ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparseflow.core.errors import TopologyError
from sparseflow.core.functional import Loss, RowGradient, dense_gradient, split
from sparseflow.core.parameters import Layer
from sparseflow.core.registry import Registry
from sparseflow.core.schedules import (
    Every,
    Fraction,
    Moment,
    When,
    constant,
    cubic,
    every,
    scaled_steps,
)
from sparseflow.core.values import USE, Value, registering
from sparseflow.core.wrappers import bare
from sparseflow.masks.allocation import allocate, check_density
from sparseflow.topology.update import pruned, regrown
from sparseflow.topology.view import Connections, Layers, View

Source = Callable[[], Mapping[str, Tensor | RowGradient]]
"""Gives dense gradients by name; of a truly sparse layer by rows, so that it is never whole."""

GrowthGradient = Literal["batch", "probe"] | Source | None

MARKS = ("", "-liu", "+")
"""Initialisations that a method's recipes come with: masked dense, Liu et al.'s, the paper's."""

M = TypeVar("M", bound="Method")


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


METHODS: Registry[type[Method]] = Registry("method", USE)


def register_method(
    name: str,
    *,
    label: str = "",
    color: tuple[str, str] | None = None,
    recipes: bool = True,
    marks: tuple[str, ...] = MARKS,
    mask: Any = None,
) -> Callable[[type[M]], type[M]]:
    """Make a method known by name: to recipes, to ``--set method=NAME`` and to reports.

    Args:
        name: such as ``mine``; every family then has the recipes ``mine``,
            ``mine-liu`` and ``mine+``.
        label: what reports call it; by default the class's name.
        color: in light and in dark pictures; by default one that is free.
        recipes: whether there are recipes of it.
        marks: initialisations that its recipes come with.
        mask: mask that they start from (such as ``{"kind": "erk", "density": 0.5}``);
            by default the one that ``rigl`` starts from.

    Raises:
        SpecError: if the name is taken, or the class is no method.

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

    def add(cls: type[M]) -> type[M]:
        facts = {"label": label or cls.__name__, "color": color, "recipes": recipes}
        return registering(METHODS, name, **facts, marks=marks, mask=mask)(cls)

    return add


@register_method("static", recipes=False)
@dataclass(frozen=True)
class Static(Method):
    """Masks never change. With full masks this is dense training."""

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def update_layer(self, connections: Connections) -> Int64[Tensor, " k"]:
        """Return the connections as they are."""
        return connections.indices

    @property
    def changes(self) -> bool:
        """They do not."""
        return False


@register_method("set", color=("#009e73", "#35c99b"))
@dataclass(frozen=True)
class SET(Method):
    """Sparse evolutionary training: drop the smallest weights, grow at random.

    Mocanu et al. 2018; as in Evci et al. 2022. Each layer drops
    ⌊fraction · active⌋ connections and grows as many.

    Attributes:
        when: steps at which masks change, see :func:`sparseflow.every`.
        drop: the drop fraction, see :func:`sparseflow.constant`,
            :func:`sparseflow.cosine`, :func:`sparseflow.lr_proportional`.
    """

    when: When = every(100)
    drop: Fraction = constant(0.3)

    def due(self, step: int) -> bool:
        """Ask the schedule."""
        return self.when(step)

    def drop_score(self, view: View) -> Float[Tensor, "*w"]:
        """Score connections, of which all are active: the lowest are dropped."""
        return view.weight.abs()

    def grow_score(self, view: View) -> Float[Tensor, "*w"]:
        """Score a block of places: the highest inactive ones are grown."""
        scores = torch.rand(view.mask.shape, generator=view.generator)
        return scores.to(view.mask.device)

    def dropped(self, moment: Moment, active: int) -> int:
        """Number of connections to drop out of those that are active: ⌊fraction · active⌋.

        Raises:
            TopologyError: if the schedule gives no fraction.
        """
        fraction = self.drop(moment)
        if not 0 <= fraction <= 1:
            raise TopologyError(f"drop fraction {fraction} at step {moment.step} is not in [0, 1]")
        return math.floor(fraction * active)

    def update_layer(self, connections: Connections) -> Int64[Tensor, " k"]:
        """Drop and grow as many connections of one layer."""
        count = self.dropped(connections.moment, len(connections.indices))
        return self.regrown(connections, count, count)

    def regrown(self, connections: Connections, drop: int, grow: int) -> Int64[Tensor, " k"]:
        """Drop and grow given numbers of connections of one layer, by the scores."""
        active = connections.active
        drop_score = _fitting("drop_score", self.drop_score(active), active)
        scores = (_fitting("grow_score", self.grow_score(v), v) for v in connections.blocks())
        return regrown(connections.indices, drop_score, scores, drop, grow)

    def last_update(self, steps: int) -> int:
        """Where the schedule ends, if it does."""
        stop = self.when.stop if isinstance(self.when, Every) else None
        return steps if stop is None else stop

    def bound(self: M, task: Task) -> M:
        """Let the schedules know where masks stop changing."""
        return super().bound(replace(task, last_update=self.last_update(task.steps)))

    def check(self, steps: int) -> None:
        """Refuse a schedule that lies outside of the training."""
        when = self.when
        if not isinstance(when, Every):
            return
        if when.stop is not None and when.stop > steps:
            raise TopologyError(f"method.when.stop={when.stop} is later than train.steps={steps}")
        if when.start >= (steps if when.stop is None else when.stop) and steps:
            raise TopologyError(f"method.when.start={when.start} leaves no step for an update")


@register_method("rigl", color=("#d55e00", "#ff8848"))
@dataclass(frozen=True)
class RigL(SET):
    """The rigged lottery: drop the smallest weights, grow the largest gradients.

    Evci et al. 2020, algorithm 1.

    Attributes:
        when: steps at which masks change.
        drop: the drop fraction.
        grow_from: ``"batch"`` takes the dense gradient of the training batch of
            the same step (all micro-batches of it); ``"probe"``, in a run, that
            of a fixed batch; or a function that returns dense gradients by name,
            see :func:`sparseflow.probe_gradient`.
    """

    grow_from: Literal["batch", "probe"] | Source = "batch"

    @property
    def growth_gradient(self) -> GrowthGradient:
        """Where the dense gradient comes from."""
        return self.grow_from

    def grow_score(self, view: View) -> Float[Tensor, "*w"]:
        """Magnitude of the dense gradient."""
        return view.gradient.abs()

    def bound(self: M, task: Task) -> M:
        """Take the run's probe, if growth is from one."""
        method = super().bound(task)
        if method.growth_gradient != "probe":
            return method
        source = probe_gradient(task.model, task.loss, task.probe)
        return replace(method, grow_from=source)  # type: ignore[type-var]


@register_method("rigl-inverted", label="RigL inverted", color=("#7b4fb5", "#b394ea"), marks=("+",))
@dataclass(frozen=True)
class RigLInverted(RigL):
    """RigL that grows the *smallest* gradients: a control (Evci et al. 2022)."""

    def grow_score(self, view: View) -> Float[Tensor, "*w"]:
        """Minus the magnitude of the dense gradient."""
        return -view.gradient.abs()


@register_method("prune", label="Gradual pruning", recipes=False)
@dataclass(frozen=True)
class GradualPruning(Method):
    """Gradual magnitude pruning per layer along a cubic schedule (Zhu & Gupta 2017).

    The defaults of ``start`` and ``stop`` are those of the paper's MNIST runs.

    Attributes:
        density: final density of every masked layer, or one a layer by name. In
            a run it may be left out: it is then the run's, by ``allocation``.
        start: step of the first update, at density 1.
        stop: step of the last update, at the final density.
        interval: steps between updates; must divide ``stop - start``.
        power: exponent of the schedule.
        allocation: of the run's density over the layers, ``uniform``, ``er`` or ``erk``.
    """

    density: float | Mapping[str, float] | None = None
    start: int = 3000
    stop: int = 7000
    interval: int = 100
    power: float = 3.0
    allocation: Literal["uniform", "er", "erk"] = "uniform"

    def __post_init__(self) -> None:
        """Check the schedule."""
        densities = self.density if isinstance(self.density, Mapping) else {"": self.density}
        for name, value in densities.items():
            if value is not None:
                check_density(value, f"final density {name}".strip())
        cubic(1.0, self.start, self.stop, self.power)
        every(self.interval, start=self.start)
        if (self.stop - self.start) % self.interval:
            raise TopologyError(
                f"interval={self.interval} does not divide the {self.stop - self.start} steps "
                f"from start={self.start} to stop={self.stop}: the last update would be missed"
            )

    def due(self, step: int) -> bool:
        """Every ``interval`` steps from ``start`` to ``stop``."""
        return every(self.interval, start=self.start, stop=self.stop)(step)

    def update_layer(self, connections: Connections) -> Int64[Tensor, " k"]:
        """Keep the largest weights that the schedule allows at this step."""
        final = self.density
        if isinstance(final, Mapping):
            if connections.name not in final:
                raise TopologyError(f"no final density for {connections.name!r}")
            final = final[connections.name]
        if final is None:
            raise TopologyError("gradual pruning has no final density: give it density=...")
        density = cubic(final, self.start, self.stop, self.power)(connections.moment.step)
        count = round(density * connections.size)
        return pruned(connections.indices, connections.values.abs(), count)

    def scaled(self, factor: float) -> GradualPruning:
        """As many updates in a training of another length, and never less than one."""
        interval, start = scaled_steps(self.interval, factor), scaled_steps(self.start, factor)
        length = self.stop - self.start
        updates = min(length // self.interval, max(1, round(length * factor)))
        return replace(self, start=start, interval=interval, stop=start + updates * interval)

    def bound(self, task: Task) -> GradualPruning:
        """Take the run's density, if no other is given."""
        if self.density is not None:
            return self
        if self.allocation == "uniform":
            return replace(self, density=task.density)
        counts = allocate(task.layers, task.density, self.allocation)
        densities = {name: counts[name] / layer.size for name, layer in task.layers.items()}
        return replace(self, density=densities)

    def check(self, steps: int) -> None:
        """Refuse a training that ends before the pruning does."""
        if self.stop > steps:
            raise TopologyError(
                f"pruning cannot finish: method.stop={self.stop} is later than "
                f"train.steps={steps}; --scale shortens both together, down to one step an update"
            )


def probe_gradient(model: nn.Module, loss: Loss, probe: object, chunk: int = 250) -> Source:
    """Grow from a fixed probe batch: the paper's MNIST runs use 1,000 training examples.

    In a data-parallel job growth follows the mean over ranks: the probes may be
    one and the same, or equal shares of a larger one.

    Args:
        model: the model being trained.
        loss: ``loss(model, batch) -> scalar``, without weight decay.
        probe: one batch.
        chunk: examples at a time.
    """
    chunks, inside = split(probe, chunk), bare(model)
    return lambda: dense_gradient(inside, loss, chunks)


def _fitting(what: str, score: Tensor, view: View) -> Tensor:
    if score.shape != view.mask.shape:
        raise TopologyError(
            f"{what} of {view.name} has shape {tuple(score.shape)}: "
            f"it must match the view's, {tuple(view.mask.shape)}"
        )
    return score
