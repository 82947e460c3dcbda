"""From a recipe's name to its specification."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from msgspec.structs import replace

from sparseflow.core.code import use
from sparseflow.core.errors import SpecError, unknown
from sparseflow.core.values import USE
from sparseflow.recipes.family import FAMILIES, GROUPS, Family, start_recipes, train_recipes
from sparseflow.recipes.mnist import LENET5
from sparseflow.runs.override import scaled, with_overrides, with_seeds
from sparseflow.runs.spec import RunSpec, Seeds
from sparseflow.runs.validate import check

DEMO_SPARSITIES = ("0.00", "0.80", "0.90", "0.95", "0.98")


def find_family(name: str) -> Family:
    """Return a family by name.

    Raises:
        SpecError: if it is unknown, with a suggestion.
    """
    return FAMILIES[name]


def recipe_names(family: str, *, at_start: bool = False) -> list[str]:
    """Full names of the family's training recipes, or of those that only measure at step 0."""
    known = find_family(family)
    return [
        f"{known.name}/{name}"
        for name in (start_recipes(known) if at_start else train_recipes(known))
    ]


def group_names(family: str) -> list[str]:
    """Full names of the groups whose members share one pruned network."""
    return [f"{find_family(family).name}/{name}" for name in GROUPS]


def expand(names: Sequence[str]) -> list[str]:
    """Full recipe names of families (all their recipes), patterns and single recipes.

    A pattern such as ``lenet5-mnist/rigl*`` stands for the recipes that it fits; for groups
    only where it has their colon.

    Raises:
        SpecError: if a family is unknown, or no recipe fits a pattern.
    """
    full: list[str] = []
    for name in names:
        if any(sign in name for sign in "*?["):
            full += _fitting(name)
        elif "/" in name:
            full.append(name)
        else:
            full += recipe_names(name) + recipe_names(name, at_start=True)
    return list(dict.fromkeys(full))


def _fitting(pattern: str) -> list[str]:
    every: list[str] = []
    for family in FAMILIES:
        every += recipe_names(family) + recipe_names(family, at_start=True)
        every += group_names(family) if ":" in pattern else []
    fitting = [name for name in every if fnmatchcase(name, pattern)]
    if not fitting:
        raise SpecError(f"no recipe fits {pattern!r}: 'sparseflow list' shows them")
    return fitting


def demo_specs(scale: float) -> list[RunSpec]:
    """Specifications of the demo: the main job, shortened, and initialisation by sparsity."""
    main = ("prune", "lottery", "shuffled", "shuffled+", "rigl+")
    untrained = [n for n in start_recipes(LENET5) if n.endswith(DEMO_SPARSITIES)]
    specs = [make_spec(f"{LENET5.name}/{name}", scale=scale) for name in main]
    return specs + [make_spec(f"{LENET5.name}/{name}") for name in untrained]


def make_spec(
    name: str, *, seed: int = 0, scale: float = 1.0, settings: Sequence[str] = ()
) -> RunSpec:
    """Build the specification of a recipe.

    Args:
        name: such as ``lenet5-mnist/rigl+``, or ``package.module:function`` of a function
            that returns a :class:`sparseflow.runs.RunSpec`.
        seed: of initialisation, masks and data order, in the run and its parents;
            in a group (``lottery:orders``) only of what its members differ in.
        scale: multiplies the steps and all schedules.
        settings: ``path=value`` overrides, applied after scaling; ``density``
            reaches the parents too (the pruning run prunes to it).

    Raises:
        SpecError: for an unknown name or field (with a suggestion), or a value
            that makes no sense.

    Example:
        >>> make_spec("lenet5-mnist/rigl+", settings=["density=0.02"]).mask.run.density
        0.02
    """
    family_name, _, short = name.partition("/")
    if ":" in family_name:
        spec = scaled(with_seeds(_from_function(name), seed), scale)
        return check(with_overrides(spec, settings))
    family = find_family(family_name)
    recipes = train_recipes(family) | start_recipes(family)
    base, varied = GROUPS.get(short, (short, None))
    if base not in recipes:
        names = [*train_recipes(family), *GROUPS]
        text = unknown(f"recipe of {family_name}", short, names)
        raise SpecError(f"{text}; for a method of your own {USE}")
    density = family.density
    others = []
    for setting in settings:
        path, _, value = setting.partition("=")
        if path.strip() == "density":
            density = _density(value)
        else:
            others.append(setting)
    spec = recipes[base](family, density)
    if varied is None:
        spec = with_seeds(spec, seed)
    else:
        spec = replace(spec, recipe=name, seeds=Seeds(**dict.fromkeys(varied, seed)))
    spec = scaled(spec, scale)
    return check(with_overrides(spec, others))


def _from_function(name: str) -> RunSpec:
    """Call ``package.module:function``, which returns a specification.

    Raises:
        SpecError: if there is no such function, or it returns something else.
    """
    module, _, function = name.partition(":")
    use(module)
    made_by = getattr(sys.modules[module], function, None)
    if not callable(made_by):
        raise SpecError(f"recipe {name}: module {module} has no function {function!r}")
    spec = made_by()
    if not isinstance(spec, RunSpec):
        raise SpecError(f"recipe {name} returns a {type(spec).__name__}, not a RunSpec")
    return replace(spec, recipe=spec.recipe or name)


def makers(
    names: Sequence[str], *, scale: float = 1.0, settings: Sequence[str] = ()
) -> list[Callable[[int], RunSpec]]:
    """For each name a function from a seed to :func:`make_spec`, as ``matching`` wants them."""

    def maker(name: str) -> Callable[[int], RunSpec]:
        return lambda seed: make_spec(name, seed=seed, scale=scale, settings=settings)

    return [maker(name) for name in names]


def _density(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SpecError(f"density={text!r} is not a number between 0 and 1") from error
