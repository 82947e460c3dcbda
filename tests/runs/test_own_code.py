"""Code of the user's own in runs: identity, resuming, what is refused, and how."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.own import EXAMPLE, clean_slate, example
from helpers.small import SHORT, TINY, tiny
from helpers.work import files, interrupt
from msgspec.structs import replace

import sparseflow as sf
from sparseflow.core import code
from sparseflow.core.errors import SpecError
from sparseflow.init import INITS
from sparseflow.recipes import make_spec, recipe_names
from sparseflow.runs import RunSpec, Store, execute, identity
from sparseflow.runs.spec import as_data, from_data
from sparseflow.runs.validate import check
from sparseflow.topology import METHODS


@pytest.fixture(autouse=True)
def slate():
    with clean_slate():
        yield


OWN = ["mask=erk", "method.when.n=2", "train.resume=4"]

MINE = """
from dataclasses import dataclass
import sparseflow as sf

@sf.register_method("mine")
@dataclass(frozen=True)
class Mine(sf.RigL):
    noise: float = 0.5

    def grow_score(self, view):
        return view.gradient.abs()
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def of_example(name: str, *settings: str) -> RunSpec:
    example()
    return make_spec("mlp-mnist/dense", settings=[*TINY, f"method={name}", *OWN, *settings])


# ---- runs


@pytest.mark.parametrize(
    ("name", "execution"), [("snfs", "dense"), ("granet", "dense"), ("granet", "sparse")]
)
def test_killed_and_run_again_bit_for_bit(name: str, execution: str, tmp_path: Path) -> None:
    spec = of_example(name, f"execution={execution}", "mask.density=0.3")
    if name == "granet":
        spec = replace(spec, method=sf.METHODS[name](sf.every(2), density=sf.cubic(initial=0.3)))
    interrupted, whole = Store(tmp_path / "interrupted"), Store(tmp_path / "whole")
    interrupt(spec, interrupted, 7)
    assert execute(spec, interrupted).execution == execution
    assert json.loads((interrupted.run(spec).path / "environment.json").read_text())["resumed_at"]
    assert files(execute(spec, whole)) == files(interrupted.run(spec))
    density = 0.02 if name == "granet" else 0.3
    assert whole.run(spec).result["density"] == pytest.approx(density, abs=1e-4)


def test_execution_is_chosen_by_what_a_method_asks_for(tmp_path: Path) -> None:
    spec = of_example("snfs", "mask.density=0.02")
    assert execute(spec, Store(tmp_path)).execution == "dense"
    with pytest.raises(SpecError, match="execution=sparse: SNFS needs masked dense layers"):
        of_example("snfs", "execution=sparse")
    assert of_example("granet", "execution=sparse").execution == "sparse"


# ---- identity


def test_a_changed_line_is_another_run(mine: Path, tmp_path: Path) -> None:
    settings = [*TINY, "method=mine", *OWN]
    sf.use(mine)
    spec, store = make_spec("mlp-mnist/dense", settings=settings), Store(tmp_path / "runs")
    first = execute(spec, store)
    assert first.code[0].file == "mine.py"
    sf.use(mine)  # the same text: nothing happens
    assert store.run(make_spec("mlp-mnist/dense", settings=settings)).finished

    mine.write_text(MINE.replace("gradient.abs()", "gradient.abs() + 1"))
    sf.use(mine)
    spec = make_spec("mlp-mnist/dense", settings=settings)
    assert identity(spec) != first.id
    assert not store.run(spec).finished
    (old,) = store.runs()
    assert old.obsolete.startswith("made by other code: mine.py ")

    mine.write_text(MINE)
    sf.use(mine)
    assert identity(make_spec("mlp-mnist/dense", settings=settings)) == first.id
    assert store.runs()[0].obsolete == ""


def test_code_enters_the_identity_of_what_uses_it_alone(mine: Path) -> None:
    before = identity(tiny("mlp-mnist/rigl+"))
    sf.use(mine)
    assert identity(tiny("mlp-mnist/rigl+")) == before
    names = recipe_names("mlp-mnist")
    assert {"mlp-mnist/mine", "mlp-mnist/mine-liu", "mlp-mnist/mine+"} <= set(names)
    rigl, own = make_spec("mlp-mnist/rigl+"), make_spec("mlp-mnist/mine+")
    assert own.mask == rigl.mask
    assert own.init == rigl.init
    assert own.method.when == rigl.method.when


# ---- what is not known here


DATA = {"method": {"kind": "theirs", "when": {"kind": "every", "n": 5}, "noise": 0.25}}


