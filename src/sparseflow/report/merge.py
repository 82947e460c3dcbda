"""Join the compact results of several machines or days."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from sparseflow.core.errors import SpecError, StoreError
from sparseflow.report.collect import sorted_runs, sorted_starts
from sparseflow.report.results import Results, RunValues

T = TypeVar("T")


def merge(parts: Mapping[str, Results]) -> Results:
    """Join results of one family; each run enters once.

    A run that several parts hold must have equal values in all of them: one id names one
    outcome. Parts of one title, density and length share their settings. The runs of the
    others are told apart by :attr:`RunValues.variant`, which names their part's title.
    What studies found is taken over; where two parts hold records of one sort they must
    be the same.

    Args:
        parts: results by what to call them in an error, such as their file.

    Raises:
        SpecError: if they are of several families.
        StoreError: naming the run whose values differ, or the recipe and seed that two
            parts of one title give two ids.

    Example:
        >>> from sparseflow.report.results import Results
        >>> one = Results("mlp-mnist", "the full protocol", 0.02, 11719, (), ())
        >>> merge({"a.json": one, "b.json": one}) == one
        True
    """
    families = sorted({part.family for part in parts.values()})
    if len(families) != 1:
        raise SpecError(f"a report is of one family, not of {' and '.join(families)}")
    if len(parts) == 1:
        return next(iter(parts.values()))
    titles = _titles(parts.values())
    main = titles[0]
    labelled = {
        name: msgspec.structs.replace(part, runs=tuple(_labelled(part, main))).runs
        for name, part in parts.items()
    }
    runs = _union(labelled, "run", lambda run: run.id, _unlabelled)
    _check_one_setting(runs, parts)
    starts = {name: part.at_start for name, part in parts.items()}
    return Results(
        family=families[0],
        title="; ".join(dict.fromkeys(title for title, _, _ in titles)),
        density=main[1],
        steps=main[2],
        runs=tuple(sorted_runs(runs)),
        at_start=tuple(sorted_starts(_union(starts, "run", lambda run: run.id, lambda run: run))),
        evidence=_evidence(parts),
    )


def _titles(parts: Iterable[Results]) -> list[tuple[str, float, int]]:
    """Title, density and length of the parts, those of the most runs first."""
    counts = Counter[tuple[str, float, int]]()
    for part in parts:
        counts[part.title, part.density, part.steps] += len(part.main) + len(part.at_start)
    return sorted(counts, key=lambda key: -counts[key])


def _labelled(part: Results, main: tuple[str, float, int]) -> Iterable[RunValues]:
    """Name the settings of a part's runs, if they are not those that most runs share."""
    other = [part.title] * (part.title != main[0])
    other += [f"density={part.density}"] * (part.density != main[1])
    other += [f"train.steps={part.steps}"] * (part.steps != main[2])
    for run in part.runs:
        words = [*other, *([run.variant] if run.variant else [])]
        yield msgspec.structs.replace(run, variant=", ".join(words))


def _unlabelled(run: RunValues) -> RunValues:
    """Values of a run without what depends on the runs around it."""
    return msgspec.structs.replace(run, variant="", published=False)


def _union(
    parts: Mapping[str, Sequence[T]],
    what: str,
    key: Callable[[T], Hashable],
    value: Callable[[T], object],
) -> list[T]:
    chosen: dict[Hashable, tuple[str, T]] = {}
    for name, each_of in parts.items():
        for each in each_of:
            where, there = chosen.setdefault(key(each), (name, each))
            if value(there) != value(each):
                raise StoreError(
                    f"{what} {key(each)} has other values in {name} than in {where}: "
                    "one of the files is wrong; report on them apart"
                )
    return [each for _, each in chosen.values()]


def _check_one_setting(runs: Sequence[RunValues], parts: Mapping[str, Results]) -> None:
    """Refuse what would enter one median though its settings differ."""
    ids: dict[tuple[str, str, tuple[int, int, int]], str] = {}
    for run in runs:
        other = ids.setdefault((run.recipe, run.variant, run.seeds), run.id)
        if other != run.id:
            raise StoreError(
                f"{run.recipe} seed {run.seed} is run {other} and run {run.id} in "
                f"{', '.join(parts)}: they differ in settings, code or numerics; report on the "
                "files apart"
            )


def _evidence(parts: Mapping[str, Results]) -> tuple:
    """What studies found, sort by sort."""
    sorts: dict[type, tuple[str, list]] = {}
    for name, part in parts.items():
        for sort in dict.fromkeys(type(each) for each in part.evidence):
            records = [each for each in part.evidence if type(each) is sort]
            where, there = sorts.setdefault(sort, (name, records))
            if there != records:
                raise StoreError(
                    f"{name} and {where} hold different records of {sort.__name__}: a report has "
                    "one set of them; report on the files apart"
                )
    return tuple(each for _, records in sorts.values() for each in records)
