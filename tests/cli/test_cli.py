"""The command line: what it prints, and one clear line for every bad input."""

import gzip
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.cli import Cli

import sparseflow
from sparseflow.cli.app import app
from sparseflow.cli.work import parse_seeds
from sparseflow.data import DATA, mnist

TINY = [
    "train.steps=12", "train.keep=4", "measure.every=4", "measure.evaluate=12",
    "data.probe=64", "data.limit=300",
]  # fmt: skip


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


@pytest.mark.parametrize(
    "command",
    [
        "demo", "list", "show", "diff", "run", "sweep", "measure", "report", "reproduce", "export",
        "tensorboard",
    ],
)  # fmt: skip
def test_every_command_has_help_that_teaches(cli: Cli, command: str) -> None:
    out, _ = cli(command, "--help")
    assert "Usage: sparseflow" in out
    assert len(out.splitlines()) > 8


def test_help_prints_the_brackets_of_extras(cli: Cli) -> None:
    for command, extra in (("export", "onnx"), ("tensorboard", "tensorboard")):
        assert f"'sparseflow[{extra}]'" in cli(command, "--help")[0]


def test_help_prints_all_of_what_is_written(cli: Cli) -> None:
    """Nothing in a docstring or in the words for an option is taken for markup."""
    for command in app.registered_commands:
        words = [command.callback.__doc__ or ""]
        for hint in command.callback.__annotations__.values():
            words += re.findall(r"help=['\"](.*?)['\"]", str(hint))
        brackets = re.findall(r"\[[\w ,.]+\]", " ".join(words))
        shown = cli(command.name or command.callback.__name__, "--help")[0]
        assert all(each in shown for each in brackets), (command.callback.__name__, brackets)


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    out, err = cli()
    assert "Start with: sparseflow demo" in out
    assert not err


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    assert cli("--version")[0].strip() == sparseflow.__version__


HEAVY = "{'torch', 'numpy', 'msgspec', 'matplotlib', 'sklearn', 'scipy', 'ray', 'jinja2'}"


@pytest.mark.parametrize("words", ["--version", "--help", "run --help", "report --help"])
def test_help_and_version_import_nothing_that_is_slow_to_import(
    elsewhere: Callable[[str], str], words: str
) -> None:
    out = elsewhere(
        f"import atexit, sys; sys.argv[1:] = {words.split()}\n"
        f"atexit.register(lambda: print('imported', {HEAVY} & set(sys.modules)))\n"
        "from sparseflow.cli import main; main()"
    )
    assert len(out.splitlines()) > 1
    assert out.splitlines()[-1] == "imported set()"


def test_listing_imports_nothing_that_only_training_or_drawing_needs(
    elsewhere: Callable[[str], str], tmp_path: Path
) -> None:
    """The compiler alone takes longer to import than all the rest."""
    slow = "{'torch._dynamo', 'matplotlib', 'sklearn', 'scipy', 'ray'}"
    out = elsewhere(
        f"import atexit, sys; sys.argv[1:] = ['list', '--store', {str(tmp_path)!r}]\n"
        f"atexit.register(lambda: print('imported', {slow} & set(sys.modules)))\n"
        "from sparseflow.cli import main; main()"
    )
    assert "rigl+" in out
    assert out.splitlines()[-1] == "imported set()"


def test_list_shows_recipes_and_runs(cli: Cli) -> None:
    assert "rigl-inverted+" in cli("list")[0]
    cli("run", "mlp-mnist/dense", *settings(*TINY))
    listed = cli.json("list")
    assert "lenet5-mnist/rigl+" in listed["recipes"]
    (run,) = listed["runs"]
    assert (run["recipe"], run["state"], run["steps"]) == ("mlp-mnist/dense", "finished", 12)
    assert "mlp-mnist/dense" in cli("list")[0]


def test_run_then_measure(cli: Cli) -> None:
    run = cli.json("run", "mlp-mnist/dense", "--seed", "3", "--threads", "1", *settings(*TINY))
    assert (Path(run["path"]) / "result.json").is_file()
    assert run["seed"] == "3"
    by_id = cli.json("measure", run["id"][:8], "--at", "4")
    by_name = cli.json("measure", "mlp-mnist/dense", "--seed", "3", "--at", "4", *settings(*TINY))
    assert by_id == by_name
    assert by_id["step"] == 4
    assert by_id["flow"]["total"] > 0
    text, _ = cli("measure", run["id"], "--at", "start")
    assert "gradient norm, kernels" in text
    assert "by layer" in text


@pytest.mark.slow
def test_sweep_skips_what_is_finished(cli: Cli) -> None:
    names = ["mlp-mnist/dense", "mlp-mnist/init-fan-in-0.90"]
    arguments = ["sweep", *names, "--seeds", "0-1", *settings("data.probe=64", "data.limit=300")]
    short = settings("train.steps=0")
    rows = cli.json(*arguments, *short)
    assert [row["state"] for row in rows] == ["finished"] * 4
    _, err = cli(*arguments, *short)
    assert "4 finished" in err


