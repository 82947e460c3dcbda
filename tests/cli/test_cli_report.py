"""Grids of runs, reports of chosen ones, and results that last beyond a store."""

import json
from pathlib import Path

import pytest
from helpers.cli import Cli
from helpers.small import TINY

from sparseflow.core.errors import SpecError, StoreError
from sparseflow.report import load_results, merge, save_results
from sparseflow.runs import Store


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


GRID = "optimizer.lr=0.1,0.05"
TOLD = settings(*(s for s in TINY if not s.startswith("train.steps")), "train.steps=4")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid") / "runs"


@pytest.fixture
def swept(cli: Cli, root: Path) -> Cli:
    """A store with two seeds of two learning rates, made once."""
    cli.store = root
    if not root.exists():
        arguments = ["sweep", "mlp-mnist/dense", "--seeds", "0-1", "--jobs", "1"]
        rows = cli.json(*arguments, *TOLD, "--set", GRID)
        told = [row["settings"][-1] for row in rows]
        assert [row["seed"] for row in rows] == ["0", "0", "1", "1"]
        assert ["optimizer.lr=0.05" in row["settings"] for row in rows] == [False, True] * 2
        assert len({row["id"] for row in rows}) == 4, told
    return cli


def report(cli: Cli, out: Path, *arguments: str) -> object:
    cli("report", *arguments, "-o", str(out))
    return load_results(out / "results.json")


def test_run_refuses_a_grid(cli: Cli) -> None:
    error = cli.fails("run", "mlp-mnist/dense", "--set", GRID)
    assert "has several values" in error
    assert "sweep" in error


def test_a_field_set_twice_is_refused(cli: Cli) -> None:
    error = cli.fails("run", "mlp-mnist/dense", *settings("density=0.1", "density=0.2"))
    assert "density is set twice" in error


def test_report_takes_all_variants_of_a_grid(swept: Cli, tmp_path: Path) -> None:
    both = report(swept, tmp_path / "both", "mlp-mnist/dense", *TOLD, "--set", GRID)
    assert len(both.runs) == 4
    assert len({run.variant for run in both.runs}) == 2
    assert f"{GRID}" in both.title
    one = report(swept, tmp_path / "one", "mlp-mnist/d*", *TOLD, "--set", "optimizer.lr=0.1")
    assert {run.id for run in one.runs} < {run.id for run in both.runs}
    assert len(one.runs) == 2


def test_report_takes_ids_and_where(swept: Cli, tmp_path: Path) -> None:
    ids = [run.id for run in Store(swept.store).runs()]
    named = report(swept, tmp_path / "ids", ids[0][:10], ids[1])
    assert {run.id for run in named.runs} == set(ids[:2])
    assert not any(run.published for run in named.runs)
    slow = report(swept, tmp_path / "where", "mlp-mnist/*", "--where", "optimizer.lr=0.05")
    lr = {run.id: run.spec.optimizer.lr for run in Store(swept.store).runs()}
    assert {run.id for run in slow.runs} == {i for i, value in lr.items() if value == 0.05}
    one = ["--where", "optimizer.lr=0.1,0.05", "--where", "seeds.data=1"]
    assert len(report(swept, tmp_path / "two", "mlp-mnist", *one).runs) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mlp-mnist", "--where", "optimizer.lrr=0.1"], ["did you mean 'lr'"]),
        (["mlp-mnist", "--where", "optimizer.lr=7"], ["no finished runs", "where optimizer.lr=7"]),
        (["mlp-mnist", "--where", "density=0.1", "--scale", "2"], ["--where", "scale 2"]),
        (["mlp-mnist/x*"], ["no recipe fits 'mlp-mnist/x*'"]),
        (["ffff"], ["'ffff' names no single run"]),
    ],
)
def test_what_cannot_be_chosen_is_one_clear_line(
    swept: Cli, arguments: list[str], words: list[str]
) -> None:
    error = swept.fails("report", *arguments)
    assert all(word in error for word in words), error


