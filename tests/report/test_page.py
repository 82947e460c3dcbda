"""What the page says and shows off the beaten track: variants, odd inputs, marks, layers."""

import csv
import io
import json
import re
import urllib.parse
from pathlib import Path

import pytest
from helpers.made import FAMILY, figures, put, results, start
from helpers.small import tiny
from msgspec.structs import replace

from sparseflow.masks import churn
from sparseflow.plotting.style import svg
from sparseflow.recipes import make_spec
from sparseflow.report import Results, collect, load_results, markdown_table, write_report
from sparseflow.report.figures import figures as all_figures
from sparseflow.report.figures.layers import LAYERS
from sparseflow.report.figures.settings import SETTING, SPARSITY, series, varied_setting
from sparseflow.report.findings import compared, deaths, findings, ranking
from sparseflow.report.layers import layers
from sparseflow.report.page import shown_variant
from sparseflow.report.summary import early_window, rows
from sparseflow.runs import Store, execute

ROOT = Path(__file__).resolve().parents[2]
RATES = (0.05, 0.1, 0.2)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Three learning rates, one of which kills, and two densities."""
    store, name = Store(tmp_path_factory.mktemp("grid")), f"{FAMILY}/rigl+"
    runs = []
    for seed in (0, 1):
        for rate, accuracy in zip(RATES, (97.0, 98.0, 10.0), strict=True):
            told = [f"optimizer.lr={rate}"]
            runs.append(put(store, make_spec(name, seed=seed, settings=told), accuracy + seed))
        runs.append(put(store, make_spec(name, seed=seed, settings=["density=0.02"]), 95.0))
    return collect(runs, family=FAMILY, title="a grid")


def test_every_row_says_which_variant_it_is(grid: Results) -> None:
    assert [row.name for row in rows(grid)] == [
        "rigl+ (density=0.05, optimizer.lr=0.05)",
        "rigl+ (density=0.02, optimizer.lr=0.05)",
        "rigl+ (density=0.05, optimizer.lr=0.1)",
        "rigl+ (density=0.05, optimizer.lr=0.2)",
    ]
    assert "`rigl+ (density=0.05, optimizer.lr=0.1)`" in markdown_table(grid)
    said = shown_variant(grid)
    assert "density 5 % and of 11,719 steps, rigl+ with density=0.05, optimizer.lr=0.05." in said


def test_the_main_of_equally_many_is_what_the_recipe_says(grid: Results) -> None:
    (row,) = compared(grid).values()
    assert dict(row.runs[0].varied) == {"density": 0.05, "optimizer.lr": 0.05}


def test_a_setting_that_varies_is_drawn(grid: Results) -> None:
    assert varied_setting(grid) == "optimizer.lr"
    (line,) = series(grid, "optimizer.lr")
    assert list(line.points) == list(RATES)
    assert line.name == "rigl+ (density=0.05)"
    said = SETTING.finding(grid)
    assert "rigl+ (density=0.05) is best at 0.1, 98.50 % (least at 0.05: 97.50 %)" in said
    assert "all runs at 0.2 dead" in said
    (line,) = series(grid, "density")
    assert list(line.points) == [0.02, 0.05]
    for figure in (SETTING, SPARSITY):
        assert figure.draw(grid) is not None
        assert len(figure.data(grid).rows) == 2 * len(RATES) - 2 * (figure is SPARSITY)


def test_settings_that_follow_another_are_no_line_of_their_own(tmp_path: Path) -> None:
    store, name = Store(tmp_path), f"{FAMILY}/rigl+"
    runs = [put(store, make_spec(name, scale=scale)) for scale in (0.05, 0.1, 0.2)]
    found = collect(runs, family=FAMILY, title="")
    (line,) = series(found, "train.steps")
    assert (line.others, list(line.points)) == ("", [586.0, 1172.0, 2344.0])
    assert len({row.name for row in rows(found)}) == 3


def test_nothing_varies_nothing_is_missed(tmp_path: Path) -> None:
    assert SETTING.draw(results(figures("set+"), figures("rigl+"))) is None
    write_report(results(figures("set+")), tmp_path)
    assert "against a setting" not in (tmp_path / "index.html").read_text()


def test_variants_of_one_label_stay_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    told = ["optimizer.lr=0.1", "optimizer.momentum=0.5", "train.batch=64"]
    many = [[*told, "train.keep=500"], [*told, "train.keep=250"], []]
    runs = [put(store, make_spec(f"{FAMILY}/dense", settings=each)) for each in many]
    assert len(rows(collect(runs, family=FAMILY, title=""))) == 3


def test_initialisation_under_other_settings_is_named(tmp_path: Path) -> None:
    store, name = Store(tmp_path), f"{FAMILY}/init-liu-0.95"
    runs = [put(store, make_spec(name, seed=s)) for s in (0, 1)]
    runs.append(put(store, make_spec(name, seed=2, settings=["data.probe=64"])))
    found = collect(runs, family=FAMILY, title="")
    assert found.left_out == (f"{FAMILY}/init-liu-0.95 seed 2",)
    write_report(found, tmp_path / "page")
    text = (tmp_path / "page" / "index.html").read_text()
    assert "not those of most: lenet5-mnist/init-liu-0.95 seed 2." in text


def test_the_best_comes_first_with_its_range() -> None:
    runs = [figures("set+", s, 97 + s / 10) for s in range(3)]
    runs += [figures("rigl+", s, 98 + s / 10) for s in range(3)]
    runs += [figures("dense", 0, 99.0), figures("shuffled", 0, 11.35)]
    (first, second, *_) = findings(results(*runs))
    assert first == (
        "Best of the sparse networks: rigl+, 98.10 % [98.00–98.20]; then set+, 97.10 % "
        "[97.00–97.20] (the ranges of the first two do not overlap). For comparison: dense, "
        "99.00 % (living: 1 seed)."
    )
    assert second == "1 of 8 runs is dead, it ends under 20 %: shuffled 1 of 1."


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (results(figures("from-elsewhere+")), "from-elsewhere+, 97.00 % (living: 1 seed)."),
        (results(figures("dense")), "Accuracy: dense, 97.00 % (living: 1 seed)."),
        (results(figures("set", 0, 11.35)), ""),
        (results(at_start=(start("liu", 0.95, 0.1),)), ""),
    ],
    ids=["a method of the user's", "no sparse network", "all dead", "only initialisation"],
)
def test_odd_results_are_told_as_they_are(made: Results, said: str, tmp_path: Path) -> None:
    assert ranking(made) == said
    write_report(made, tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "none of which is among" not in text
    assert ("<dd>none</dd>" in text) == (said.startswith("Accuracy: dense"))


def test_a_single_run_is_not_said_to_be_among_several() -> None:
    assert deaths(results(figures("rigl+"))) == ""
    assert deaths(results()) == ""


def test_the_window_of_one_point_is_that_step() -> None:
    assert early_window([figures("rigl+")]) == "step 0 alone"
    assert early_window([replace(figures("rigl+"), window=400)]) == "steps 0–400"
    both = [figures("rigl+"), replace(figures("set+"), window=400)]
    assert early_window(both) == "first twelfth of the steps"


def test_sentences_of_a_name_leave_out_what_is_told_otherwise(tmp_path: Path) -> None:
    store = Store(tmp_path)
    runs = [put(store, make_spec(f"{FAMILY}/rigl+", settings=["init=fan_in", "mask=erk"]))]
    assert compared(collect(runs, family=FAMILY, title="")) == {}


def test_marks_say_recipe_seed_and_value(tmp_path: Path) -> None:
    write_report(results(figures("set+", 3, 98.12), figures("rigl", 0, 11.35)), tmp_path)
    page = (tmp_path / "index.html").read_text()
    groups = re.findall(r'<g class="mark" data-method="(.*?)" data-recipe="(.*?)">', page)
    assert {("set", "set+"), ("rigl", "rigl")} <= set(groups)
    assert "<title>set+, seed 3: 98.12 %</title>" in page
    assert "<title>rigl, seed 0: 11.35 %, dead</title>" in page
    assert '<tr data-method="set">' in page
    assert re.findall(r'value="(.*?)" checked', page) == ["set", "rigl"]
    assert 'class="switches" hidden' in page  # shown by the script alone
    for scales in re.findall(r"data-scales='(.*?)'", page):
        assert all(len(scale) in (3, 5) for scale in json.loads(scales))


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("spectra", {"rigl", "set", "rigl-inverted", "random"}),
        ("spectrum", {"rigl"}),
        (
            "disagreement",
            {
                a if a == b else f"{a} {b}"
                for a in ("lottery", "scratch", "prune-restart", "prune", "rigl", "set")
                for b in ("lottery", "scratch", "prune-restart", "prune", "rigl", "set")
            },
        ),
    ],
)
def test_figures_of_studies_follow_the_switches(name: str, methods: set[str]) -> None:
    """What shows two methods is there while both are."""
    held = load_results(ROOT / "results" / "lenet5-mnist.json")
    page = svg(all_figures()[name].draw(held))
    assert set(re.findall(r'data-method="(.*?)"', page)) == methods


def test_values_of_a_figure_are_in_the_page(tmp_path: Path) -> None:
    write_report(results(figures("set+", 3, 98.12)), tmp_path)
    page = (tmp_path / "index.html").read_text()
    (link,) = re.findall(r'download="accuracy.csv" href="data:text/csv;charset=utf-8,(.*?)"', page)
    text = urllib.parse.unquote(link)
    assert text == (tmp_path / "accuracy.csv").read_text()
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["recipe"], row["accuracy"]) == ("set+", "98.12")


@pytest.mark.slow
def test_layers_are_those_of_the_masks(tmp_path: Path) -> None:
    run = execute(tiny("mlp-mnist/rigl+"), Store(tmp_path))
    found = layers(run)
    assert found
    assert found.steps == (0, 4, 8, 12)
    for column, step in enumerate(found.steps):
        masks = run.state(step).masks()
        for name, density in zip(found.names, found.density, strict=True):
            assert density[column] == pytest.approx(masks.densities[name], rel=1e-4)
    a, b = (run.state(step).masks() for step in (4, 8))
    for name, share in zip(found.names, found.churn, strict=True):
        one = churn({name: a[name]}, {name: b[name]})
        assert share[1] == pytest.approx(one, rel=1e-4)
    drawn = collect([run], family="mlp-mnist", title="")
    assert svg(LAYERS.draw(drawn)).count('data-recipe="rigl+"') == 2 * 3 + 2
    (parent,) = [each for each in Store(tmp_path).runs() if each.id != run.id]
    assert layers(parent)
    dense = execute(tiny("mlp-mnist/dense"), Store(tmp_path))
    assert layers(dense) is None