def test_seeds_are_ranges_and_lists() -> None:
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "lenet5-mnist/riggl"], ["riggl", "did you mean"]),
        (["run", "lenet5/rigl"], ["lenet5", "did you mean 'lenet5-mnist'"]),
        (["run", "mlp-mnist/dense", "--set", "trian.steps=1"], ["did you mean 'train'"]),
        (["run", "mlp-mnist/prune", "--set", "density=2"], ["density=2", "between 0 and 1"]),
        (["run", "mlp-mnist/prune", "--set", "density=nan"], ["density=nan", "between 0 and 1"]),
        (["run", "mlp-mnist/prune", "--set", "train.steps=100"], ["cannot finish"]),
        (["run", "mlp-mnist/dense", "--scale", "-1"], ["scale=-1"]),
        (["run", "mlp-mnist/dense", "--device", "tpu9"], ["tpu9"]),
        (["run", "mlp-mnist/dense", "--sed", "3"], ["--sed", "--seed"]),
        (["runn"], ["runn", "run"]),
        (["run"], ["recipe"]),
        (["sweep", "mlp-mnist", "--seeds", "a-b"], ["a-b", "0-4"]),
        (["sweep", "mlp-mnst"], ["mlp-mnst", "did you mean 'mlp-mnist'"]),
        (["measure", "abc"], ["abc", "names no single run"]),
        (["measure", "mlp-mnist/dense"], ["mlp-mnist/dense seed 0 not in", "sparseflow run"]),
        (["run", "mlp-mnist/dense", "--device", "meta"], ["meta"]),
        (["measure", "mlp-mnist/dense", "--probe", "hesian"], ["hesian", "hessian"]),
        (["reproduce", "mlp-mnist"], ["mlp-mnist", "lenet5-mnist"]),
        (["report", "mlp-mnist/dense", "lenet5-mnist/dense"], ["one family"]),
        (["report", "a.json", "--scale", "0.5"], ["--scale 0.5", "name a family"]),
        (["report", "mlp-mnist"], ["no finished runs"]),
        (["report", "nowhere.json"], ["nowhere.json"]),
    ],
)
def test_bad_input_is_one_clear_line(cli: Cli, arguments: list[str], words: list[str]) -> None:
    error = cli.fails(*arguments)
    assert all(word in error for word in words), error


def test_a_loss_that_is_not_finite_is_one_clear_line(cli: Cli) -> None:
    error = cli.fails("run", "mlp-mnist/dense", *settings(*TINY, "optimizer.lr=1e30"))
    assert "at step" in error


def test_a_damaged_data_file_is_one_clear_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mnist"
    shutil.copytree(mnist.FOLDER, folder)
    name = "t10k-labels-idx1-ubyte.gz"
    (folder / name).write_bytes(gzip.compress(b"not labels"))
    damaged = replace(DATA["mnist"], load=lambda *_: mnist.load_mnist.__wrapped__(folder))
    monkeypatch.setitem(DATA._entries, "mnist", replace(DATA.entry("mnist"), value=damaged))
    assert name in cli.fails("run", "mlp-mnist/dense", *settings(*TINY))


def test_a_newer_store_is_one_clear_line(cli: Cli) -> None:
    run = cli.json("run", "mlp-mnist/dense", *settings(*TINY))
    spec = Path(run["path"]) / "spec.json"
    spec.write_text(spec.read_text().replace('"schema": 3', '"schema": 9'))
    for command in (["list"], ["measure", run["id"]], ["report", "mlp-mnist"]):
        assert "schema 9" in cli.fails(*command)


def test_a_damaged_result_does_not_hide_the_other_runs(cli: Cli) -> None:
    good = cli.json("run", "mlp-mnist/dense", *settings(*TINY))
    bad = cli.json("run", "mlp-mnist/dense", "--seed", "1", *settings(*TINY))
    (Path(bad["path"]) / "result.json").write_text("{")
    out, err = cli("list", code=1)
    assert good["id"][:8] in out
    assert bad["id"] in err


def test_a_truncated_checkpoint_is_one_clear_line(cli: Cli) -> None:
    run = cli.json("run", "mlp-mnist/dense", *settings(*TINY))
    file = Path(run["path"]) / "checkpoints" / "step-00000012.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "truncated or foreign" in cli.fails("measure", run["id"])


@pytest.mark.slow
def test_report_from_the_store_and_from_its_own_results(cli: Cli, tmp_path: Path) -> None:
    arguments, names = settings(*TINY), ["mlp-mnist/dense", "mlp-mnist/small-dense"]
    cli("sweep", *names, "--seeds", "0-1", *arguments)
    first, second = tmp_path / "first", tmp_path / "second"
    out, _ = cli("report", *names, "-o", str(first), *arguments)
    assert "small-dense" in out
    cli("report", str(first / "results.json"), "-o", str(second))
    files = {p.relative_to(first) for p in first.rglob("*") if p.is_file()}
    assert {"index.html", "table.md", "table.csv", "results.json"} <= {str(f) for f in files}
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)
