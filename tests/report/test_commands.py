"""The page's commands make the very runs of the report, in an empty store."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.cli import Cli
from helpers.made import put, results_of
from helpers.small import alone, tiny
from msgspec.structs import replace

from sparseflow.core.code import use
from sparseflow.core.expressions import parse
from sparseflow.paper import write_report
from sparseflow.recipes import make_spec
from sparseflow.recipes.extend import attached
from sparseflow.report import collect, load_results
from sparseflow.report.commands import Commands, commands
from sparseflow.runs import Run, RunSpec, Store, execute, identity
from sparseflow.topology import METHODS

ROOT = Path(__file__).resolve().parents[2]


def words(line: str) -> list[str]:
    """The words of a command, as the shell reads them."""
    return shlex.split(line.replace("\\\n", " "))


def specs(lines: Sequence[str]) -> list[RunSpec]:
    """What the sweeps among some commands make."""
    made = []
    for line in lines:
        _, verb, *rest = words(line)
        if verb != "sweep":
            continue
        options: dict[str, list[str]] = {"--set": [], "--scale": ["1"]}
        names = []
        while rest and not rest[0].startswith("-"):
            names.append(rest.pop(0))
        for option, value in zip(rest[::2], rest[1::2], strict=True):
            options.setdefault(option, []).append(value)
        first, _, last = options["--seeds"][0].partition("-")
        made += [
            make_spec(name, seed=s, scale=float(options["--scale"][-1]), settings=options["--set"])
            for name in names
            for s in range(int(first), int(last or first) + 1)
        ]
    return made


def of(store: Store, wanted: Sequence[RunSpec], family: str) -> tuple[list[Run], Commands]:
    runs = [put(store, spec) for spec in wanted]
    return runs, commands(collect(runs, family=family, title=""))


@pytest.mark.parametrize(
    "told",
    [
        [{"settings": ["density=0.02", "optimizer.lr=0.3"], "seed": s} for s in range(3)],
        [{"scale": 0.05}, {"scale": 0.05, "settings": ["method.when.n=7"]}],
        [{"settings": ["method=set(every(50), drop=cosine(0.2))", "mask=erk"]}],
        [{"settings": ["optimizer=adam", "init=fan_in", "data.limit=9000"], "seed": 4}],
        [{"settings": [f"mask.run.optimizer.lr={lr}"]} for lr in (0.1, 0.2)],
        [{"settings": ["seeds.data=3"]}, {"settings": ["seeds.init=2"], "seed": 3}],
    ],
    ids=["density", "scale", "method", "names", "parent", "seeds"],
)
def test_settings_make_the_same_runs(tmp_path: Path, told: list[dict]) -> None:
    wanted = [make_spec("mlp-mnist/rigl+", **each) for each in told]
    runs, shown = of(Store(tmp_path), wanted, "mlp-mnist")
    assert {identity(spec) for spec in specs(shown.lines)} == {run.id for run in runs}
    assert (shown.guessed, shown.without, shown.code) == (0, (), ())


def test_groups_and_inits_and_several_scales(tmp_path: Path) -> None:
    family = "lenet5-mnist"
    wanted = [make_spec(f"{family}/scratch:inits", seed=s, scale=0.05) for s in (1, 2)]
    wanted += [make_spec(f"{family}/init-liu-0.95", seed=s) for s in (0, 1)]
    wanted += [make_spec(f"{family}/dense", seed=0)]
    runs, shown = of(Store(tmp_path), wanted, family)
    assert {identity(spec) for spec in specs(shown.lines)} == {run.id for run in runs}
    report = words(shown.lines[-1])
    assert report[1] == "report"
    assert {i for i in report if i in {run.id[:8] for run in runs}} == {r.id[:8] for r in runs}


def test_a_whole_family_goes_by_its_name(tmp_path: Path) -> None:
    from sparseflow.recipes import expand  # noqa: PLC0415

    wanted = [make_spec(name, seed=s) for name in expand(["resnet20-cifar10"]) for s in (0, 1)]
    _, shown = of(Store(tmp_path), wanted, "resnet20-cifar10")
    assert shown.lines == (
        "sparseflow sweep resnet20-cifar10 --seeds 0-1 --jobs 2",
        "sparseflow report resnet20-cifar10 -o report/",
    )


def test_code_of_the_users_is_loaded_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "page_mine.py"
    file.write_text(
        "from dataclasses import dataclass\nimport sparseflow as sf\n"
        '@sf.register_method("page-mine")\n@dataclass(frozen=True)\n'
        "class Mine(sf.RigL):\n    pass\n"
    )
    use(file)
    try:
        runs, shown = of(Store(tmp_path / "runs"), [make_spec("mlp-mnist/page-mine+")], "mlp-mnist")
        assert words(shown.lines[0])[-2:] == ["--use", "page_mine.py"]
        assert shown.code == (f"page_mine.py {runs[0].code[0].digest}",)
    finally:
        METHODS._entries.pop("page-mine", None)


def test_a_run_trained_on_comes_after_its_parent(tmp_path: Path) -> None:
    parent = make_spec("mlp-mnist/rigl+", scale=0.1)
    spec = attached(make_spec("mlp-mnist/rigl+", scale=0.2), parent)
    _, shown = of(Store(tmp_path), [spec], "mlp-mnist")
    assert [identity(made) for made in specs(shown.lines)] == [identity(parent)]
    assert f"--from {identity(parent)} --scale 0.2" in shown.lines[1]


def test_what_no_recipe_makes_is_said(tmp_path: Path) -> None:
    method = parse("rigl(every(10))", METHODS)
    odd = replace(make_spec("mlp-mnist/rigl+"), recipe="mlp-mnist/odd", method=method)
    runs, shown = of(Store(tmp_path), [odd], "mlp-mnist")
    assert (shown.lines, shown.without) == ((), (runs[0].id,))


def test_results_that_record_no_settings_say_that_commands_are_concluded() -> None:
    results = load_results(ROOT / "results" / "resnet20-cifar10.json")
    shown = commands(results)
    assert shown.guessed == len(results.runs)
    assert all("--scale 0.02" in line for line in shown.lines)


def test_the_evidence_is_one_command() -> None:
    results = load_results(ROOT / "results" / "lenet5-mnist.json")
    assert commands(results).lines == ("sparseflow reproduce lenet5-mnist -o report/",)


@pytest.mark.slow
def test_the_printed_commands_run_to_the_same_ids(cli: Cli, tmp_path: Path) -> None:
    wanted = [tiny("mlp-mnist/rigl+", seed=1), tiny("mlp-mnist/prune", seed=1)]
    wanted += [alone("optimizer.lr=0.1"), alone("method.drop=cosine(0.2)")]
    first = Store(tmp_path / "first")
    runs = [execute(spec, first) for spec in wanted]
    write_report(collect(runs, family="mlp-mnist", title="tiny"), tmp_path / "page")
    read = results_of(tmp_path / "page")
    for line in commands(read).lines:
        cli(*words(line)[1:]) if " sweep " in line else None
    again = {run.id for run in Store(cli.store).runs() if run.finished}
    assert again == {run.id for run in first.runs() if run.finished}
