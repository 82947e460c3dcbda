"""The commands that make the runs of a report again, id for id."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sparseflow.core.code import Code, to_use
from sparseflow.core.errors import SpecError
from sparseflow.recipes import FAMILIES, expand
from sparseflow.recipes.departure import code_behind, departure
from sparseflow.recipes.extend import is_attached
from sparseflow.report.results import Results, RunValues, StartValues, Told
from sparseflow.runs import Run, RunSpec
from sparseflow.runs.hashing import code_of_run

WIDTH = 92
"""Signs of a line of a command."""


TELLING = 3
"""Schema of results from which on runs say how they were made."""


class Commands(NamedTuple):
    """How to run the same again.

    Attributes:
        lines: commands, in the order in which they are run.
        code: names and digests of the user's files that they load.
        guessed: how many runs come from files that do not say how they were made; their
            commands follow from density and length.
        without: runs that no recipe makes.
    """

    lines: tuple[str, ...]
    code: tuple[str, ...]
    guessed: int
    without: tuple[str, ...]


def told(run: Run) -> Told | None:
    """Find what to say to a recipe for a run; None if that would not make it, id for id."""
    return None if run.obsolete else _told(run.spec, run.code)


def _told(spec: RunSpec, code: Sequence[Code]) -> Told | None:
    how = departure(spec)
    if how is None or not how.exact:
        return None
    codes = code_behind(spec, code)
    parent = None
    if how.origin and is_attached(spec):
        older: RunSpec = spec.weights.run  # type: ignore[union-attr]
        parent = _told(older, code_of_run(older))
    return Told(
        recipe=spec.recipe,
        seed=spec.seeds.data,
        scale=how.scale,
        settings=how.settings,
        use=to_use(codes),
        code=tuple(f"{each.file} {each.digest}" for each in codes),
        origin=how.origin,
        parent=parent,
    )


def commands(results: Results) -> Commands:
    """Return the commands that make all runs again in an empty store, and report on them."""
    runs: list[RunValues | StartValues] = [*results.runs, *results.at_start]
    every = {run.id: run.told or _guess(results, run) for run in runs}
    known = [each for each in every.values() if each is not None]
    without = tuple(run.id for run in runs if every[run.id] is None)
    guessed = sum(run.told is None and every[run.id] is not None for run in runs)
    code = tuple(sorted({name for each in known for name in each.code}))
    again = _reproduced(results, known) if results.evidence else None
    if again:
        return Commands((again,), code, guessed, without)
    trained_on = [each for each in known if each.origin]
    first = [each.parent for each in trained_on if each.parent]
    recipes = [*first, *(each for each in known if not each.origin)]
    variants = _variants(recipes)
    lines = [
        *(_line("sweep", names, ["--seeds", _seeds(seeds), "--jobs", "2"], how)
          for how, seeds, names in variants),
        *dict.fromkeys(
            _line("run", [each.recipe], ["--seed", str(each.seed), "--from", each.origin], each)
            for each in trained_on
        ),
        _report(variants, trained_on, every),
    ]  # fmt: skip
    return Commands(tuple(lines) if known else (), code, guessed, without)


Way = tuple[Told, tuple[int, ...], list[str]]


def _variants(known: Iterable[Told]) -> list[Way]:
    """Recipes that are told the same, over the same seeds: one command each."""
    seeds: dict[tuple[Told, str], set[int]] = defaultdict(set)
    for each in known:
        seeds[_same(each), each.recipe].add(each.seed)
    grouped: dict[tuple[Told, tuple[int, ...]], list[str]] = defaultdict(list)
    for (how, recipe), numbers in seeds.items():
        grouped[how, tuple(sorted(numbers))].append(recipe)
    return [(how, numbers, _names(recipes)) for (how, numbers), recipes in grouped.items()]


def _same(how: Told) -> Told:
    return Told("", 0, how.scale, how.settings, how.use)


def _names(recipes: list[str]) -> list[str]:
    """The family alone, where these are all of its recipes."""
    family = recipes[0].partition("/")[0]
    return [family] if family in FAMILIES and set(expand([family])) == set(recipes) else recipes


def _report(variants: list[Way], trained_on: list[Told], every: dict[str, Told | None]) -> str:
    """Of one variant its recipes are named, of several the runs."""
    shared = {how for how, _, _ in variants}
    if len(shared) == 1 and not trained_on:
        names = [name for _, _, names in variants for name in names]
        return _line("report", list(dict.fromkeys(names)), ["-o", "report/"], shared.pop())
    ids = [run for run, how in every.items() if how is not None]
    use = tuple(dict.fromkeys(name for how in shared for name in how.use))
    return _line("report", [run[:8] for run in ids], ["-o", "report/"], Told("", 0, use=use))


def _reproduced(results: Results, known: list[Told]) -> str | None:
    """The one command of the paper's evidence, where nothing else was said."""
    ways = {(how.scale, how.settings, how.use) for how in known}
    if len(ways) != 1:
        return None
    ((scale, settings, use),) = ways
    if any(not setting.startswith("execution=") for setting in settings):
        return None
    forced = [word for s in settings for word in ("--execution", s.partition("=")[2])]
    how = Told("", 0, scale, use=use)
    return _line("reproduce", [results.family], [*forced, "-o", "report/"], how)


def _line(verb: str, names: Sequence[str], options: Sequence[str], how: Told) -> str:
    """One command, broken into lines where it is long."""
    parts = [*map(shlex.quote, names), *_pairs(options)]
    parts += [f"--scale {how.scale:g}"] if how.scale != 1 else []
    parts += [f"--set {shlex.quote(setting)}" for setting in how.settings]
    parts += [f"--use {shlex.quote(name)}" for name in how.use]
    lines = [f"sparseflow {verb}"]
    for part in parts:
        if len(lines[-1]) + len(part) > WIDTH:
            lines.append("   ")
        lines[-1] += f" {part}"
    return " \\\n".join(lines)


def _pairs(options: Sequence[str]) -> list[str]:
    return [" ".join(map(shlex.quote, options[i : i + 2])) for i in range(0, len(options), 2)]


def _seeds(numbers: Sequence[int]) -> str:
    """Write seeds as ``--seeds`` takes them.

    >>> _seeds((0, 1, 2, 5)), _seeds((3,))
    ('0-2,5', '3')
    """
    texts, begun = [], 0
    for place, number in enumerate(numbers):
        if place + 1 == len(numbers) or numbers[place + 1] != number + 1:
            first = numbers[begun]
            texts.append(str(first) if first == number else f"{first}-{number}")
            begun = place + 1
    return ",".join(texts)


def _guess(results: Results, run: RunValues | StartValues) -> Told | None:
    """What a file of an earlier version leaves to conclude: from the run's density and length."""
    if results.schema >= TELLING:
        return None
    try:
        family = FAMILIES[results.family]
    except SpecError:
        return None
    if isinstance(run, StartValues):
        name = f"{results.family}/init-{run.init}-{run.sparsity:.2f}"
        return Told(name, int(run.seed)) if run.seed.isdigit() else None
    settings, scale = [], float(f"{run.steps / family.train.steps:.3g}")
    if run.density != family.density:
        settings.append(f"density={run.density}")
    if round(family.train.steps * scale) != run.steps:
        scale, settings = 1.0, [*settings, f"train.steps={run.steps}"]
    recipe = f"{results.family}/{run.recipe}"
    return Told(recipe, run.seeds[2], scale, tuple(settings)) if not run.variant else None
