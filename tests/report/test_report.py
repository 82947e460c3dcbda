"""The report: nothing lost between run folders and page, and nothing said that is not so."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.made import FAMILY, figures, put, results, start
from msgspec.structs import replace

from sparseflow.core import optional
from sparseflow.core.errors import SparseflowError, StoreError
from sparseflow.paper import with_references
from sparseflow.recipes import make_spec
from sparseflow.report import (
    Results,
    collect,
    load_results,
    markdown_table,
    save_results,
    summary_rows,
    write_report,
)
from sparseflow.report.collect import ROWS
from sparseflow.report.findings import findings
from sparseflow.report.results import Norms
from sparseflow.report.summary import rows
from sparseflow.runs import Store

PARTS = ["index.html", "table.md", "table.csv", "table.tex", "results.json"]


@pytest.fixture(scope="module")
def whole() -> Results:
    """All parts, living and dead."""
    runs = [figures("prune", s, 98.5 + s / 10) for s in range(3)]
    runs += [figures("lottery"), figures("shuffled", 0, 11.35), figures("shuffled", 1, 11.35)]
    runs += [figures("rigl+", s, a) for s, a in enumerate((11.35, 97.9, 98.1, 97.7))]
    inits = ("masked-dense", "liu", "fan-in")
    starts = [start(i, s, 1e-4 + 1 - s) for i in inits for s in (0.0, 0.9, 0.95)]
    return results(*runs, at_start=tuple(starts))


@pytest.fixture(scope="module")
def folder(whole: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report."""
    out = tmp_path_factory.mktemp("whole") / "report"
    write_report(whole, out)
    return out


