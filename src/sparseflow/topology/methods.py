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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparseflow.core.chunks import Chunks, parts_of
from sparseflow.core.errors import TopologyError
from sparseflow.core.expressions import written
from sparseflow.core.functional import Loss, dense_gradient
from sparseflow.core.schedules import (
    Constant,
    Cosine,
    Cubic,
    Every,
    Fraction,
    LrProportional,
    Moment,
    When,
    constant,
    cubic,
    every,
    scaled_steps,
)
from sparseflow.core.wrappers import bare
from sparseflow.masks.allocation import allocate, check_density
from sparseflow.topology.method import GrowthGradient, Method, Source, Task, register_method
from sparseflow.topology.update import pruned, regrown
from sparseflow.topology.view import Connections, View

M = TypeVar("M", bound=Method)


@register_method("static", recipes=False)
@dataclass(frozen=True)
class Static(Method):
    """Masks never change. With full masks this is dense training.

    Example:
        >>> Static().changes
        False
    """

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


@register_method("set", group="SET", color=("#009e73", "#35c99b"))
@dataclass(frozen=True)
class SET(Method):
    """Sparse evolutionary training: drop the smallest weights, grow at random.

    Mocanu et al. 2018; as in Evci et al. 2022. Each layer drops
    ⌊fraction · active⌋ connections and grows as many.

    Attributes:
        when: steps at which masks change, see :func:`sparseflow.every`.
        drop: the drop fraction, see :func:`sparseflow.constant`,
            :func:`sparseflow.cosine`, :func:`sparseflow.lr_proportional`.

    Example:
        >>> [step for step in range(1, 1000) if SET(every(300)).due(step)]
        [300, 600, 900]
    """

    when: When = every(100)
    drop: Fraction = constant(0.3)

    def __post_init__(self) -> None:
        """Refuse schedules of the wrong sort."""
        if isinstance(self.drop, Every):
            raise TopologyError(f"method.drop={written(self.drop)} says when, not how much")
        if isinstance(self.when, Constant | Cosine | LrProportional | Cubic):
            raise TopologyError(f"method.when={written(self.when)} says how much, not when")

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
        scores = (
            connections.growable(_fitting("grow_score", self.grow_score(view), view))
            for view in connections.blocks()
        )
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


@register_method("rigl", group="RigL", color=("#d55e00", "#ff8848"))
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

    Example:
        >>> RigL(every(100, stop=8000), constant(0.3)).last_update(11_719)
        8000
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


@register_method(
    "rigl-inverted",
    label="RigL inverted",
    group="RigL",
    color=("#7b4fb5", "#b394ea"),
    marks=("+",),
)
@dataclass(frozen=True)
class RigLInverted(RigL):
    """RigL that grows the *smallest* gradients: a control (Evci et al. 2022).

    Example:
        >>> RigLInverted(every(100)).growth_gradient
        'batch'
    """

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

    Example:
        >>> GradualPruning(0.05).due(7000), GradualPruning(0.05).due(7100)
        (True, False)
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

    def empties(self, name: str) -> bool:
        """Whether the final density of the layer is 0."""
        final = self.density
        return (final.get(name) if isinstance(final, Mapping) else final) == 0

    @property
    def grows(self) -> bool:
        """It never does."""
        return False

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


def probe_gradient(
    model: nn.Module, loss: Loss, probe: object, chunk: int | Chunks | None = None
) -> Source:
    """Grow from a fixed probe batch: the paper's MNIST runs use 1,000 training examples.

    In a data-parallel job growth follows the mean over ranks: the probes may be
    one and the same, or equal shares of a larger one.

    Args:
        model: the model being trained.
        loss: ``loss(model, batch) -> scalar``, without weight decay.
        probe: one batch.
        chunk: examples at a time, or :class:`Chunks`, as for :func:`gradient_flow`.

    Example:
        >>> import sparseflow as sf
        >>> net, probe = nn.Linear(4, 2), (torch.randn(8, 4), torch.randint(2, (8,)))
        >>> source = probe_gradient(net, sf.cross_entropy, probe)
        >>> source()["weight"].shape
        torch.Size([2, 4])
    """
    inside = bare(model)
    parts = cache(lambda: parts_of(inside, loss, probe, chunk))
    return lambda: dense_gradient(inside, loss, parts())


def _fitting(what: str, score: Tensor, view: View) -> Tensor:
    if score.shape != view.mask.shape:
        raise TopologyError(
            f"{what} of {view.name} has shape {tuple(score.shape)}: "
            f"it must match the view's, {tuple(view.mask.shape)}"
        )
    return score
