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
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseflow.core.errors import TopologyError
from sparseflow.core.functional import Loss, gradient, split
from sparseflow.core.schedules import Fraction, Moment, When, constant, cubic, every
from sparseflow.masks.allocation import check_density
from sparseflow.topology.update import drop_and_grow, prune_to

GrowthGradient = Literal["batch"] | Callable[[], Mapping[str, Tensor]] | None


@dataclass(frozen=True, eq=False)
class View:
    """What a method sees of one layer at an update.

    Attributes:
        name: the parameter's name.
        weight: its values, zero where inactive.
        mask: its active connections.
        gradient: the dense gradient, if the method asks for one, else None.
        moment: step and learning-rate ratio.
        generator: the random stream of this layer and update (on the CPU).
    """

    name: str
    weight: Float[Tensor, "*w"]
    mask: Bool[Tensor, "*w"]
    gradient: Float[Tensor, "*w"] | None
    moment: Moment
    generator: torch.Generator


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

    def update(self, view: View) -> Bool[Tensor, "*w"]:
        """Return the layer's new mask."""
        ...


@dataclass(frozen=True)
class Static:
    """Masks never change. With full masks this is dense training."""

    growth_gradient: GrowthGradient = field(default=None, init=False)

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def update(self, view: View) -> Bool[Tensor, "*w"]:
        """Return the mask as it is."""
        return view.mask


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
        """Score active connections: the lowest are dropped."""
        return view.weight.abs()

    def grow_score(self, view: View) -> Float[Tensor, "*w"]:
        """Score inactive connections: the highest are grown."""
        scores = torch.rand(view.mask.shape, generator=view.generator)
        return scores.to(view.mask.device)

    def update(self, view: View) -> Bool[Tensor, "*w"]:
        """Drop and grow one layer."""
        fraction = self.drop(view.moment)
        if not 0 <= fraction <= 1:
            raise TopologyError(
                f"drop fraction {fraction} at step {view.moment.step} is not in [0, 1]"
            )
        k = math.floor(fraction * int(view.mask.sum()))
        return drop_and_grow(view.mask, self.drop_score(view), self.grow_score(view), k)


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

    grow_from: Literal["batch"] | Callable[[], Mapping[str, Tensor]] = "batch"

    @property
    def growth_gradient(self) -> GrowthGradient:
        """Where the dense gradient comes from."""
        return self.grow_from

    def grow_score(self, view: View) -> Float[Tensor, "*w"]:
        """Magnitude of the dense gradient."""
        return needed(view).abs()


@dataclass(frozen=True)
class RigLInverted(RigL):
    """RigL that grows the *smallest* gradients: a control (Evci et al. 2022)."""

    def grow_score(self, view: View) -> Float[Tensor, "*w"]:
        """Minus the magnitude of the dense gradient."""
        return -needed(view).abs()


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

    def update(self, view: View) -> Bool[Tensor, "*w"]:
        """Keep the largest weights that the schedule allows at this step."""
        final = self.density
        if isinstance(final, Mapping):
            if view.name not in final:
                raise TopologyError(f"no final density for {view.name!r}")
            final = final[view.name]
        density = cubic(final, self.start, self.stop, self.power)(view.moment.step)
        return prune_to(view.mask, view.weight.abs(), round(density * view.mask.numel()))


def probe_gradient(
    model: nn.Module, loss: Loss, probe: object, chunk: int = 250
) -> Callable[[], dict[str, Tensor]]:
    """Grow from a fixed probe batch: the paper's MNIST runs use 1,000 training examples.

    Args:
        model: the model being trained.
        loss: ``loss(model, batch) -> scalar``, without weight decay.
        probe: one batch.
        chunk: examples at a time.
    """
    chunks = split(probe, chunk)
    return lambda: gradient(model, loss, chunks)[1]


def needed(view: View) -> Float[Tensor, "*w"]:
    """Return the dense gradient of a view.

    Raises:
        TopologyError: if the method named no source for it.
    """
    if view.gradient is None:
        raise TopologyError(f"no gradient for {view.name}: the method's growth_gradient is None")
    return view.gradient