def test_collect_reduces_runs_to_their_figures(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = put(store, make_spec(f"{FAMILY}/rigl+"), updates=10)
    at_start = put(store, make_spec(f"{FAMILY}/init-liu-0.95", seed=2))
    found = collect([run, at_start, run], family=FAMILY, title="a trial")
    (one,), (other,) = found.runs, found.at_start
    assert (found.density, found.steps) == (0.05, 11_719)
    assert (one.recipe, one.variant, one.id, one.seed) == ("rigl+", "", run.id, "0")
    assert one.start.total == 1.0
    assert one.early.total == pytest.approx(1.5)  # steps 0, 200, ..., 1000
    assert one.flow.step[-1] == 11_719
    assert len(one.flow.step) == 60
    assert one.flow.gain[0] == 1.0
    assert one.flow.gain[-1] is None
    assert one.cosine is None
    assert one.distance == 117.19
    assert one.cut_off == 7
    assert one.updates
    assert (one.updates.count, one.updates.raised) == (10, 5)
    assert (other.init, other.sparsity, other.seed) == ("liu", 0.95, "2")


def test_the_early_window_shrinks_with_the_run(tmp_path: Path) -> None:
    run = put(Store(tmp_path), make_spec(f"{FAMILY}/dense", scale=0.05))
    (one,) = collect([run], family=FAMILY, title="").runs
    assert one.window == 50
    assert one.early.total == 1.0  # step 0 alone: the next measurement is of step 200
    found = collect([run], family=FAMILY, title="")
    assert "mean ‖∇L‖, step 0 alone" in markdown_table(found)


def test_long_curves_are_thinned_but_counted_in_full(tmp_path: Path) -> None:
    run = put(Store(tmp_path), make_spec(f"{FAMILY}/rigl+"), updates=5000)
    (one,) = collect([run], family=FAMILY, title="").runs
    assert one.updates
    assert one.updates.count == 5000
    steps = one.updates.step
    assert ROWS / 2 <= len(steps) <= ROWS + 1
    assert (steps[0], steps[-1]) == (0, 4999)


def test_other_settings_do_not_enter_the_median(tmp_path: Path) -> None:
    store, name = Store(tmp_path), f"{FAMILY}/dense"
    runs = [put(store, make_spec(name, seed=s)) for s in (0, 1)]
    runs += [put(store, make_spec(name, settings=["optimizer.lr=0.1"]), 50.0)]
    runs += [put(store, make_spec(name, scale=0.05), 60.0)]
    found = collect(runs, family=FAMILY, title="")
    rows = {row["variant"]: row for row in summary_rows(found)}
    assert rows[""]["accuracy"] == [97.0, 97.0]
    assert rows["optimizer.lr=0.1"]["accuracy"] == [50.0]
    assert any("train.steps=586" in variant for variant in rows)
    assert [run.seeds[0] for run in found.main] == [0, 1]


@pytest.mark.parametrize("published", [True, False])
def test_references_stand_only_beside_the_authors_own_settings(
    tmp_path: Path, published: bool
) -> None:
    run = put(Store(tmp_path), make_spec(f"{FAMILY}/rigl+"))
    found = with_references(collect([run], family=FAMILY, title="", published=published))
    assert (summary_rows(found)[0]["reference"] is not None) == published
    assert ("authors' code: accuracy" in markdown_table(found)) == published
    assert ("so none stand next to" in markdown_table(found)) != published


def test_other_families_have_no_references(tmp_path: Path) -> None:
    run = put(Store(tmp_path), make_spec("mlp-mnist/rigl+"))
    found = with_references(collect([run], family="mlp-mnist", title="", published=True))
    assert summary_rows(found)[0]["reference"] is None
    assert "uthors' " not in markdown_table(found)


def test_the_dead_are_counted_and_never_averaged() -> None:
    runs = [figures("rigl+", s, a) for s, a in enumerate((11.35, 97.9, 98.1, 19.9))]
    (row,) = summary_rows(results(*runs))
    assert row["dead"] == 2
    assert row["median"] == pytest.approx(98.0)
    assert row["accuracy"] == [11.35, 97.9, 98.1, 19.9]
    assert row["interval"] is None  # two living runs tell too little
    table = markdown_table(results(*runs))
    assert "| 2 of 4 | **98.00** | 11.35 ✕, 97.90, 98.10, 19.90 ✕ |" in table
    (row,) = summary_rows(results(figures("set", 0, 11.35)))
    assert row["dead"] == 1
    assert row["median"] is None


def test_the_dead_are_those_under_twice_the_accuracy_of_guessing() -> None:
    runs = [figures("rigl+", s, a) for s, a in enumerate((0.1, 0.19, 0.21, 5.0))]
    many = results(*(replace(run, classes=1000) for run in runs))
    (row,) = summary_rows(many)
    assert row["dead"] == 2
    assert "accuracy under 0.2 % at the end" in markdown_table(many)


def test_the_range_is_of_three_living_runs_or_more() -> None:
    def interval(*accuracies: float) -> tuple[float, float] | None:
        (row,) = rows(results(*(figures("set+", s, a) for s, a in enumerate(accuracies))))
        return row.interval

    assert interval(98.0, 97.0, 99.0, 11.35) == (97.0, 99.0)
    assert interval(98.0, 97.0, 11.35) is None


def test_results_survive_the_round_trip(whole: Results, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    save_results(whole, path)
    assert load_results(path) == whole
    assert len(path.read_text().splitlines()) == len(whole.runs) + len(whole.at_start) + 12


@pytest.mark.parametrize("content", ["", "[]", '{"schema":1}', '{"schema":1,"runs":[{}]}', "\xff"])
def test_damaged_results_are_one_clear_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match=r"results\.json are damaged"):
        load_results(path)


def test_newer_and_missing_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(StoreError, match="cannot be read"):
        load_results(path)
    path.write_text('{"schema":99,"family":1}')
    with pytest.raises(StoreError, match="install a newer sparseflow"):
        load_results(path)


@pytest.mark.parametrize("damage", ['{"event": "flow"}\n', '{"event": "ev', "7\n"])
def test_damaged_metrics_are_one_clear_line(tmp_path: Path, damage: str) -> None:
    run = put(Store(tmp_path), make_spec(f"{FAMILY}/dense"))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(damage)
    with pytest.raises(StoreError, match=r"metrics\.jsonl"):
        collect([run], family=FAMILY, title="")


def test_nothing_to_report_is_an_error() -> None:
    with pytest.raises(StoreError, match="no run of lenet5-mnist is finished"):
        collect([], family=FAMILY, title="")


def test_an_unfinished_run_is_an_error(tmp_path: Path) -> None:
    run = Store(tmp_path).create(make_spec(f"{FAMILY}/dense"))
    with pytest.raises(StoreError, match="not finished"):
        collect([run], family=FAMILY, title="")


@pytest.mark.slow
def test_the_report_is_complete_and_repeats_byte_for_byte(
    whole: Results, folder: Path, tmp_path: Path
) -> None:
    names = (
        "accuracy",
        "training",
        "flow",
        "flow-kernels",
        "updates",
        "start-signal",
        "start-norm",
    )
    expected = {*PARTS, *(f"{n}.{kind}" for n in names for kind in ("svg", "png", "csv"))}
    assert {p.name for p in folder.iterdir()} == expected  # no half-written files
    written = write_report(load_results(folder / "results.json"), tmp_path)
    assert {path.name for path in written} == expected
    for path in written:
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


class Page(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if tag in ("script", "link", "img", "iframe", "object"):
                self.loaded.append(tag)
            if tag == "a" and name == "href":
                self.links.append(value or "")


def test_the_page_stands_alone(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.loaded == []  # a script of its own has no address
    assert "<script>" in text
    assert "@import" not in text
    assert "url(http" not in text
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r"(?:url\(|xlink:href=\")#([^)\"]+)", text))
    assert used <= set(page.ids)
    local = [link for link in page.links if not link.startswith(("https://", "data:"))]
    assert all((folder / link).is_file() for link in local)
    assert local


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$x^2')</script>&|"
    run = figures(evil, 0, 97.0, variant="<b>")
    write_report(replace(results(run, figures(evil)), title=evil, family=evil), tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    assert "\\|" in (tmp_path / "table.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["training", "start", "static"])
def test_missing_parts_are_left_out_and_named(whole: Results, tmp_path: Path, part: str) -> None:
    few = {
        "training": replace(whole, runs=()),
        "start": replace(whole, at_start=()),
        "static": results(figures("shuffled+")),
    }[part]
    names = {path.name for path in write_report(few, tmp_path)}
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert ("flow.svg" in names) == (part != "training")
    assert ("start-norm.svg" in names) == (part == "training")
    assert "updates.svg" in names or "It needs runs whose masks change" in text
    assert "start-norm.svg" in names or "It needs the init-* recipes" in text


def test_findings_follow_the_figures() -> None:
    def early(norm: float) -> Norms:
        return Norms(norm, norm, norm, norm)

    ticket, rigl = figures("lottery", early=early(0.2)), figures("rigl+", early=early(1.2))
    said = " ".join(findings(results(ticket, rigl)))
    assert "of a ticket, 0.20, is smaller than that of rigl+ (1.2)." in said
    said = " ".join(findings(results(replace(ticket, early=early(2.0)), rigl)))
    assert "of a ticket, 2.0, is larger than that of rigl+ (1.2)." in said
    shuffled = [figures("shuffled", s, a) for s, a in enumerate((11.35, 96.0))]
    said = " ".join(findings(results(*shuffled)))
    assert "1 of 2 runs ends under 20 %, dead; of the rest, 96.00 % (shuffled)" in said


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, whole: Results) -> None:
    def absent(module: str) -> object:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(optional.importlib, "import_module", absent)
    with pytest.raises(SparseflowError, match=r"matplotlib: pip install 'sparseflow\[report\]'"):
        write_report(whole, Path("nowhere"))


def test_a_norm_of_exactly_zero_does_not_spoil_the_picture(tmp_path: Path) -> None:
    alive, dead = figures("shuffled", 0, 11.35), figures("shuffled", 1, 11.35)
    flow = replace(dead.flow, kernels=tuple(0.0 for _ in dead.flow.step))
    write_report(results(alive, replace(dead, flow=flow)), tmp_path)
    assert (tmp_path / "flow-kernels.svg").is_file()
