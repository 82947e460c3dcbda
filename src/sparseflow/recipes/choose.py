"""Choose runs of a store: by id, by recipe or pattern, by what they were told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparseflow.core.errors import SpecError, StoreError
from sparseflow.recipes.departure import Departure, departure
from sparseflow.recipes.family import FAMILIES
from sparseflow.recipes.grid import grid
from sparseflow.recipes.make import expand, make_spec, makers
from sparseflow.runs.override import matches
from sparseflow.runs.run import Run
from sparseflow.runs.select import matching
from sparseflow.runs.spec import RunSpec
from sparseflow.runs.store import Store

_ID = re.compile(r"[0-9a-f]{1,16}")


@dataclass(frozen=True)
class Choice:
    """Runs to report on.

    Attributes:
        runs: finished, each once.
        family: that they are of.
        title: what was chosen, in a few words.
        published: whether all settings are the recipes' own.
    """

    runs: tuple[Run, ...]
    family: str
    title: str
    published: bool


def is_id(name: str) -> bool:
    """Say whether a word stands for the id of a run, or its start, rather than for a recipe."""
    return bool(_ID.fullmatch(name)) and name not in FAMILIES


def named(
    name: str, store: Store, *, seed: int = 0, scale: float = 1.0, settings: Sequence[str] = ()
) -> Run:
    """Return the run of an id (or its start), or the one that a recipe makes.

    Raises:
        StoreError: if no single run has that id.
        SpecError: if the recipe is unknown, or a setting makes no sense.
    """
    if is_id(name):
        return store.find(name)
    return store.run(make_spec(name, seed=seed, scale=scale, settings=settings))


def choose(
    sources: Sequence[str],
    store: Store,
    *,
    scale: float = 1.0,
    settings: Sequence[str] = (),
    where: Sequence[str] = (),
) -> Choice:
    """Choose finished runs of one family.

    Args:
        sources: families, recipes, patterns of recipes (``lenet5-mnist/rigl*``), and ids
            or their start.
        store: where the runs are.
        scale: of the recipes.
        settings: of the recipes: runs with exactly these. Several values of one are
            several variants, all of which are taken.
        where: ``path=value[,value]``: of the runs that the sources name, whatever their
            settings, those with one of these values in each field.

    Raises:
        SpecError: if a name, a pattern or a field is unknown, or runs are of several families.
        StoreError: if nothing finished is chosen.

    Example:
        >>> import tempfile
        >>> from sparseflow.runs import execute
        >>> short = ["mask=erk", "train.steps=2", "data.limit=300", "data.probe=64"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = execute(make_spec("mlp-mnist/set+", settings=short), Store(folder))
        ...     choice = choose(["mlp-mnist/set*"], Store(folder), settings=short)
        >>> [run.label for run in choice.runs], choice.published
        (['mlp-mnist/set+ seed 0'], False)
    """
    changed = [f"scale {scale:g}"] * (scale != 1) + list(settings)
    if where and changed:
        raise SpecError(
            f"--where {where[0]} looks at runs of any settings, {changed[0]} makes them: give one"
        )
    ids = [name for name in sources if is_id(name)]
    recipes = expand([name for name in sources if not is_id(name)])
    asked = [store.find(name) for name in ids]
    if unfinished := [run.label for run in asked if not run.finished]:
        raise StoreError(f"not finished: {', '.join(unfinished)}; run them to their end first")
    if where:
        named_so = [r for r in store.runs() if r.finished and r.spec.recipe in recipes]
        asked, made = _where([*asked, *named_so], where), []
    else:
        made = _made(recipes, store, scale, settings)
    family = _family([*recipes, *(run.spec.recipe for run in asked)])
    words = [*changed, *(f"where {each}" for each in where)]
    words += [f"runs {', '.join(ids)}"] if ids else []
    title = ", ".join(words) or "the full protocol"
    runs = tuple({run.id: run for run in (*asked, *made)}.values())
    if not runs:
        text = f"no finished runs of {family} ({title}) in the store: run them first"
        raise StoreError(text)
    own = not changed and all(departure(run.spec) == Departure() for run in asked)
    return Choice(runs, family, title, own)


def _made(recipes: Sequence[str], store: Store, scale: float, settings: Sequence[str]) -> list[Run]:
    """Runs of the store that the recipes make with these settings, variant by variant."""
    wanted = [
        make
        for variant in grid(settings)
        for make in makers(recipes, scale=scale, settings=variant)
    ]
    return matching(wanted, store) if wanted else []


def _family(names: Sequence[str]) -> str:
    families = sorted({name.partition("/")[0] for name in names})
    if len(families) > 1:
        raise SpecError(f"a report is of one family, not of {' and '.join(families)}")
    return families[0]


def _where(runs: Sequence[Run], where: Sequence[str]) -> list[Run]:
    """Keep runs that have one of the values in every field.

    A field that some runs lack (``method.when.n`` of a static mask) leaves those out; one
    that all lack is a mistake.
    """
    variants = grid(where)
    kept, problems = [], []
    for run in runs:
        answers = [_has(run.spec, variant) for variant in variants]
        if True in answers:
            kept.append(run)
        problems += [answer for answer in answers if isinstance(answer, SpecError)]
    if runs and not kept and len(problems) == len(runs) * len(variants):
        raise problems[0]
    return kept


def _has(spec: RunSpec, settings: Sequence[str]) -> bool | SpecError:
    try:
        return matches(spec, settings)
    except SpecError as error:
        return error
