"""Files and names from strangers: nothing of them is run, nothing leaves its folder or its cell."""

import ast
import io
import os
import pickle
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from helpers.audit import audit
from helpers.cli import Cli
from helpers.small import alone
from rich.console import Console

import sparseflow as sf
from sparseflow import studies
from sparseflow.cli.show import plain, table
from sparseflow.core.errors import SpecError, StoreError
from sparseflow.report import load_results, markdown_table, write_report
from sparseflow.report.results import Results, encode
from sparseflow.runs import Store, execute
from sparseflow.runs.hashing import identity
from sparseflow.runs.spec import as_data, from_data
from sparseflow.train.checkpoint import resume_extra

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "../../outside", "/tmp/outside", "a/../../b", "a\0b", "a\nb", "\x1b[31mred", "[red]x[/red]",
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "`|a|`", "\u202egnp", "x" * 300,
]  # fmt: skip


# ---- pickle


def test_no_source_loads_a_pickle_or_runs_a_text_but_what_use_names() -> None:
    """``--use`` runs the file that the user names; nothing read from a store ever is."""
    modules = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "yaml"}
    calls = {"eval", "exec", "compile", "__import__"}
    calls |= {f"{home}.load" for home in ("torch", "torch.jit", "torch.hub", "np", "numpy")}
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
                found |= {(path.name, name) for name in names if name.split(".")[0] in modules}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                found.add((path.name, ast.unparse(node.func)))
    assert found == {("code.py", "compile"), ("code.py", "exec")}


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    run = execute(alone(), store)
    studies.carry_out(studies.DistanceStudy(_ends(run)), store)
    return store


def _ends(run: Any) -> tuple:
    return tuple(studies.point_of(run, step) for step in (0, 12))