def test_results_of_two_days_are_joined(swept: Cli, tmp_path: Path) -> None:
    told = [*TOLD, "--set", "optimizer.lr=0.1"]
    ids = {r.spec.seeds.data: r.id for r in Store(swept.store).runs() if r.spec.optimizer.lr == 0.1}
    whole = report(swept, tmp_path / "whole", "mlp-mnist/dense", *told)
    days = []
    for seed in (0, 1):
        runs = tuple(run for run in whole.runs if run.id == ids[seed])
        days.append(tmp_path / f"day-{seed}.json")
        save_results(_with(whole, runs=runs), days[seed])
    joined = report(swept, tmp_path / "joined", str(days[1]), str(days[0]), str(days[0]))
    assert joined == whole
    mixed = report(swept, tmp_path / "mixed", "mlp-mnist/dense", str(days[0]), *told)
    assert mixed == whole


def test_joined_results_must_agree(swept: Cli, tmp_path: Path) -> None:
    whole = report(swept, tmp_path / "whole", "mlp-mnist/dense", *TOLD, "--set", "optimizer.lr=0.1")
    first = whole.runs[0]
    wrong = _with(whole, runs=(_with(first, test_accuracy=first.test_accuracy + 1),))
    file = tmp_path / "wrong.json"
    save_results(wrong, file)
    error = swept.fails("report", str(tmp_path / "whole" / "results.json"), str(file))
    assert first.id in error
    assert "wrong.json" in error
    again = _with(whole, runs=(_with(first, id="0" * 16),))
    with pytest.raises(StoreError, match="differ in settings, code or numerics"):
        merge({"a": whole, "b": again})
    with pytest.raises(SpecError, match="one family"):
        merge({"a": whole, "b": _with(whole, family="lenet5-mnist")})


def test_settings_that_differ_are_told_apart_when_joined(swept: Cli, tmp_path: Path) -> None:
    fast, slow = (
        report(swept, tmp_path / lr, "mlp-mnist/dense", *TOLD, "--set", f"optimizer.lr={lr}")
        for lr in ("0.1", "0.05")
    )
    extra = _with(slow, runs=slow.runs[:1])
    joined = merge({"a": fast, "b": extra})
    assert {run.id for run in joined.main} == {run.id for run in fast.runs}
    (other,) = (run for run in joined.runs if run.variant)
    assert "optimizer.lr=0.05" in other.variant
    assert joined == merge({"b": extra, "a": fast})


def test_known_results_count_as_done(cli: Cli, swept: Cli, tmp_path: Path) -> None:
    told = [*TOLD, "--set", "optimizer.lr=0.1"]
    report(swept, tmp_path / "out", "mlp-mnist/dense", *told)
    results = str(tmp_path / "out" / "results.json")
    cli.store = tmp_path / "elsewhere"
    out, err = cli(
        "sweep", "mlp-mnist/dense", "--seeds", "0-1", *told, "--known", results, "--json"
    )
    rows = json.loads(out)
    assert [row["state"] for row in rows] == ["known"] * 2
    assert all(row["test_accuracy"] > 0 for row in rows)
    assert "2 of 2 runs are known" in err
    assert not Store(cli.store).runs()


def test_a_known_parent_is_made_for_its_child(cli: Cli, tmp_path: Path) -> None:
    told = ["--scale", "0.001", *settings("data.probe=64", "data.limit=300")]
    pruned = cli.json("run", "mlp-mnist/prune", *told)
    report(cli, tmp_path / "out", "mlp-mnist/prune", *told)
    results = str(tmp_path / "out" / "results.json")
    cli.store = tmp_path / "elsewhere"
    names = ["mlp-mnist/prune", "mlp-mnist/scratch"]
    out, err = cli("sweep", *names, *told, "--known", results, "--json")
    assert "1 of 2 runs are known from results; 1 known run is made here too" in err
    assert [row["state"] for row in json.loads(out)] == ["finished"] * 2
    assert pruned["id"] in {run.id for run in Store(cli.store).runs()}


def _with(part, **changes):
    import msgspec  # noqa: PLC0415

    return msgspec.structs.replace(part, **changes)
