"""The page of a reproduction: claims, the published table, figures; and a real browser's view."""

import csv
import html
import io
import json
import math
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.evidence import DEAD_SCRATCH, EDGES, PARAMETERS, reproduction
from msgspec.structs import replace

from sparseflow.measure.statistics import Verdict, mean_interval
from sparseflow.paper import (
    Claim,
    Judgement,
    claims,
    published_data,
    published_markdown,
    sections,
    with_references,
    write_report,
)
from sparseflow.paper.sections import VERDICTS, claims_section
from sparseflow.paper.table import published_rows
from sparseflow.paper.values import PUBLISHED_TABLE
from sparseflow.plotting.eigenvalues import linear_width
from sparseflow.plotting.heatmap import round_step
from sparseflow.plotting.style import svg
from sparseflow.report import Results, load_results
from sparseflow.report.figures import figures
from sparseflow.report.page import render
from sparseflow.studies import Agreement, Plane, Spectrum, Updates
from sparseflow.studies.agreement import Ensemble, GroupRecord, Member
from sparseflow.studies.evidence import first, of
from sparseflow.studies.line import dead, lines_from
from sparseflow.studies.plane import over_plane
from sparseflow.studies.update import effects, over_seeds

ELSEWHERE = ("sparsity", "setting", "layers")
"""Figures of grids and of checkpoints, which the made-up runs here do not have."""

FIGURES = {name: figure for name, figure in figures().items() if name not in ELSEWHERE}
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRAWN = ("curvature-start", "spectra", "spectrum", "map", "paths", "plane", "disagreement")
FORMS = ("csv", "md", "tex")
FILES = ("claims.json", *(f"{n}.{form}" for n in ("claims", "published") for form in FORMS))


@pytest.fixture(scope="module")
def whole() -> Results:
    return reproduction(thin=6)


@pytest.fixture(scope="module")
def judged(whole: Results) -> list[Claim]:
    return claims(whole)