@pytest.mark.slow
def test_a_planted_pickle_is_never_loaded(finished: Store, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    plain_pickle = pickle.dumps(Planted(proof))
    archive = io.BytesIO()
    torch.save(Planted(proof), archive)
    shutil.copytree(finished.root, tmp_path / "runs")
    store = Store(tmp_path / "runs")
    run = store.run(alone())
    files = [p for p in store.root.rglob("*") if p.is_file() and p.name != ".lock"]
    assert len(files) == 9
    for file in files:
        for payload in (plain_pickle, archive.getvalue()):
            good = file.read_bytes()
            file.write_bytes(payload)
            for look in (
                store.runs, lambda: run.result, lambda: list(run.metrics()), lambda: run.execution,
                lambda: [run.checkpoint(s) for s in run.kept], lambda: execute(alone(), store),
                lambda: studies.carry_out(studies.DistanceStudy(_ends(run)), store),
                lambda f=file: sf.Masks.load(f), lambda f=file: sf.load(f),
                lambda f=file: resume_extra(f, run.id), lambda f=file: load_results(f),
            ):  # fmt: skip
                try:
                    look()
                except StoreError:
                    continue
            assert [f for f in audit(store) if f.broken]
            file.write_bytes(good)
    assert not proof.exists()
    pickle.loads(plain_pickle)  # noqa: S301  (it does work)
    assert proof.exists()


# ---- names


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_of_a_hostile_name_is_refused(name: str, tmp_path: Path) -> None:
    content = as_data(alone()) | {"recipe": name}
    allowed = re.fullmatch(r"[\w./]{1,200}", name)  # a name is never a path, so these do no harm
    if allowed:
        assert re.fullmatch("[0-9a-f]{16}", identity(from_data(content)))
        return
    with pytest.raises(SpecError, match="recipe"):
        from_data(content)
    with pytest.raises(SpecError, match="recipe"):
        execute(msgspec.structs.replace(alone(), recipe=name), Store(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_nothing_is_written_outside_the_store(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(alone(), recipe="../../outside")
    execute(spec, Store(tmp_path / "deep" / "runs"))
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert all((tmp_path / "deep" / "runs" / identity(spec)) in p.parents for p in written)


@pytest.mark.parametrize("name", ["..", "../x", "<b>", "0123456789ABCDEF", "0123"])
def test_a_folder_of_another_name_is_no_run(name: str, finished: Store, tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "runs")
    folder = store.root / name
    shutil.copytree(finished.run(alone()).path, folder, dirs_exist_ok=True)
    with pytest.raises(StoreError):
        store.read(folder)
    for prefix in ("", "..", name, "*", "/"):
        with pytest.raises(StoreError):
            store.find(prefix)


@pytest.mark.parametrize("run", ["../../etc", "*", "", "/"])
def test_a_study_of_a_hostile_point_finds_nothing(run: str, finished: Store) -> None:
    with pytest.raises(StoreError, match="no single run"):
        studies.carry_out(studies.SpectrumStudy(studies.Point(run, 0)), finished)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_hostile_names_stay_inside_their_file(name: str, tmp_path: Path) -> None:
    masks = sf.Masks({name: torch.eye(3, dtype=torch.bool)})
    masks.save(tmp_path / "masks")
    assert sf.Masks.load(tmp_path / "masks") == masks
    assert [p.name for p in tmp_path.iterdir()] == ["masks"]


# ---- where names are shown


@pytest.mark.parametrize("name", NAMES)
def test_tables_on_a_terminal_show_names_as_they_are(name: str) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=400, color_system="standard")
    console.print(table(name, [{name: name, "n": 1}]))
    shown = out.getvalue()
    assert plain(name)[:40].strip() in re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "\x1b[31m" not in shown
    assert "\u202e" not in shown


def test_errors_are_one_line_without_control_signs(cli: Cli) -> None:
    error = cli.fails("measure", "\x1b[31m\nx\u202e")
    assert "\x1b" not in error
    assert "\u202e" not in error


class Outline(HTMLParser):
    """Counts the elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key in (tag, *(f"{tag}.{name}" for name, _ in attrs)):
            self.seen[key] = self.seen.get(key, 0) + 1

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: str) -> Outline:
    found = Outline()
    found.feed(page)
    return found


def renamed(part: Any, new: str, under: str = "") -> Any:
    """Put a text before every name that is shown."""
    if isinstance(part, dict):
        return {key: renamed(value, new, key) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [renamed(value, new, under) for value in part]
    shown = under in ("title", "variant", "id") and isinstance(part, str)
    return new + part if shown else part


HOSTILE = [
    '"><script>alert(1)</script>',
    "</svg><img src=x onerror=alert(1)>",
    "$\\frac{$ {{ 7*7 }}",
]


@pytest.fixture(scope="module")
def results() -> Results:
    return load_results(ROOT / "results" / "mlp-mnist.json")


@pytest.mark.slow
def test_hostile_names_do_not_enter_the_page(results: Results, tmp_path: Path) -> None:
    text = "".join(HOSTILE)
    harmless = msgspec.convert(renamed(msgspec.to_builtins(results), "harmless "), Results)
    hostile = msgspec.convert(renamed(msgspec.to_builtins(results), text), Results)
    pages = []
    for name, each in (("a", harmless), ("b", hostile)):
        write_report(each, tmp_path / name)
        pages.append(outline((tmp_path / name / "index.html").read_text()))
    assert pages[0].seen == pages[1].seen
    assert pages[1].seen["script"] == 1  # the page's own
    assert text in pages[1].text
    for svg in (tmp_path / "b").glob("*.svg"):
        assert "<script" not in svg.read_text()
        assert "<img" not in svg.read_text()
    assert "<script" not in markdown_table(hostile)


def test_hostile_families_recipes_and_variants_are_text(results: Results, tmp_path: Path) -> None:
    content = msgspec.to_builtins(results)
    content["family"] = HOSTILE[0]
    for run in content["runs"]:
        run["recipe"] = f"{run['recipe']}{HOSTILE[1]}|`"
    content["runs"][0]["variant"] = HOSTILE[0]
    file = tmp_path / "results.json"
    file.write_text(encode(msgspec.convert(content, Results)))
    write_report(load_results(file), tmp_path / "out")
    seen = outline((tmp_path / "out" / "index.html").read_text()).seen
    assert seen["script"] == 1  # the page's own
    assert not {"img", "img.onerror"} & set(seen)
    assert not re.search(r"<(?:script|img)", (tmp_path / "out" / "table.md").read_text())
    for line in (tmp_path / "out" / "table.md").read_text().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 8
