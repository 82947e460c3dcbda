"""Which runs share their settings, and what to call those that differ."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from sparseflow.core.expressions import written
from sparseflow.core.values import UnknownValue, Value, kind_of
from sparseflow.recipes.departure import departure
from sparseflow.report.results import described
from sparseflow.runs import Run, RunSpec, identity, with_seeds
from sparseflow.runs.hashing import NAMELESS
from sparseflow.runs.spec import fields

Setting = tuple[str, float | str]


class Variant(NamedTuple):
    """What is different about a run.

    Attributes:
        label: in which settings it differs from most; empty for those that most have.
        varied: each setting in which the runs of its recipe differ, with its own value.
    """

    label: str
    varied: tuple[Setting, ...]


def short_name(spec: RunSpec) -> str:
    """Recipe without its family."""
    return spec.recipe.rpartition("/")[2] or "run"


def shared_settings(runs: Sequence[Run]) -> tuple[float, int]:
    """Density and steps that most runs have; the longer ones where it is a tie."""
    counts = Counter((run.spec.density, run.spec.train.steps) for run in runs)
    return max(counts, key=lambda pair: (counts[pair], pair[1], pair[0]))


def variants(runs: Sequence[Run], density: float, steps: int) -> dict[str, Variant]:
    """Name what is different about each run, by its id.

    Runs of one recipe that differ in more than their seeds must not enter one
    median. Seeds aside, equal settings have equal hashes.
    """
    recipes: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        recipes[short_name(run.spec)][identity(with_seeds(run.spec, 0), run.code)].append(run)
    labels: dict[str, Variant] = {}
    for settings in recipes.values():
        leaves = {key: dict(_settings(group[0])) for key, group in settings.items()}
        fitting = [
            key
            for key, group in settings.items()
            if (group[0].spec.density, group[0].spec.train.steps) == (density, steps)
        ]
        main = max(
            fitting,
            key=lambda key: (len(settings[key]), -_told(settings[key][0].spec), key),
            default=None,
        )
        varied, names = _varied(leaves), _labels(leaves, main)
        for key, group in settings.items():
            labels |= {run.id: Variant(names[key], varied[key]) for run in group}
    return labels


def _told(spec: RunSpec) -> int:
    """How much the recipe was told: of equally many runs those of its own settings are the main."""
    how = departure(spec)
    return 0 if how is None else len(how.settings) + (how.scale != 1)


def _labels(leaves: dict[str, dict[str, float | str]], main: str | None) -> dict[str, str]:
    """A label for each of several settings, all different, and none for the main one."""
    labels = {key: _label(each, leaves.get(main or "")) for key, each in leaves.items()}
    counts = Counter(labels.values())
    labels = {
        key: label if counts[label] == 1 else f"{label}, setting {key[:6]}".lstrip(", ")
        for key, label in labels.items()
    }
    return labels | ({main: ""} if main else {})


def _label(own: dict[str, float | str], main: dict[str, float | str] | None) -> str:
    if main is None:
        return described([(path, own[path]) for path in ("density", "train.steps")])
    return described(_own([(path, v) for path, v in own.items() if main.get(path) != v]))


def _varied(leaves: dict[str, dict[str, float | str]]) -> dict[str, tuple[Setting, ...]]:
    """Settings in which specifications differ, those of parents only where there are no others."""
    paths = dict.fromkeys(path for each in leaves.values() for path in each)
    differing = [p for p in paths if len({each.get(p) for each in leaves.values()}) > 1]
    return {
        key: _own([(path, each[path]) for path in differing if path in each])
        for key, each in leaves.items()
    }


def _own(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    own = [(path, value) for path, value in settings if ".run." not in path]
    return tuple(own or settings)


def _settings(run: Run) -> Iterator[Setting]:
    yield from _leaves(run.spec)
    yield from ((f"code {each.file}", each.digest) for each in run.code)


def _leaves(part: Any, path: str = "") -> Iterator[Setting]:
    """Every field that enters the identity, seeds aside; of a part that has kinds, its kind too."""
    if isinstance(part, UnknownValue):
        yield path, part.kind
    elif isinstance(part, Value):
        yield path, kind_of(part) or type(part).__name__
        for field in dataclasses.fields(part):  # type: ignore[arg-type]
            if field.init and field.name != "kind":
                yield from _leaves(getattr(part, field.name), f"{path}.{field.name}")
    elif isinstance(part, msgspec.Struct):
        if (tag := part.__struct_config__.tag) is not None:
            yield path, str(tag)
        for field in fields(type(part)):
            if field.name not in (*NAMELESS, "seeds"):
                yield from _leaves(getattr(part, field.name), f"{path}.{field.name}".lstrip("."))
    elif isinstance(part, int | float) and not isinstance(part, bool):
        yield path, float(part)
    else:
        yield path, written(part) if callable(part) else str(part)
