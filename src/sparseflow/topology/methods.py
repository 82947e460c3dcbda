"""The methods: small frozen objects that say when and how a mask changes.

A method of your own subclasses the nearest one and overrides a score::

    @dataclass(frozen=True)
    class GrowByMomentum(sf.SET):
        ...
        def grow_score(self, view): ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparseflow.core.chunks import Chunks, parts_of
from sparseflow.core.errors import TopologyError
from sparseflow.core.functional import Loss, RowGradient, dense_gradient
from sparseflow.core.schedules import Fraction, When, constant, cubic, every
from sparseflow.core.wrappers import bare
from sparseflow.masks.allocation import check_density
from sparseflow.topology.update import pruned, regrown
from sparseflow.topology.view import Connections, View

Source = Callable[[], Mapping[str, Tensor | RowGradient]]
"""Gives dense gradients by name; of a truly sparse layer by rows, so that it is never whole."""

GrowthGradient = Literal["batch"] | Source | None


@runtime_checkable
class Method(Protocol):
    """What :func:`sparseflow.attach` asks of a method."""

    @property
    def growth_gradient(self) -> GrowthGradient:
        """Source of ``view.gradient``: the training batch, a function, or None."""
        ...

    def due(self, step: int) -> bool:
        """Say whether the masks change after this optimiser step (1 is the first)."""
        ...

    def update(self, connections: Connections) -> Int64[Tensor, " k"]:
        """Return the sorted flat positions of the weight's new connections."""
        ...


@dataclass(frozen=True)
class Static:
    """Masks never change. With full masks this is dense training."""

    growth_gradient: GrowthGradient = field(default=None, init=False)

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def update(self, connections: Connections) -> Int64[Tensor, " k"]:
        """Return the connections as they are."""
        return connections.indices


@dataclass(frozen=True)
class SET:
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

    @property
    def growth_gradient(self) -> GrowthGradient:
        """Growth needs no gradient."""
        return None

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

    def update(self, connections: Connections) -> Int64[Tensor, " k"]:
        """Drop and grow one layer."""
        moment, active = connections.moment, connections.active
        fraction = self.drop(moment)
        if not 0 <= fraction <= 1:
            raise TopologyError(f"drop fraction {fraction} at step {moment.step} is not in [0, 1]")
        k = math.floor(fraction * len(connections.indices))
        drop = _fitting("drop_score", self.drop_score(active), active)
        grow = (_fitting("grow_score", self.grow_score(v), v) for v in connections.blocks())
        return regrown(connections.indices, drop, grow, k)


@dataclass(frozen=True)
class RigL(SET):
    """The rigged lottery: drop the smallest weights, grow the largest gradients.

    Evci et al. 2020, algorithm 1.

    Attributes:
        when: steps at which masks change.
        drop: the drop fraction.
        grow_from: ``"batch"`` takes the dense gradient of the training batch of
            the same step (all micro-batches of it), or a function that returns
            dense gradients by name, see :func:`sparseflow.probe_gradient`.
    """

    grow_from: Literal["batch"] | Source = "batch"

    @property
    def growth_gradient(self) -> GrowthGradient:
        """Where the dense gradient comes from."""
        return self.grow_from

    def grow_score(self, view: View) -> Float[Tensor, "*w"]:
        """Magnitude of the dense gradient."""
        return view.gradient.abs()


@dataclass(frozen=True)
class RigLInverted(RigL):
    """RigL that grows the *smallest* gradients: a control (Evci et al. 2022)."""

    def grow_score(self, view: View) -> Float[Tensor, "*w"]:
        """Minus the magnitude of the dense gradient."""
        return -view.gradient.abs()


@dataclass(frozen=True)
class GradualPruning:
    """Gradual magnitude pruning per layer along a cubic schedule (Zhu & Gupta 2017).

    Attributes:
        density: final density of every masked layer, or one a layer by name.
        start: step of the first update, at density 1.
        stop: step of the last update, at the final density.
        interval: steps between updates; must divide ``stop - start``.
        power: exponent of the schedule.
    """

    density: float | Mapping[str, float]
    start: int
    stop: int
    interval: int = 100
    power: float = 3.0

    growth_gradient: GrowthGradient = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Check the schedule."""
        densities = self.density if isinstance(self.density, Mapping) else {"": self.density}
        for name, value in densities.items():
            check_density(value, f"final density {name}".strip())
        cubic(1.0, self.start, self.stop)
        every(self.interval)
        if not (self.power > 0 and math.isfinite(self.power)):
            raise TopologyError(f"power={self.power} of the pruning schedule must be positive")
        if (self.stop - self.start) % self.interval:
            raise TopologyError(
                f"interval={self.interval} does not divide the {self.stop - self.start} steps "
                f"from start={self.start} to stop={self.stop}: the last update would be missed"
            )

    def due(self, step: int) -> bool:
        """Every ``interval`` steps from ``start`` to ``stop``."""
        return every(self.interval, start=self.start, stop=self.stop)(step)

    def update(self, connections: Connections) -> Int64[Tensor, " k"]:
        """Keep the largest weights that the schedule allows at this step."""
        final = self.density
        if isinstance(final, Mapping):
            if connections.name not in final:
                raise TopologyError(f"no final density for {connections.name!r}")
            final = final[connections.name]
        density = cubic(final, self.start, self.stop, self.power)(connections.moment.step)
        kept = round(density * connections.size)
        return pruned(connections.indices, connections.values.abs(), kept)


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
    """
    inside = bare(model)
    parts = cache(lambda: parts_of(inside, loss, probe, chunk))
    return lambda: dense_gradient(inside, loss, parts())


def _fitting(what: str, score: Tensor, view: View) -> Tensor:
    if score.shape != view.mask.shape:
        raise TopologyError(
            f"{what} of {view.name} has shape {tuple(score.shape)}: "
            f"it is to be that of the view, {tuple(view.mask.shape)}"
        )
    return score
