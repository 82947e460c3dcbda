"""What runs were told and how far they are: list, show, diff; --use, names, scaling."""

import shlex
from pathlib import Path

import pytest
from helpers.cli import Cli
from helpers.small import TINY, alone, tiny
from helpers.work import interrupt

from sparseflow.cli import show
from sparseflow.recipes import command, departure, extend, make_spec
from sparseflow.runs import Store, execute, identity, with_overrides
from sparseflow.runs.describe import describe, differences

MINE = """
from dataclasses import dataclass
import sparseflow as sf

@sf.register_method("{name}")
@dataclass(frozen=True)
class Mine(sf.SET):
    def drop_score(self, view):
        return view.weight.abs() * {factor}
"""


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A dense and a sparse run, and one that stopped at step 9, having kept step 8."""
    room = Store(tmp_path_factory.mktemp("runs"))
    execute(tiny("mlp-mnist/dense", "optimizer.lr=0.1"), room)
    execute(alone(), room)
    interrupt(alone(seed=1), room, 9)
    return room


def test_list_says_how_far_a_run_is_and_what_it_was_told(
    cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.store = store.root
    rows = {row["id"]: row for row in cli.json("list")["runs"]}
    lr = rows[identity(tiny("mlp-mnist/dense", "optimizer.lr=0.1"))]
    assert "optimizer.lr=0.1" in lr["settings"]
    assert lr["differs"].endswith("…")
    assert lr["differs"].count("=") == 3
    assert (lr["state"], lr["step"]) == ("finished", 12)
    stopped = rows[identity(alone(seed=1))]
    assert (stopped["state"], stopped["step"]) == ("started", 8)
    monkeypatch.setattr(show.stdout, "_width", 200)
    assert "started, step 8 of 12" in cli("list")[0]


def test_list_check_counts_the_files_that_are_well(cli: Cli, store: Store) -> None:
    cli.store = store.root
    # spec, result, environment and metrics of two runs, with 4 checkpoints each; of the
    # interrupted one spec, resume, metrics, and checkpoints of steps 0, 4, 8
    count = 2 * (4 + 4) + 3 + 3
    assert f"all {count} files are well" in cli("list", "--check")[0]
    assert cli.json("list", "--check") == []


def test_list_check_names_what_is_broken(cli: Cli) -> None:
    run = execute(tiny("mlp-mnist/dense"), Store(cli.store))
    (run.path / "result.json").write_text("{")
    out, err = cli("list", "--check", code=1)
    assert "result.json" in out
    assert "are well" not in out
    assert "2 files in" in err  # the result holds the checksum of the metrics


@pytest.mark.parametrize(
    "spec",
    [
        make_spec("lenet5-mnist/lottery", seed=3, scale=0.05, settings=["density=0.02"]),
        make_spec("mlp-mnist/rigl+", settings=["method.drop=cosine(0.4, 900)", "data.limit=3000"]),
        make_spec("mlp-mnist/dense", settings=["optimizer=adam", "mask=erk", "init=liu"]),
        make_spec("lenet5-mnist/scratch:inits", seed=2, settings=["train.batch=64"]),
        make_spec("mlp-mnist/prune", settings=["seeds.mask=7", "train.resume=20"]),
        make_spec("lenet5-mnist/init-liu-0.90"),
        tiny("mlp-mnist/prune-restart", seed=1),
        alone(seed=2),
    ],
)
def test_the_settings_of_a_run_make_it_again(spec) -> None:
    how = departure(spec)
    again = make_spec(spec.recipe, seed=spec.seeds.data, scale=how.scale, settings=how.settings)
    assert how.exact
    assert again == spec
    assert identity(again) == identity(spec)


def test_a_recipe_as_it_stands_differs_in_nothing() -> None:
    for name in ("dense", "lottery:orders", "rigl+", "init-fan-in-0.90"):
        how = departure(make_spec(f"lenet5-mnist/{name}", seed=4))
        assert (how.scale, how.settings, how.short()) == (1.0, (), "")
    assert departure(make_spec("lenet5-mnist/rigl+", scale=0.25)).short() == "scale 0.25"
    for scale, told in ((0.05, "train.keep=70"), (1.0, "train.steps=2000"), (1.0, "train.steps=0")):
        how = departure(make_spec("lenet5-mnist/rigl+", scale=scale, settings=[told]))
        assert (how.scale, how.settings) == (scale, (told,))


def test_every_field_that_is_shown_can_be_set_to_what_is_shown() -> None:
    for name in ("dense", "prune", "lottery", "set-liu", "rigl+", "small-dense"):
        spec = make_spec(f"lenet5-mnist/{name}", scale=0.3)
        for row in describe(spec):
            if row.settable:
                assert with_overrides(spec, [f"{row.path}={row.value}"]) == spec, row


def test_show_has_every_field_with_what_it_takes(cli: Cli) -> None:
    found = cli.json("show", "lenet5-mnist/rigl+", *settings("optimizer=adam"))
    rows = {row["field"]: row for row in found["fields"]}
    assert rows["optimizer.kind"]["value"] == "adam"
    assert rows["optimizer.kind"]["recipe"] == "sgd"
    assert "rmsprop" in rows["optimizer.kind"]["takes"]
    assert rows["method"]["value"] == "rigl(drop=lr_proportional(0.3), grow_from='probe')"
    assert rows["method.drop"]["takes"].startswith("constant(…) | cosine(…) | lr_proportional(…)")
    assert rows["train.steps"] == {
        "field": "train.steps", "value": "11719", "recipe": "11719", "default": "11719",
        "takes": "whole number, not negative", "set": "train.steps=11719",
    }  # fmt: skip
    assert found["parents"][0]["recipe"] == "lenet5-mnist/prune"
    assert found["parents"][0]["differs"]["optimizer.kind"] == "sgd"
    assert found["state"] == "not started"
    text, _ = cli("show", "lenet5-mnist/rigl+")
    assert "parent: lenet5-mnist/prune" in text


def test_show_of_a_run_says_where_it_is_and_its_result(cli: Cli, store: Store) -> None:
    cli.store = store.root
    run = store.run(alone())
    found = cli.json("show", run.id[:8])
    assert found["path"] == str(run.path)
    assert found["result"]["test_accuracy"] == run.result["test_accuracy"]
    assert found["command"] == command(run)
    text, _ = cli("show", run.id)
    assert "test_accuracy" in text
    error = cli.fails("show", run.id, "--set", "density=0.1")
    assert "--set density=0.1 is for recipes" in error


def test_the_command_of_a_run_finds_it_finished(cli: Cli, store: Store) -> None:
    cli.store = store.root
    run = store.run(alone())
    words = shlex.split(command(run))[2:]
    again = cli.json("run", *words)
    assert again["id"] == run.id


def test_diff_shows_fields_side_by_side(cli: Cli, store: Store) -> None:
    cli.store = store.root
    found = cli.json("diff", "mlp-mnist/rigl+", "mlp-mnist/set+")
    assert [row["path"] for row in found["fields"]] == ["recipe", "method"]
    one, other = store.run(alone()).id, store.run(alone(seed=1)).id
    rows = {row["path"]: row for row in cli.json("diff", one, other)["fields"]}
    assert rows["seeds.mask"] == {"path": "seeds.mask", "one": "0", "other": "1"}
    text, _ = cli("diff", one[:8], other[:8])
    assert "seeds.data" in text
    assert "two runs or recipes, not 1" in cli.fails("diff", one)


def test_diff_reaches_the_parents_once(cli: Cli) -> None:
    assert "one run" in cli("diff", "mlp-mnist/lottery", "mlp-mnist/lottery")[0]
    base = make_spec("mlp-mnist/lottery")
    both = ["mask.run.train.keep=250", "weights.run.train.keep=250"]
    one_parent = differences(base, with_overrides(base, ["train.keep=500", *both]))
    assert [each.path for each in one_parent] == ["train.keep", "mask.run.train.keep"]
    two_parents = differences(base, with_overrides(base, ["weights.run.train.keep=250"]))
    assert [each.path for each in two_parents] == ["weights.run.train.keep"]


def test_user_code_is_shown_and_told_apart(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine_listed.py"
    file.write_text(MINE.format(name="mine-listed", factor=1))
    told = settings(*TINY, "method=mine-listed", "mask=erk", "method.when.n=3")
    run = cli.json("run", "mlp-mnist/dense", "--use", str(file), *told)
    (row,) = cli.json("list", "--use", str(file))["runs"]
    assert list(row["code"]) == ["mine_listed.py"]
    assert row["state"] == "finished"
    monkeypatch.setattr(show.stdout, "_width", 200)
    assert f"mine_listed.py {row['code']['mine_listed.py'][:8]}" in cli("list")[0]

    file.write_text(MINE.format(name="mine-listed", factor=2))
    (row,) = cli.json("list", "--use", str(file))["runs"]
    assert (row["id"], row["state"]) == (run["id"], "other code")
    assert f"mine_listed.py {row['code']['mine_listed.py']} there" in row["note"]
    changed = cli.json("run", "mlp-mnist/dense", "--use", str(file), *told)
    assert changed["id"] != run["id"]
    rows = {r["path"]: r for r in cli.json("diff", run["id"], changed["id"])["fields"]}
    assert list(rows) == ["code mine_listed.py"]


def test_a_run_of_code_that_is_not_loaded_names_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparseflow.topology import METHODS  # noqa: PLC0415

    file = tmp_path / "mine_missed.py"
    file.write_text(MINE.format(name="mine-missed", factor=1))
    told = settings(*TINY, "method=mine-missed", "mask=erk", "method.when.n=3")
    run = cli.json("run", "mlp-mnist/dense", "--use", str(file), *told)
    monkeypatch.delitem(METHODS._entries, "mine-missed")
    (row,) = cli.json("list")["runs"]
    assert row["state"] == "needs --use mine_missed.py"
    found = cli.json("show", run["id"])
    assert "mine-missed" in {r["field"]: r["value"] for r in found["fields"]}["method"]
    assert found["command"] == ""


def test_names_alone_set_a_part(cli: Cli) -> None:
    told = settings("optimizer=adam", "init=fan_in", "method=set", "mask=erk")
    found = cli.json("show", "mlp-mnist/rigl", *told)
    values = {row["field"]: row["value"] for row in found["fields"]}
    assert values["optimizer.kind"] == "adam"
    assert (values["optimizer.momentum"], values["optimizer.inner_momentum"]) == ("0.0", "false")
    assert values["init"] == "neuron()"
    assert values["method"] == "set(every(500), lr_proportional(0.3))"
    run = cli.json("run", "mlp-mnist/dense", *settings(*TINY, "optimizer=adam"))
    assert run["state"] == "finished"


def test_scale_reaches_resume_and_leaves_the_cadence(cli: Cli) -> None:
    plain, short = (
        {row["field"]: row["value"] for row in cli.json("show", *words)["fields"]}
        for words in (["mlp-mnist/dense"], ["mlp-mnist/dense", "--scale", "0.1"])
    )
    assert (plain["train.resume"], short["train.resume"]) == ("500", "50")
    for field in ("measure.every", "measure.updates", "measure.evaluate"):
        assert plain[field] == short[field]


def test_a_finished_run_is_trained_on(cli: Cli, store: Store) -> None:
    cli.store = store.root
    parent = store.run(alone())
    # length and cadence are those of the recipe: only what is not the parent's is told
    told = settings("train.steps=8", "train.keep=4", "measure.every=4", "method.when.n=3")
    done = cli.json("run", "mlp-mnist/set+", "--from", parent.id[:8], *told)
    assert (done["from"], done["seed"], done["steps"]) == (parent.id, "0", 8)
    run = store.find(done["id"])
    weights, masks = run.checkpoint(0)
    theirs, mask = parent.checkpoint(12)
    assert all((weights[name] == theirs[name]).all() for name in theirs)
    assert masks.digest() == mask.digest()
    assert run.result["masks"] != mask.digest()
    how = departure(run.spec)
    again = extend(run.spec.recipe, parent, scale=how.scale, settings=how.settings)
    assert identity(again) == run.id
    assert f"--from {parent.id}" in command(run)
    assert cli.json("run", *shlex.split(command(run))[2:])["id"] == run.id


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mlp-mnist/set+", "--set", "density=0.3"], ["density cannot be set", "--from"]),
        (["mlp-mnist/set+", "--set", "mask=erk"], ["mask cannot be set"]),
        (["mlp-mnist/set+", "--set", "train.steps=0"], ["nothing would be trained"]),
        (["mlp-mnist/dense"], ["starts from a dense network", "ended at density"]),
        (["mlp-mnist/prune"], ["starts from a dense network", "choose a recipe"]),
        (["lenet5-mnist/set+"], ["another family", "mlp-mnist"]),
    ],
)
def test_what_cannot_be_trained_on_is_one_clear_line(
    cli: Cli, store: Store, arguments: list[str], words: list[str]
) -> None:
    cli.store = store.root
    error = cli.fails("run", *arguments, "--from", store.run(alone()).id)
    assert all(word in error for word in words), error


def test_only_finished_and_sparse_runs_are_trained_on_by_sparse_recipes(
    cli: Cli, store: Store
) -> None:
    cli.store = store.root
    stopped = store.run(alone(seed=1)).id
    assert "is not finished" in cli.fails("run", "mlp-mnist/set+", "--from", stopped)
    dense = store.run(tiny("mlp-mnist/dense", "optimizer.lr=0.1")).id
    assert "is dense: choose dense or prune" in cli.fails("run", "mlp-mnist/set+", "--from", dense)


def test_a_piped_run_says_where_it_is(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = cli("run", "mlp-mnist/dense", *settings(*TINY))
    lines = [line for line in err.splitlines() if "mlp-mnist/dense seed 0: step" in line]
    assert [line.split("step ")[1].split("  ")[0] for line in lines] == ["0 of 12", "12 of 12"]
    monkeypatch.setattr("sparseflow.cli.show.PAUSE", 0.0)
    _, err = cli("run", "mlp-mnist/dense", "--seed", "1", *settings(*TINY))
    assert "step 7 of 12" in err


def test_a_piped_sweep_says_where_its_runs_are(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseflow.cli.show import SweepView  # noqa: PLC0415
    from sparseflow.runs import plan  # noqa: PLC0415

    jobs = plan([tiny("mlp-mnist/dense")], Store(cli.store))
    with SweepView(jobs) as view:
        job = jobs.take()
        job.step = 7
        view.changed(job)
        monkeypatch.setattr("sparseflow.cli.show.PAUSE", 0.0)
        view.changed(job)
        monkeypatch.setattr("sparseflow.cli.show.PAUSE", 1000.0)
        view.changed(job)
    from sparseflow.cli.show import stderr  # noqa: PLC0415

    assert not stderr.is_terminal
    err = cli._capsys.readouterr().err
    assert err.count("1 running; mlp-mnist/dense seed 0 is at step 7 of 12") == 1