def test_an_unknown_kind_is_kept_and_never_imported(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "theirs.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = from_data(DATA)
    assert as_data(spec) == DATA
    assert "theirs" not in sys.modules
    message = "unknown method 'theirs'.*load it with --use FILE.py"
    with pytest.raises(SpecError, match=message):
        check(spec)
    with pytest.raises(SpecError, match=message):
        identity(spec)


def test_an_unknown_part_and_an_unknown_function_are_kept() -> None:
    for part in ({"kind": "spiral"}, {"function": "theirs:when"}):
        data = {"method": {"kind": "set", "when": part}}
        spec = from_data(data)
        assert as_data(spec) == data
        with pytest.raises(SpecError, match=r"--use FILE\.py"):
            check(spec)


def test_a_run_of_unknown_code_is_shown_with_what_it_needs(mine: Path, tmp_path: Path) -> None:
    sf.use(mine)
    spec = make_spec("mlp-mnist/dense", settings=[*TINY, "method=mine", *OWN])
    store = Store(tmp_path / "runs")
    done = store.create(spec)
    shown = subprocess.run(
        [sys.executable, "-c", SHOW, str(store.root)], capture_output=True, text=True, check=True
    ).stdout
    assert shown.split("|") == [
        done.id,
        "mine",
        "True",
        "mine.py",
        "False\n",
    ]


SHOW = """
import sys
from sparseflow.runs import Store
(run,) = Store(sys.argv[1]).runs()
needs = "load it with --use FILE.py" in run.obsolete
print(run.id, run.spec.method.kind, needs, run.code[0].file, "mine" in sys.modules, sep="|")
"""


# ---- what cannot be named


def test_functions_without_a_name_are_refused_in_a_run() -> None:
    spec = replace(tiny("mlp-mnist/rigl+"), method=sf.SET(lambda step: step == 3))
    with pytest.raises(SpecError, match="<lambda>' cannot be found by name: a run needs"):
        check(spec)


def test_a_class_without_a_name_is_refused_in_a_run() -> None:
    class Nameless(sf.SET):
        pass

    with pytest.raises(SpecError, match="Nameless has no name"):
        check(replace(tiny("mlp-mnist/rigl+"), method=Nameless()))


# ---- registering


def test_names_that_clash_are_refused(tmp_path: Path, mine: Path) -> None:
    sf.use(mine)
    other = tmp_path / "other.py"
    other.write_text(MINE)
    with pytest.raises(
        SpecError, match=r"method 'mine' is registered by .*mine.py: choose another"
    ):
        sf.use(other)
    other.write_text(MINE.replace('"mine"', '"rigl"'))
    with pytest.raises(SpecError, match="method 'rigl' is registered by sparseflow: choose"):
        sf.use(other)
    (tmp_path / "deeper").mkdir()
    twin = tmp_path / "deeper" / "mine.py"
    twin.write_text(MINE)
    with pytest.raises(SpecError, match="a module named mine is loaded already; rename the file"):
        sf.use(twin)


def test_names_of_recipes_that_clash_are_refused(mine: Path) -> None:
    mine.write_text(MINE.replace('"mine"', '"lottery"'))
    sf.use(mine)
    with pytest.raises(SpecError, match="recipe 'lottery' of mlp-mnist stands for two things"):
        recipe_names("mlp-mnist")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@sf.register_method('a b')\n@dataclass(frozen=True)\nclass A(sf.SET): pass", "letters"),
        ("@sf.register_method('a')\nclass A(sf.SET):\n    x: int = 1", "under @dataclass"),
        ("@sf.register_method('a')\n@dataclass\nclass A(sf.Method): x: int = 1", "frozen=True"),
        ("@sf.register_init('fan_in')\n@dataclass(frozen=True)\nclass A(sf.Initialisation): pass",
         "'fan_in' is one of sparseflow's"),
        ("@sf.register_init('mine')\n@dataclass(frozen=True)\nclass A(sf.Init): pass",
         "a field named kind"),
    ],
)  # fmt: skip
def test_what_cannot_be_registered(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(f"from dataclasses import dataclass\nimport sparseflow as sf\n{text}\n")
    with pytest.raises(SpecError, match=message):
        sf.use(path)


def test_installed_packages_register_by_entry_point(mine: Path, monkeypatch) -> None:
    loaded = []

    def load():
        loaded.append(1)
        sf.use(mine)

    point = SimpleNamespace(name="mine", value="mine", load=load)
    monkeypatch.setattr(code, "entry_points", lambda group: [point] if group == "sparseflow" else 1)
    code.load_installed.cache_clear()
    try:
        assert METHODS["mine"].__name__ == "Mine"
        assert "mine" in METHODS
        assert loaded == [1]
    finally:
        code.load_installed.cache_clear()


def test_an_entry_point_that_fails_is_named(monkeypatch) -> None:
    point = SimpleNamespace(name="theirs", value="theirs:all", load=lambda: 1 / 0)
    monkeypatch.setattr(code, "entry_points", lambda group: [point])
    code.load_installed.cache_clear()
    with pytest.raises(SpecError, match="entry point theirs = theirs:all fails to import: ZeroDiv"):
        INITS.entry("nothing")
    code.load_installed.cache_clear()


# ---- the command line


def test_use_on_the_command_line(cli, mine: Path) -> None:
    settings = [w for s in (*TINY, "method=mine", *OWN) for w in ("--set", s)]
    words = ("run", "mlp-mnist/dense", *settings)
    first = cli.json(*words, "--use", str(mine))
    assert cli.json(*words, "--use", str(mine), "--use", str(EXAMPLE))["id"] == first["id"]
    mine.write_text(MINE.replace("0.5", "0.25"))
    assert cli.json(*words, "--use", str(mine))["id"] != first["id"]


def test_a_method_that_is_not_loaded_says_how(cli) -> None:
    error = cli.fails("run", "mlp-mnist/rigl+", "--set", "method=mine")
    assert "unknown method 'mine'" in error
    assert "load it with --use FILE.py (or SPARSEFLOW_USE, or sf.use)" in error


def test_files_that_cannot_be_used_are_one_line(cli, tmp_path: Path) -> None:
    missing, broken = tmp_path / "missing.py", tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    raising = tmp_path / "raising.py"
    raising.write_text("import nothing_of_this_name\n")
    for path, message in (
        (missing, "cannot be read: FileNotFoundError"),
        (broken, "fails to import: SyntaxError"),
        (raising, "fails to import: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("nothing.of.this", "fails to import: ModuleNotFoundError"),
    ):
        assert f"--use {path} {message}" in cli.fails("list", "--use", str(path))


EVERYTHING = """
from dataclasses import dataclass
import torch
from torch import nn
import sparseflow as sf
from sparseflow.data import Dataset, Examples
from sparseflow.runs.spec import Data, Measure, Model, Optimizer, Train

@sf.register_data("stripes", examples=256, classes=2)
def stripes():
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    part = Examples(x, (x[:, 0] > 0).long())
    return Dataset(part, part)

@sf.register_model("perceptron", data="stripes", widths=(16,))
def perceptron(widths):
    return nn.Sequential(nn.Linear(8, *widths), nn.ReLU(), nn.Linear(*widths, 2))

@sf.register_init("small")
@dataclass(frozen=True)
class Small(sf.Initialisation):
    scale: float = 0.1

    def draw(self, layer, mask, stream):
        return self.scale * torch.randn(layer.shape, generator=stream)

@sf.register_method("largest-first", label="Largest first")
@dataclass(frozen=True)
class LargestFirst(sf.RigL):
    def grow_score(self, view):
        return view.gradient.abs().sqrt()

@sf.register_family
def family():
    return sf.Family(
        "stripes", Model("perceptron"), 0.5, Optimizer(lr=0.1), data=Data("stripes", probe=64),
        method=sf.RigL(sf.every(4)), start="erk",
        train=Train(40, batch=32, keep=20), measure=Measure(20, 20, 40),
    )
"""


def test_one_file_makes_a_family_with_all_that_it_stands_on(cli, tmp_path: Path) -> None:
    path = tmp_path / "everything.py"
    path.write_text(EVERYTHING)
    row = cli.json("run", "stripes/largest-first-small", "--use", str(path))
    assert row["state"] == "finished"
    assert row["test_accuracy"] > 80
    assert row["density"] == pytest.approx(0.5, abs=0.01)
    spec = cli.store / row["id"] / "spec.json"
    content = json.loads(spec.read_text())
    assert content["spec"]["init"] == {"kind": "small"}
    assert content["spec"]["method"]["kind"] == "largest-first"
    assert list(content["code"].values()) == ["everything.py"]
    names = set(recipe_names("stripes"))
    assert {"stripes/rigl-small", "stripes/largest-first+", "stripes/static-small"} <= names
    assert SHORT  # of other families nothing changes
    assert "mlp-mnist/rigl-small" in recipe_names("mlp-mnist")
