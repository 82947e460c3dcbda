"""What `reproduce` plans: everything that is measured is trained, and kept, before."""

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers.cli import Cli

from sparseflow.core.errors import SpecError
from sparseflow.paper import reproduction
from sparseflow.runs import Store, ancestors, identity
from sparseflow.studies import (
    AgreementStudy,
    DistanceStudy,
    LineStudy,
    Study,
    UpdateStudy,
    key,
)

FAMILY = "lenet5-mnist"


@pytest.mark.parametrize("scale", [1.0, 0.05, 0.01])
def test_every_study_is_of_planned_runs(tmp_path: Path, scale: float) -> None:
    plan = reproduction(FAMILY, Store(tmp_path), scale=scale)
    specs = [*plan.runs, *plan.groups]
    known = {identity(s): s for spec in specs for s in (*ancestors(spec), spec)}
    for study in plan.studies:
        for point in study.checkpoints:
            spec = known[point.run]
            if isinstance(study, UpdateStudy):
                assert point.step % spec.method.when.n == 0  # type: ignore[union-attr]
                assert 0 < point.step < spec.train.steps
            else:
                assert point.step in (0, spec.train.steps)
    keys = [key(study) for study in plan.studies]
    assert len(set(keys)) == len(keys)


def of(plan_studies: tuple[Study, ...], kind: type) -> list:
    return [study for study in plan_studies if isinstance(study, kind)]


def test_the_published_table_has_five_runs_a_row_and_more_where_half_die(tmp_path: Path) -> None:
    plan = reproduction(FAMILY, Store(tmp_path))
    (agreement,) = of(plan.studies, AgreementStudy)
    assert {group.name: len({m.run for m in group.members}) for group in agreement.groups} == {
        "lottery:orders": 5,
        "scratch:orders": 5,
        "scratch:inits": 10,
        "prune-restart:orders": 5,
        "prune": 5,
        "rigl+": 5,
        "set+": 5,
    }
    assert agreement.reference.label == "prune 0 end"
    specs = {identity(s): s for s in (*plan.groups, *plan.runs)}
    for group in agreement.groups[:4]:
        members = [specs[m.run] for m in group.members]
        parents = {identity(spec.mask.run) for spec in members}  # type: ignore[union-attr]
        assert parents == {agreement.reference.run}


def test_lines_compare_each_run_with_its_own_parent(tmp_path: Path) -> None:
    plan = reproduction(FAMILY, Store(tmp_path))
    specs = {identity(s): s for s in plan.runs}
    lines = of(plan.studies, LineStudy)
    for line in lines:
        assert identity(specs[line.start.run].mask.run) == line.end.run  # type: ignore[union-attr]
        assert line.end.label.startswith("prune ")
    assert Counter(line.aligned for line in lines) == {False: 25, True: 10}


def test_the_map_holds_no_checkpoint_twice(tmp_path: Path) -> None:
    plan = reproduction(FAMILY, Store(tmp_path))
    (distances,) = of(plan.studies, DistanceStudy)
    labels = [point.label for point in distances.points]
    assert len(set(labels)) == len(labels)
    assert {"prune 0 start", "prune 0 end", "lottery:orders 0 start"} <= set(labels)


def test_only_the_family_of_the_table_is_reproduced(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="lenet5-mnist, not of 'mlp-mnist'"):
        reproduction("mlp-mnist", Store(tmp_path))


@pytest.mark.soak
def test_reproduce_from_an_empty_store(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "report"
    cli("reproduce", FAMILY, "--scale", "0.001", "--jobs", "2", "-o", str(out))
    claims = json.loads((out / "claims.json").read_text())
    assert len(claims) > 10
    assert "Claim by claim" in (out / "index.html").read_text()
