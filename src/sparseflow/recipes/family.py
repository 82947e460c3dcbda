"""A family of runs is one small table, method × initialisation × mask.

Names: nothing after a method is masked dense initialisation, ``-liu`` is Liu
et al.'s, ``+`` the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from sparseflow.core.errors import SpecError
from sparseflow.core.registry import Entry, Registry
from sparseflow.core.schedules import every, lr_proportional
from sparseflow.init import GLOROT as GLOROT_INIT
from sparseflow.init import INITS, Init, Initialisation, find_init, marks
from sparseflow.runs.override import converted
from sparseflow.runs.spec import (
    Data,
    ErkMask,
    ErMask,
    FullMask,
    MaskSource,
    Measure,
    Model,
    Optimizer,
    ParentMask,
    ParentWeights,
    RunSpec,
    ShuffledMask,
    Train,
    UniformMask,
)
from sparseflow.topology import METHODS, GradualPruning, Method, RigL, Static


@dataclass(frozen=True)
class Inits:
    """The three initialisations that every family has.

    Attributes:
        dense: masked dense (no mark).
        liu: Liu et al.'s (``-liu``).
        fan_in: the paper's (``+``).
    """

    dense: Initialisation
    liu: Initialisation
    fan_in: Initialisation

    def of(self, name: str) -> Initialisation:
        """Return the family's own of a name in the registry, or the one that a user registered."""
        own = {"dense": self.dense, "layer": self.liu, "neuron": self.fan_in}
        return own[name] if name in own else find_init(name)


GLOROT = Inits(
    GLOROT_INIT, Init("layer", "avg", "uniform", 1.0), Init("neuron", "in", "normal", 1.0)
)
"""Of the authors' MNIST runs: Glorot uniform, and fan-in normal of scale 1."""

HE = Inits(Init("dense"), Init("layer"), Init("neuron"))
"""He et al. 2015, fan-in normal of scale 2, for networks with ReLU and batch norm."""

SPARSITIES = (0.0, 0.5, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98)
"""Of the paper's figure 1."""


@dataclass(frozen=True)
class Family:
    """What the runs of one family have in common.

    Attributes:
        name: prefix of the recipes' names.
        model: the architecture.
        density: of the sparse runs.
        optimizer: the published settings.
        method: RigL as it serves here; other methods take its schedules from it.
        small: widths of the small dense network at that density; without, they
            are solved from its parameters.
        data: the data set.
        train: length of training.
        measure: what is measured on the way.
        inits: the initialisations.
        prune: the pruning schedule.
        start: mask that ``set`` and ``rigl`` start from: the pruned network's,
            shuffled within each layer, or a random one of that allocation.
        rewind: step of the pruning run whose weights a ticket starts from.
        sparsities: at which networks are measured at initialisation.
        headline: of a report on it.

    Example:
        >>> family = Family("small", Model("mlp"), 0.1, Optimizer(lr=0.1), RigL(every(50)))
        >>> train_recipes(family)["set+"](family, 0.1).method
        SET(when=Every(n=50, start=0, stop=None), drop=Constant(value=0.3))
    """

    name: str
    model: Model
    density: float
    optimizer: Optimizer
    method: RigL = RigL(every(100), lr_proportional(0.3), "probe")
    small: tuple[int, ...] = ()
    data: Data = Data()
    train: Train = Train()
    measure: Measure = Measure()
    inits: Inits = GLOROT
    prune: GradualPruning = GradualPruning()
    start: Literal["shuffled", "erk", "uniform"] = "shuffled"
    rewind: int = 0
    sparsities: tuple[float, ...] = ()
    headline: str = ""


Maker = Callable[[Family, float], RunSpec]


def _base(family: Family, density: float, recipe: str) -> RunSpec:
    return RunSpec(
        recipe=f"{family.name}/{recipe}",
        density=density,
        data=family.data,
        model=family.model,
        init=family.inits.dense,
        optimizer=family.optimizer,
        train=family.train,
        measure=family.measure,
    )


def _dense(family: Family, density: float) -> RunSpec:
    return _base(family, density, "dense")


def _small_dense(family: Family, density: float) -> RunSpec:
    """Take the published widths at their density; solve them from the budget at any other."""
    published = bool(family.small) and density == family.density
    model = replace(family.model, shrink=not published, widths=family.small if published else ())
    return replace(_base(family, density, "small-dense"), model=model)


def _prune(family: Family, density: float) -> RunSpec:
    return replace(_base(family, density, "prune"), method=family.prune)


def _prune_restart(family: Family, density: float) -> RunSpec:
    parent = _prune(family, density)
    spec = _base(family, density, "prune-restart")
    return replace(spec, mask=ParentMask(parent), weights=ParentWeights(parent, "end"))


