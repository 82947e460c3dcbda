"""Runs that train on from the end of another: what they take, and how to make them again."""

import sys
from pathlib import Path

import pytest
from helpers.made import put
from helpers.own import clean_slate
from msgspec.structs import replace

import sparseflow as sf
from sparseflow.recipes import extend, make_spec
from sparseflow.recipes.departure import command
from sparseflow.runs import Run, Store
from sparseflow.runs.spec import Seeds


@pytest.fixture
def parent(tmp_path: Path) -> Run:
    spec = make_spec("mlp-mnist/rigl+", settings=["mask=erk"])
    return put(Store(tmp_path / "runs"), replace(spec, seeds=Seeds(1, 2, 3)))


@pytest.mark.parametrize(
    ("seed", "settings", "seeds"),
    [
        (None, [], Seeds(1, 2, 3)),
        (None, ["seeds.data=9"], Seeds(1, 2, 9)),
        (None, ["seeds.data=9", "seeds.mask=0"], Seeds(1, 0, 9)),
        (4, ["seeds.data=9"], Seeds(4, 4, 9)),
    ],
)
def test_seeds_that_are_not_given_are_the_parents(
    parent: Run, seed: int | None, settings: list[str], seeds: Seeds
) -> None:
    assert extend("mlp-mnist/set+", parent, seed=seed, settings=settings).seeds == seeds


def test_the_command_loads_what_the_recipe_and_the_run_rest_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family in a module, a method in a file."""
    text = "import sparseflow as sf\nfrom dataclasses import dataclass\n"
    (tmp_path / "mine_family.py").write_text(
        f"{text}@sf.register_family\ndef family():\n"
        "    from sparseflow.runs import Model, Optimizer\n"
        "    return sf.Family('mine', Model('mlp'), 0.1, Optimizer())\n"
    )
    (tmp_path / "mine_method.py").write_text(
        f"{text}@sf.register_method('slow')\n@dataclass(frozen=True)\n"
        "class Slow(sf.RigL):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with clean_slate():
        sf.use("mine_family")
        sf.use(tmp_path / "mine_method.py")
        run = put(Store(tmp_path / "runs"), make_spec("mine/slow+"))
        assert command(run).endswith("--use mine_family --use mine_method.py")
    sys.modules.pop("mine_family", None)
