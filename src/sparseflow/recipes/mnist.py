"""The paper's MNIST runs: a family is one small table, method × initialisation × mask.

Names: nothing after a method is masked dense initialisation (Glorot uniform,
as the authors' code has it), ``-liu`` is Liu et al.'s, ``+`` the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from sparseflow.runs.spec import (
    FullMask,
    InitSpec,
    Measure,
    MethodSpec,
    Model,
    Optimizer,
    ParentMask,
    ParentWeights,
    PruneMethod,
    RigLInvertedMethod,
    RigLMethod,
    RunSpec,
    SetMethod,
    ShuffledMask,
    StaticMethod,
    Train,
    UniformMask,
)


@dataclass(frozen=True)
class Family:
    """What the runs of one family have in common.

    Attributes:
        name: prefix of the recipes' names.
        model: the architecture.
        density: of the sparse runs.
        optimizer: the authors' settings.
        every: steps between mask updates.
        small: widths of the small dense network at that density.
    """

    name: str
    model: Model
    density: float
    optimizer: Optimizer
    every: int
    small: tuple[int, ...]


LENET5 = Family("lenet5-mnist", Model("lenet5"), 0.05, Optimizer(), 100, (3, 3, 27, 20))
MLP = Family("mlp-mnist", Model("mlp"), 0.02, Optimizer(lr=0.2, weight_decay=2e-4), 500, (8, 8))

DENSE = InitSpec()
LIU = InitSpec(kind="layer")
FAN_IN = InitSpec(kind="neuron", fan="in", distribution="normal", scale=1.0)

Maker = Callable[[Family, float], RunSpec]


def _base(family: Family, density: float, recipe: str) -> RunSpec:
    return RunSpec(
        recipe=f"{family.name}/{recipe}",
        density=density,
        model=family.model,
        optimizer=family.optimizer,
    )


def _dense(family: Family, density: float) -> RunSpec:
    return _base(family, density, "dense")


def _small_dense(family: Family, density: float) -> RunSpec:
    """Take the authors' widths at their density; solve them from the budget at any other."""
    published = density == family.density
    model = replace(family.model, shrink=not published, widths=family.small if published else ())
    return replace(_base(family, density, "small-dense"), model=model)


def _prune(family: Family, density: float) -> RunSpec:
    return replace(_base(family, density, "prune"), method=PruneMethod())


def _prune_restart(family: Family, density: float) -> RunSpec:
    parent = _prune(family, density)
    spec = _base(family, density, "prune-restart")
    return replace(spec, mask=ParentMask(parent), weights=ParentWeights(parent, "end"))


def _lottery(family: Family, density: float) -> RunSpec:
    parent = _prune(family, density)
    spec = _base(family, density, "lottery")
    return replace(spec, mask=ParentMask(parent), weights=ParentWeights(parent, 0))


def _sparse(
    recipe: str,
    mask: type[ParentMask | ShuffledMask],
    init: InitSpec,
    method: Callable[..., MethodSpec] | None,
) -> Maker:
    def make(family: Family, density: float) -> RunSpec:
        spec = _base(family, density, recipe)
        rule = StaticMethod() if method is None else method(every=family.every)
        return replace(spec, mask=mask(_prune(family, density)), init=init, method=rule)

    return make


_TABLE = (
    ("scratch", ParentMask, None, ("", "-liu", "+")),
    ("shuffled", ShuffledMask, None, ("", "-liu", "+")),
    ("set", ShuffledMask, SetMethod, ("", "-liu", "+")),
    ("rigl", ShuffledMask, RigLMethod, ("", "-liu", "+")),
    ("rigl-inverted", ShuffledMask, RigLInvertedMethod, ("+",)),
)
_INITS = {"": DENSE, "-liu": LIU, "+": FAN_IN}

TRAINED: dict[str, Maker] = {
    "dense": _dense,
    "small-dense": _small_dense,
    "prune": _prune,
    "prune-restart": _prune_restart,
    "lottery": _lottery,
    **{
        f"{name}{mark}": _sparse(f"{name}{mark}", mask, _INITS[mark], method)
        for name, mask, method, marks in _TABLE
        for mark in marks
    },
}

GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lottery:orders": ("lottery", ("data",)),
    "scratch:orders": ("scratch", ("data",)),
    "scratch:inits": ("scratch", ("init", "data")),
    "prune-restart:orders": ("prune-restart", ("data",)),
}
"""Groups of the published table: many children of *one* pruned network (seed 0).

Each has a recipe and the seeds that differ between its members; every other
seed, the ancestors' included, is 0. Seed 0 is the recipe's own run.
"""

# The paper's figure 1 uses He scale 2 and normal draws, on masks uneven over neurons.
SPARSITIES = (0.0, 0.5, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98)
_AT_START = {
    "masked-dense": InitSpec("dense", "in", "normal", 2.0),
    "liu": InitSpec("layer", "in", "normal", 2.0),
    "fan-in": InitSpec("neuron", "in", "normal", 2.0),
}


def _at_start(recipe: str, init: InitSpec, sparsity: float) -> Maker:
    """A run of no steps: it measures signal and gradient at initialisation."""

    def make(family: Family, density: float) -> RunSpec:
        del density
        mask = UniformMask(pattern="uneven") if sparsity else FullMask()
        return replace(
            _base(family, round(1 - sparsity, 4), recipe),
            mask=mask,
            init=init,
            train=Train(steps=0),
            measure=Measure(),
        )

    return make


AT_START: dict[str, Maker] = {
    f"init-{name}-{sparsity:.2f}": _at_start(f"init-{name}-{sparsity:.2f}", init, sparsity)
    for name, init in _AT_START.items()
    for sparsity in SPARSITIES
}
