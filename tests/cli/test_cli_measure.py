"""The probes of ``measure``, on two short runs and their parent."""

import pytest
from helpers.cli import Cli
from helpers.small import tiny

from sparseflow.runs import Store, execute

SMALL = ("density=0.3", "data.limit=600", "data.probe=50", "model.widths=[8,6]")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    room = Store(tmp_path_factory.mktemp("runs"))
    for name in ("lottery", "rigl+"):
        execute(tiny(f"mlp-mnist/{name}", *SMALL), room)
    return room


@pytest.fixture
def probe(cli: Cli, store: Store):
    """Run a probe on recipes' runs, as JSON and as text."""
    cli.store = store.root
    ids = {run.spec.recipe.partition("/")[2]: run.id for run in store.runs()}

    def run(kind: str, *names: str) -> tuple[dict, str]:
        options = [word for word in names if word.startswith("--")]
        places = [word.partition("@") for word in names if not word.startswith("--")]
        points = [f"{ids[name]}{mark}{step}" for name, mark, step in places]
        arguments = ["measure", *points, "--probe", kind, *options]
        return cli.json(*arguments), cli(*arguments)[0]

    return run


@pytest.mark.slow
def test_hessian(probe) -> None:
    found, text = probe("hessian", "lottery", "--examples=50", "--exact")
    assert found["exact"]
    assert found["examples"] == 50
    assert f"{found['largest']:.4g}" in text


@pytest.mark.slow
def test_update(probe) -> None:
    found, text = probe("update", "rigl+@12", "--examples=50")
    assert {trial["rule"] for trial in found["after"]} == {"rigl", "set", "rigl-inverted", "random"}
    assert "rigl-inverted" in text


def test_interpolate(probe) -> None:
    found, text = probe("interpolate", "lottery@start", "prune", "--examples=50")
    assert found["labels"] == ["lottery 0 start", "prune 0 end"]
    assert len(found["alphas"]) == 29
    assert "barrier of the training loss" in text


@pytest.mark.slow
def test_plane(probe) -> None:
    found, text = probe("plane", "lottery", "prune", "rigl+", "--examples=20")
    assert len(found["positions"]) == 3
    assert "lottery 0 end" in text


def test_distance(probe) -> None:
    found, text = probe("distance", "lottery@start", "lottery", "prune")
    assert found["l2"][0][0] == 0
    assert "stress" in text


def test_agreement(probe) -> None:
    found, text = probe("agreement", "lottery", "rigl+")
    assert {g["name"] for g in found["groups"]} == {"mlp-mnist/lottery", "mlp-mnist/rigl+"}
    assert found["disagreement"][0][1] == found["disagreement"][1][0] > 0
    assert "disagreement" in text


def test_other_architectures_are_one_clear_line(cli: Cli, store: Store) -> None:
    cli.store = store.root
    execute(tiny("mlp-mnist/dense", "data.limit=600", "data.probe=50"), store)
    ids = {run.spec.recipe.partition("/")[2]: run.id for run in store.runs()}
    error = cli.fails("measure", ids["dense"], ids["prune"], "--probe", "distance")
    assert "cannot be compared" in error
    assert "model" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--at", "soon"], ["soon", "'start'"]),
        (["--at", "²"], ["²", "'start'"]),
        (["--at", "5"], ["no checkpoint at step 5"]),
        (["--at", "5", "--probe", "hessian"], ["none at step 5"]),
        (["--probe", "interpolate"], ["of 2 checkpoints, not of 1"]),
        (["--probe", "agreement"], ["at least 2", "not of 1"]),
        (["--probe", "hessian", "--aligned"], ["hessian takes no --aligned"]),
        (["--probe", "update", "--at", "3"], ["no dynamic mask update at step 3"]),
    ],
)
def test_bad_measures_are_one_clear_line(
    cli: Cli, store: Store, arguments: list[str], words: list[str]
) -> None:
    cli.store = store.root
    ids = {run.spec.recipe.partition("/")[2]: run.id for run in store.runs()}
    error = cli.fails("measure", ids["lottery"], *arguments)
    assert all(word in error for word in words), error