@pytest.fixture(scope="module")
def folder(whole: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reproduction")
    write_report(whole, out)
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


class Text(HTMLParser):
    """Words, links and ids of a page, and what it loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [v for n, v in attrs if n == "id" and v]
        self.links += [values["href"] or ""] if tag == "a" and "href" in values else []
        self.loaded += [tag] if tag in ("script", "link", "img", "iframe", "object") else []

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return plain(" ".join(self.words))


def plain(text: str) -> str:
    return " ".join(text.replace("\u00a0", " ").split())


@pytest.mark.slow
def test_everything_is_written_and_the_page_stands_alone(
    folder: Path, page: str, whole: Results
) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {*FILES, "index.html", "results.json", "table.md", "table.csv"} <= names
    assert {f"{n}.{kind}" for n in FIGURES for kind in ("svg", "png", "csv")} <= names
    found = Text(page)
    assert found.loaded == ["script"]
    assert "<script>" in page  # its own, without an address
    assert "url(http" not in page
    assert "@import" not in page
    assert len(found.ids) == len(set(found.ids))
    assert {"claims", "published", *FIGURES} <= set(found.ids)
    for link in found.links:
        if link.startswith("#"):
            assert link[1:] in found.ids, link
        else:
            assert link.startswith(("https://", "data:")) or (folder / link).is_file(), link
    assert {*FILES, "results.json"} <= set(found.links)
    assert load_results(folder / "results.json") == whole


def test_the_page_opens_with_every_claim_and_its_verdict(page: str, judged: list[Claim]) -> None:
    text = Text(page).text
    order = [page.index(f'id="{part}"') for part in ("claims", "published", "accuracy")]
    assert order == sorted(order)
    cards = re.findall(r'<article class="claim" id="claim-(.*?)">(.*?)</article>', page, re.DOTALL)
    assert [name for name, _ in cards] == [claim.name for claim in judged]
    for claim, (_, card) in zip(judged, cards, strict=True):
        words = Text(card).text
        assert plain(claim.sentence) in words
        assert plain(claim.paper) in words
        assert plain(claim.note) in words
        look, sign = VERDICTS[claim.verdict]
        assert f'class="badge {look}"' in card
        assert words.startswith(f"{sign} {claim.verdict}")
        for one in claim.judgements:
            assert plain(one.ours) in words
            assert f"{one.window} : {one.verdict}" in words
        if claim.figure:
            assert f'href="#{claim.figure}"' in card
    for verdict, (_, sign) in VERDICTS.items():
        number = sum(claim.verdict == verdict for claim in judged)
        assert f" {number} {sign} {verdict}" in text


@pytest.mark.parametrize("verdict", VERDICTS)
def test_each_verdict_has_its_word_and_sign(whole: Results, verdict: Verdict) -> None:
    one = Judgement("whole run", "×2.0 [1.5, 2.6], 5 seeds", mean_interval([2.0, 2.1]), verdict)
    page = render(
        whole,
        {},
        [claims_section([Claim("one", "So it is.", "Figure 9.", (), "flow", "", (one,))])],
    )
    look, sign = VERDICTS[verdict]
    card = page[page.index('id="claim-one"') : page.index("</article>")]
    assert f'<span class="badge {look}">' in card
    assert f'<span class="sign {look}" title="{verdict}">' in card
    assert Text(card).text.count(f"{sign} {verdict}") == 1
    assert "×2.0 [1.5,\u00a02.6], 5 seeds" in card
    assert "#flow" not in card  # not among the figures
    assert f"1 {sign} {verdict}" in Text(page).text


def test_a_claim_without_data_says_so(whole: Results) -> None:
    empty = Claim("nothing", "Nothing <b>is</b> so.", "Figure 9.", (), "", "")
    page = render(whole, {}, [claims_section([empty])])
    assert "Nothing &lt;b&gt;is&lt;/b&gt; so." in page
    assert "Nothing measured yet." in page
    assert 'class="badge open"' in page


def test_claims_as_files(folder: Path, judged: list[Claim]) -> None:
    rows = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == [claim.name for claim in judged]
    assert [row["verdict"] for row in rows] == [claim.verdict for claim in judged]
    for row, claim in zip(rows, judged, strict=True):
        values = [judgement["value"] for judgement in row["judgements"]]
        assert values == pytest.approx([j.estimate.value for j in claim.judgements])
    lines = list(csv.DictReader(io.StringIO((folder / "claims.csv").read_text(encoding="utf-8"))))
    assert len(lines) == sum(max(len(claim.judgements), 1) for claim in judged)
    text = (folder / "claims.md").read_text(encoding="utf-8")
    assert all(claim.sentence in text for claim in judged)


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_drawn_where_there_is_something_to_draw(
    name: str, whole: Results, folder: Path
) -> None:
    assert FIGURES[name].draw(replace(whole, evidence=())) is None
    assert FIGURES[name].finding(replace(whole, evidence=())) == ""
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert FIGURES[name].finding(whole).endswith(".")


@pytest.mark.slow
def test_equal_results_give_equal_bytes(folder: Path) -> None:
    again = with_references(load_results(folder / "results.json"))
    for name in DRAWN:
        drawn = svg(FIGURES[name].draw(again))
        assert drawn.encode() == (folder / f"{name}.svg").read_bytes(), name
    vectors = {n: (folder / f"{n}.svg").read_text(encoding="utf-8") for n in FIGURES}
    page = render(again, vectors, sections(again))
    assert page.encode() == (folder / "index.html").read_bytes()
    assert published_markdown(again).encode() == (folder / "published.md").read_bytes()


def test_without_evidence_nothing_is_said_of_it(whole: Results, tmp_path: Path) -> None:
    few = replace(whole, evidence=(), runs=whole.runs[:2], at_start=())
    names = {path.name for path in write_report(few, tmp_path)}
    assert not names & {*FILES, *(f"{n}.svg" for n in DRAWN)}
    text = Text((tmp_path / "index.html").read_text(encoding="utf-8")).text
    assert not any(FIGURES[n].title in text or FIGURES[n].missing in text for n in DRAWN)
    assert "Claim by claim" not in text
    assert "of the paper" not in text


def test_what_was_not_measured_is_named(whole: Results) -> None:
    page = render(replace(whole, evidence=tuple(of(whole, Spectrum))), {})
    for name in ("paths", "plane", "disagreement"):
        assert f"It needs {FIGURES[name].missing}" in page
    assert 'id="published"' not in page


# The published table


def member(label: str, accuracy: float, reference: float | None = 0.01) -> Member:
    return Member(label, accuracy, 0.1, 0.01, accuracy < 20, reference, reference)


def small(whole: Results) -> Results:
    """Two groups of the table, small enough for mental arithmetic; a run of the first is dead."""
    scratch = [member(f"scratch:orders {s} end", a, r) for s, a, r in (
        (0, 97.0, 0.02), (1, 11.35, 0.88), (2, 98.0, 0.03), (3, 97.5, 0.04),
    )]  # fmt: skip
    pruned = [member("prune 0 end", 98.5, None), member("prune 1 end", 98.7, 0.02)]
    pairs = {(0, 2): 0.03, (0, 3): 0.04, (2, 3): 0.05, (4, 5): 0.02, (1, 0): 0.9}
    matrix = np.full((7, 7), 0.5)
    for (i, j), value in pairs.items():
        matrix[i, j] = matrix[j, i] = value
    np.fill_diagonal(matrix, 0)
    rows = tuple(tuple(map(float, row)) for row in matrix)
    together = Ensemble(3, 98.2, 0.06, 0.004, 0.7, 0.1)
    groups = (
        GroupRecord("scratch:orders", tuple(scratch), together),
        GroupRecord("prune", tuple(pruned), None),
    )
    labels = (*(m.label for g in groups for m in g.members), "prune 0 end")
    return replace(whole, evidence=(Agreement(groups, labels, labels, rows, rows),))


def test_the_table_is_what_one_computes_by_hand(whole: Results) -> None:
    rows = {row.group: row for row in published_rows(small(whole))}
    ours = rows["scratch:orders"].ours
    assert ours is not None
    assert ours.accuracy
    assert ours.disagreement
    assert ours.pruned
    assert (ours.runs, ours.dead, ours.median) == (4, 1, 97.5)
    half = 4.302653 * 0.5 / math.sqrt(3)  # t of two degrees of freedom; s = 0.5
    assert ours.accuracy.value == pytest.approx(97.5)
    assert ours.accuracy.low == pytest.approx(97.5 - half)
    assert ours.accuracy.high == pytest.approx(97.5 + half)
    assert ours.pruned.value == pytest.approx(0.03)
    assert ours.disagreement.value == pytest.approx(0.04)
    error = math.sqrt(2 / 3 * (0.01**2 + 0 + 0.01**2))  # leaving out one: 0.05, 0.04, 0.03
    assert ours.disagreement.high - 0.04 == pytest.approx(4.302653 * error)
    pruned = rows["prune"].ours
    assert pruned is not None
    assert pruned.pruned
    assert pruned.disagreement
    assert pruned.median is None
    assert (pruned.pruned.value, pruned.pruned.n) == (0.02, 1)  # the reference is left out
    assert pruned.disagreement.value == pytest.approx(0.02)
    alone = rows[""].ours
    assert alone is not None
    assert alone.accuracy
    assert (alone.accuracy.value, alone.runs, alone.dead) == (98.5, 1, 0)


def test_the_table_as_text_and_data(whole: Results) -> None:
    found = small(whole)
    text = published_markdown(found)
    line = next(line for line in text.splitlines() if line.startswith("| Scratch |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "Scratch", "4, 1 dead", "97.04 ± 0.15", "97.50 [96.26, 98.74] (median 97.50)",
        "98.00", "98.20 (+0.70 ± 0.10)", "0.0316 ± 0.0023", "0.0400 [−0.0097, 0.0897]",
        "0.0278 ± 0.0020", "0.0300 [0.0052, 0.0548]", "0.0600", "0.0040",
    ]  # fmt: skip
    data = {row["group"]: row for row in published_data(found)}
    assert data["scratch:orders"]["dead"] == 1
    assert data["scratch:orders"]["paper_accuracy_sd"] == 0.15
    assert data["scratch:orders"]["ensemble_gain"] == 0.7
    assert data["prune"]["pruned_low"] is None  # one run has no interval
    assert data["lottery:orders"]["accuracy_value"] is None
    assert data["lottery:orders"]["paper_disagreement"] == 0.0043


def test_all_rows_of_the_paper_and_two_more(whole: Results, page: str) -> None:
    rows = published_rows(whole)
    assert [row.start for row in rows[:6]] == [
        line.start for line in PUBLISHED_TABLE["lenet5-mnist"]
    ]
    assert [row.start for row in rows[6:]] == ["RigL+", "SET+"]
    assert all(row.ours for row in rows)
    text = Text(page[page.index('id="published"') :]).text
    assert "paper 98.52 ± 0.02" in text
    assert "5, 1 dead" in text


def test_the_papers_figures_stand_beside_its_own_settings_only(whole: Results) -> None:
    other = replace(whole, runs=tuple(replace(run, published=False) for run in whole.runs))
    assert not any(row.paper for row in published_rows(other))
    assert "98.52 ± 0.02" not in published_markdown(other)
    assert "so none stand next to" in published_markdown(other)
    said = [FIGURES["curvature-start"].finding(with_references(r)) for r in (whole, other)]
    assert [sentence.count("authors' code") for sentence in said] == [5, 0]


# What the figures show


def test_effects_average_draws_then_steps_then_seeds(whole: Results) -> None:
    found = effects(whole)
    assert [len(found[rule]) for rule in ("rigl", "set", "rigl-inverted", "random")] == [15] * 4
    update = of(whole, Updates)[4]  # seed 1, second step
    draws = [trial for trial in update.after if trial.rule == "set"]
    (one,) = (e for e in found["set"] if (e.seed, e.step) == ("1", update.step))
    assert len(draws) == 3
    more = [t.negative - update.before.negative * PARAMETERS for t in draws]
    assert one.negatives == pytest.approx(statistics.fmean(more))
    assert one.norm == pytest.approx(
        statistics.geometric_mean(t.spectrum.norm for t in draws) / update.before.norm - 1
    )
    mean = over_seeds(found["set"], "norm")
    assert mean.n == 5
    assert 1 + mean.value == pytest.approx(
        statistics.geometric_mean(1 + e.norm for e in found["set"])
    )


def test_dead_runs_are_counted_and_left_out_of_lines(whole: Results) -> None:
    ends = lines_from(whole, "scratch", "end", aligned=False)
    gone = [line.labels[0] for line in ends if dead(line, whole.dead_below)]
    assert gone
    assert set(gone) <= {f"scratch {seed} end" for seed in DEAD_SCRATCH}
    starts = lines_from(whole, "scratch", "start", aligned=False)
    assert not any(dead(line, whole.dead_below) for line in starts)
    said = FIGURES["paths"].finding(whole)
    tops = [max(v for a, v in zip(line.alphas, line.train_loss, strict=True) if 0 <= a <= 1)
            for line in ends if line.labels[0] not in gone]  # fmt: skip
    assert f"from scratch {statistics.median(tops):.1f} (" in said
    assert f"Dead, dotted and left out: {len(gone)} scratch run" in said


def test_the_plane_is_read_off_along_straight_lines(whole: Results) -> None:
    x = tuple(float(v) for v in range(5))
    losses = tuple(tuple(math.exp(a) for a in x) for _ in x)  # exp(x): linear in the logarithm
    corners = ((0.0, 0.0), (3.0, 1.0), (1.5, 4.0))
    labels = ("prune 0 end", "lottery 0 end", "scratch 0 end")
    said = over_plane(replace(whole, evidence=(Plane(labels, corners, x, x, losses),)))
    assert said.startswith("Training loss is 1.0 at pruned, 20 at lottery and 4.5 at scratch;")
    assert "20 between pruned and lottery, 4.5 between pruned and scratch" in said


def test_bins_are_drawn_as_wide_as_each_other() -> None:
    assert linear_width(EDGES) == pytest.approx(1e-3, rel=0.01)
    assert linear_width(0.2 * np.sinh(np.linspace(-3, 5, 40))) == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize(("least", "step"), [(0.9, 1), (1.0, 1), (1.1, 2), (2.3, 2.5), (0.06, 0.1)])
def test_colour_steps_are_round(least: float, step: float) -> None:
    assert round_step(least) == pytest.approx(step)


@pytest.mark.slow
def test_odd_figures_do_not_spoil_the_picture(whole: Results, tmp_path: Path) -> None:
    """A line that is not finite, a lone network, all members dead."""
    line = lines_from(whole, "lottery", "end", aligned=False)[0]
    broken = replace(line, train_loss=(None, *line.train_loss[1:]))
    update = of(whole, Updates)[0]
    found = first(whole, Agreement)
    assert found is not None
    lost = replace(found, groups=tuple(
        replace(g, members=tuple(replace(m, dead=True, accuracy=11.35) for m in g.members),
                ensemble=None) for g in found.groups
    ))  # fmt: skip
    few = replace(whole, runs=(), at_start=(), evidence=(broken, update, lost))
    names = {path.name for path in write_report(few, tmp_path)}
    assert {"paths.svg", "spectra.svg"} <= names
    assert "disagreement.svg" not in names
    assert "5, 5 dead" in published_markdown(few)


# A browser


WIDTHS = (390, 1280)
MEASURE = """
const seen = [...document.querySelectorAll('iframe')].map(frame => {
  const page = frame.contentDocument, root = page.documentElement;
  const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.right, b.height]; };
  const scrolled = e => e.closest('.scroll') || e.closest('svg') || e.closest('.hidden');
  const text = [...page.querySelectorAll('main *')].filter(e => !scrolled(e));
  return {
    width: root.clientWidth, scroll: root.scrollWidth,
    figures: [...page.querySelectorAll('figure')].map(e => [e.id, box(e.querySelector('svg'))]),
    wide: text.filter(e => box(e)[1] > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80)),
    cards: [...page.querySelectorAll('.claim')].map(box),
    small: Math.min(...text.filter(e => e.childElementCount === 0 && e.textContent.trim())
      .map(e => parseFloat(page.defaultView.getComputedStyle(e).fontSize))),
    published: page.querySelector('#published .scroll').scrollWidth
      - page.querySelector('#published .scroll').clientWidth,
  };
});
document.body.textContent = 'FOUND' + JSON.stringify(seen) + 'END';
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome here")
def test_a_browser_shows_it_at_phone_and_desk_width(page: str, tmp_path: Path) -> None:
    style, content = "height:800px;border:0", html.escape(page)
    frames = "".join(
        f'<iframe style="width:{width}px;{style}" srcdoc="{content}"></iframe>' for width in WIDTHS
    )
    wrapper = tmp_path / "wrapper.html"
    script = f"<script>addEventListener('load', () => {{{MEASURE}}})</script>"
    wrapper.write_text(f"<!doctype html><body>{frames}{script}</body>", encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command = [str(BROWSER), *options, f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1700,900", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"FOUND(.*)END", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    for width, seen in zip(WIDTHS, json.loads(html.unescape(found[1])), strict=True):
        assert seen["width"] == width
        assert seen["scroll"] <= width, seen["wide"]
        assert seen["wide"] == []
        assert [name for name, _ in seen["figures"]] == list(FIGURES)
        for name, (left, right, height) in seen["figures"]:
            assert right - left > 0.85 * min(width, 600), name
            assert height > 100, name
        assert all(right - left > 0.8 * width for left, right, _ in seen["cards"])
        assert seen["small"] >= 11
        assert seen["published"] <= 0  # no part of the table is hidden
