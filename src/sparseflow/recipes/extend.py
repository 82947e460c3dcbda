"""Train on from the end of a finished run: a new run, whose parent is that one."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from sparseflow.core.errors import SpecError
from sparseflow.recipes.make import make_spec
from sparseflow.runs.override import path_of
from sparseflow.runs.run import Run
from sparseflow.runs.spec import FullMask, ParentMask, ParentWeights, RunSpec
from sparseflow.runs.validate import check

INHERITED = ("density", "data", "model", "mask", "init", "weights")
"""What a run that trains on takes from the one it comes from."""


def extend(
    recipe: str,
    parent: Run,
    *,
    seed: int | None = None,
    scale: float = 1.0,
    settings: Sequence[str] = (),
) -> RunSpec:
    """Specify a run that starts from the weights and masks at the end of another.

    Method, optimiser, length and measurements are the recipe's; data, model, density,
    masks and weights are the parent's. Neither the optimiser's state nor the position
    in the learning rate schedule is kept, and steps count from 0 again: it is a new
    training of ``train.steps`` steps, in an order of examples of its own.

    Args:
        recipe: of the parent's family, such as ``lenet5-mnist/rigl+``.
        parent: a finished run.
        seed: of masks and data order; by default each of the parent's that is not set.
        scale: multiplies the recipe's steps and schedules.
        settings: ``path=value`` overrides of what is not inherited.

    Raises:
        SpecError: if the parent cannot be trained on from, or a setting is of what the
            parent gives.

    Example:
        >>> import tempfile
        >>> from sparseflow.runs import Store, execute
        >>> short = ["mask=erk", "train.steps=2", "data.limit=300", "data.probe=64"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     parent = execute(make_spec("mlp-mnist/set+", settings=short), Store(folder))
        ...     spec = extend("mlp-mnist/rigl+", parent, settings=["train.steps=4", "seeds.data=7"])
        >>> spec.train.steps, spec.seeds.data, spec.weights.run == parent.spec
        (4, 7, True)
    """
    for path in map(path_of, settings):
        if path.partition(".")[0] in INHERITED:
            raise SpecError(
                f"{path} cannot be set together with --from: {', '.join(INHERITED)} are those "
                f"of run {parent.id}"
            )
    _check_parent(parent, recipe)
    made = make_spec(recipe, seed=seed or 0, scale=scale, settings=settings)
    _check_fit(made, parent)
    spec = attached(made, parent.spec)
    if seed is None:
        chosen = {path_of(s).partition(".")[2] for s in settings if path_of(s)[:6] == "seeds."}
        given = {name: getattr(spec.seeds, name) for name in chosen}
        spec = replace(spec, seeds=replace(parent.spec.seeds, **given))
    return check(spec)


def attached(spec: RunSpec, parent: RunSpec) -> RunSpec:
    """Let a specification start where another run ends."""
    return replace(
        spec,
        density=parent.density,
        data=parent.data,
        model=parent.model,
        mask=ParentMask(parent),
        init=parent.init,
        weights=ParentWeights(parent, "end"),
    )


def is_attached(spec: RunSpec) -> bool:
    """Say whether a run starts with weights and masks of the end of one other run."""
    mask, weights = spec.mask, spec.weights
    ends = isinstance(weights, ParentWeights) and weights.step == "end"
    return isinstance(mask, ParentMask) and ends and mask.run == weights.run  # type: ignore[union-attr]


def _check_parent(parent: Run, recipe: str) -> None:
    name = f"run {parent.id} ({parent.spec.recipe})"
    if not parent.finished:
        raise SpecError(f"{name} is not finished: run it to its end first")
    if parent.obsolete:
        raise SpecError(f"{name} cannot be trained on from: {parent.obsolete}")
    family, other = recipe.partition("/")[0], parent.spec.recipe.partition("/")[0]
    if family != other:
        raise SpecError(f"{recipe} is of another family than {name}: choose a recipe of {other}")


def _check_fit(spec: RunSpec, parent: Run) -> None:
    """Refuse a recipe whose name would not say what is trained."""
    name, density = f"run {parent.id} ({parent.spec.recipe})", parent.result["density"]
    if spec.train.steps == 0:
        raise SpecError(f"train.steps=0: nothing would be trained on from {name}")
    if isinstance(spec.mask, FullMask) and density < 1:
        raise SpecError(
            f"{spec.recipe} starts from a dense network, but {name} ended at density "
            f"{density:.3g}: choose a recipe such as scratch or rigl"
        )
    if not isinstance(spec.mask, FullMask) and density == 1:
        raise SpecError(
            f"{spec.recipe} trains a sparse network, but {name} is dense: choose dense or prune"
        )
    if spec.model != make_spec(parent.spec.recipe).model:
        raise SpecError(f"{spec.recipe} is of another architecture than {name}")