def _lottery(family: Family, density: float) -> RunSpec:
    parent = _prune(family, density)
    spec = _base(family, density, "lottery")
    return replace(spec, mask=ParentMask(parent), weights=ParentWeights(parent, family.rewind))


def _own_mask(family: Family, density: float) -> MaskSource:
    return ParentMask(_prune(family, density))


def _start_mask(family: Family, density: float) -> MaskSource:
    if family.start == "shuffled":
        return ShuffledMask(_prune(family, density))
    return ErkMask() if family.start == "erk" else UniformMask()


def _sparse(
    recipe: str,
    mask: Callable[[Family, float], MaskSource],
    init: str,
    method: Callable[[Family], Method],
) -> Maker:
    def make(family: Family, density: float) -> RunSpec:
        return replace(
            _base(family, density, recipe),
            mask=mask(family, density),
            init=family.inits.of(init),
            method=method(family),
        )

    return make


_STATIC: tuple[tuple[str, Callable[[Family, float], MaskSource]], ...] = (
    ("scratch", _own_mask),
    ("{start}", _start_mask),
)


def _static(_: Family) -> Method:
    return Static()


def _dynamic(entry: Entry[type[Method]]) -> Callable[[Family], Method]:
    return lambda family: converted(family.method, entry.value, entry.name)


def _mask_of(entry: Entry[type[Method]]) -> Callable[[Family, float], MaskSource]:
    """Mask that the recipes of a method start from: the family's, unless it asks for another."""
    if entry.facts["mask"] is None:
        return _start_mask
    try:
        mask = msgspec.convert(entry.facts["mask"], FullMask | UniformMask | ErMask | ErkMask)
    except msgspec.ValidationError as error:
        raise SpecError(f"method {entry.name!r}, mask={entry.facts['mask']}: {error}") from error
    return lambda family, density: mask


def train_recipes(family: Family) -> dict[str, Maker]:
    """Recipes that train, by short name, in the order of the table.

    Every method that is registered has some, and every initialisation that a user
    registered is a mark of theirs.
    """
    makers: dict[str, Maker] = {
        "dense": _dense,
        "small-dense": _small_dense,
        "prune": _prune,
        "prune-restart": _prune_restart,
        "lottery": _lottery,
    }
    start = "shuffled" if family.start == "shuffled" else "static"
    inits = {mark.suffix: name for name, mark in marks().items()}
    users = [suffix for suffix, name in inits.items() if INITS.entry(name).home]
    rows: list[tuple[str, Any, tuple[str, ...] | None, Callable[[Family], Method]]] = [
        (name.format(start=start), mask, None, _static) for name, mask in _STATIC
    ]
    rows += [
        (entry.name, _mask_of(entry), entry.facts["marks"], _dynamic(entry))
        for entry in METHODS.entries()
        if entry.facts["recipes"]
    ]
    for name, mask, suffixes, method in rows:
        for suffix in inits if suffixes is None else (*suffixes, *users):
            recipe = f"{name}{suffix}"
            if recipe in makers:
                raise SpecError(
                    f"recipe {recipe!r} of {family.name} stands for two things: register the "
                    f"method {name!r} or the initialisation {inits[suffix]!r} under another name"
                )
            makers[recipe] = _sparse(recipe, mask, inits[suffix], method)
    return makers


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


def _at_start(recipe: str, init: Initialisation, sparsity: float) -> Maker:
    """A run of no steps: it measures signal and gradient at initialisation.

    As in the paper's figure 1, on masks uneven over neurons.
    """

    def make(family: Family, density: float) -> RunSpec:
        del density
        mask = UniformMask(pattern="uneven") if sparsity else FullMask()
        return replace(
            _base(family, round(1 - sparsity, 4), recipe),
            mask=mask,
            init=init,
            train=replace(family.train, steps=0),
        )

    return make


def start_recipes(family: Family) -> dict[str, Maker]:
    """Recipes that only measure at initialisation, by short name."""
    return {
        (recipe := f"init-{mark.name}-{sparsity:.2f}"): _at_start(recipe, HE.of(name), sparsity)
        for name, mark in marks().items()
        if not INITS.entry(name).home
        for sparsity in family.sparsities
    }


FAMILIES: Registry[Family] = Registry("recipe family", "register one with sf.register_family")


def register_family(make: Callable[[], Family]) -> Callable[[], Family]:
    """Decorator of a function that returns a family: makes it known by its name.

    Raises:
        SpecError: if the name is taken.

    Example:
        >>> @register_family
        ... def small():
        ...     return Family("small-mnist", Model("mlp"), 0.1, Optimizer(lr=0.1))
        >>> "rigl+" in train_recipes(FAMILIES["small-mnist"])
        True
    """
    family = make()
    FAMILIES.add(family.name, family, make)
    return make
