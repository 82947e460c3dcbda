"""The probes of ``measure``: from words to a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sparseflow as sf
from sparseflow.cli.work import step_of
from sparseflow.core.errors import SpecError, StoreError, unknown


def probes() -> dict[str, sf.studies.StudyKind]:
    """Kinds of study by the name of their probe; ``flow`` is not a study."""
    return {kind.probe: kind for kind in sf.studies.STUDIES.values()}


def places(
    names: Sequence[str], seeds: Sequence[int], at: str, store: sf.runs.Store, **making: Any
) -> list[sf.studies.Place]:
    """Find the checkpoints that names stand for.

    Args:
        names: ids (or their start) and recipes, each with ``@STEP`` if wanted;
            a recipe stands for its runs of all seeds.
        seeds: of the recipes.
        at: step of the names that have none.
        store: where the runs are.
        making: scale and settings of the recipes.
    """
    points = []
    for name in names:
        which, mark, step = name.partition("@")
        if "/" in which:
            runs = [store.run(sf.recipes.make_spec(which, seed=seed, **making)) for seed in seeds]
            missing = [run.label for run in runs if not run.kept]
            if missing:
                raise StoreError(
                    f"{', '.join(missing)} not in {store.root}: sparseflow run {which}, with the "
                    "same --seed, --scale and --set"
                )
        else:
            runs = [store.find(which)]
        points += [sf.studies.Place(run, step_of(run, step if mark else at)) for run in runs]
    return points


def check_probe(probe: str) -> None:
    """Raise a SpecError unless there is such a probe."""
    kinds = probes()
    if probe != "flow" and probe not in kinds:
        raise SpecError(unknown("--probe", probe, ["flow", *kinds]))


def check_count(probe: str, points: Sequence[sf.studies.Place]) -> None:
    """Raise a SpecError unless a probe takes this number of checkpoints."""
    kinds = probes()
    low, high = kinds[probe].takes if probe in kinds else (1, 1)
    if low <= len(points) <= (high or len(points)):
        return
    need = f"{low}" if high else f"at least {low}"
    noun = "checkpoint" if need == "1" else "checkpoints"
    raise SpecError(f"--probe {probe} is of {need} {noun}, not of {len(points)}")


def make_study(probe: str, points: Sequence[sf.studies.Place], **options: Any) -> sf.studies.Study:
    """Build the study of a probe.

    Args:
        probe: its name.
        points: the checkpoints.
        options: of ``measure`` by name; those that are None or False are not given.

    Raises:
        SpecError: for too few or too many checkpoints, or an option of another probe.
    """
    check_count(probe, points)
    kind = probes()[probe]
    given = {name: value for name, value in options.items() if value not in (None, False)}
    odd = [f"--{name}" for name in given if name not in kind.options]
    if odd:
        raise SpecError(f"--probe {probe} takes no {' and no '.join(odd)}")
    return kind.study.of(points, **given)
