"""Which runs share their settings, and what to call those that differ."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from sparseflow.runs import Run, RunSpec, identity, with_seeds
from sparseflow.runs.describe import ABSENT, pairs, text_of

SHOWN = 3
"""Differences that a label names."""


def short_name(spec: RunSpec) -> str:
    """Recipe without its family."""
    return spec.recipe.rpartition("/")[2] or "run"


def shared_settings(runs: Sequence[Run]) -> tuple[float, int]:
    """Density and steps that most runs have; the longer ones where it is a tie."""
    counts = Counter((run.spec.density, run.spec.train.steps) for run in runs)
    return max(counts, key=lambda pair: (counts[pair], pair[1], pair[0]))


def variants(runs: Sequence[Run], density: float, steps: int) -> dict[str, str]:
    """Name what is different about each run, by its id; empty for the settings most share.

    Runs of one recipe that differ in more than their seeds must not enter one
    median. Seeds aside, equal settings have equal hashes.
    """
    recipes: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        recipes[short_name(run.spec)][identity(with_seeds(run.spec, 0))].append(run)
    labels: dict[str, str] = {}
    for settings in recipes.values():
        fitting = {
            key: group
            for key, group in settings.items()
            if (group[0].spec.density, group[0].spec.train.steps) == (density, steps)
        }
        main = max(fitting, key=lambda key: (len(fitting[key]), key), default=None)
        for key, group in settings.items():
            spec = group[0].spec
            if key == main:
                label = ""
            elif main is not None:
                label = _differences(spec, settings[main][0].spec) or f"setting {key[:6]}"
            else:
                label = f"density={spec.density}, train.steps={spec.train.steps}"
            labels |= {run.id: label for run in group}
    return labels


def _differences(spec: RunSpec, base: RunSpec) -> str:
    found = [
        (path, text_of(mine))
        for path, _, mine in pairs(base, spec)
        if mine != ABSENT and not {"recipe", "seeds"} & set(path.split("."))
    ]
    own = [(path, v) for path, v in found if ".run." not in path] or found
    more = ["…"] if len(own) > SHOWN else []
    return ", ".join([f"{path}={value}" for path, value in own[:SHOWN]] + more)
