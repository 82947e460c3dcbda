"""A kind of study made known in one file has its probe, its file, its table and its figure."""

from pathlib import Path

import pytest
from helpers.cli import Cli
from helpers.own import clean_slate
from helpers.small import tiny
from matplotlib.figure import Figure as Drawing

import sparseflow as sf
from sparseflow.core.errors import SpecError
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.style import WIDTH, styled
from sparseflow.plotting.table import Table
from sparseflow.report import Results, load_results, save_results
from sparseflow.report.figures import figures
from sparseflow.runs import Store, execute
from sparseflow.studies import (
    STUDIES,
    Place,
    Point,
    Record,
    Study,
    carry_out,
    register_study,
)
from sparseflow.studies.evidence import of
from sparseflow.studies.study import Tagged, key, points_at


class Steps(Record, Tagged, frozen=True, tag="steps"):
    """How long a run was trained."""

    label: str
    steps: int

    def tables(self) -> list[Table]:
        return [Table.listing("steps", {self.label: self.steps})]


class StepsStudy(Study, Tagged, frozen=True, tag="steps"):
    """Count the steps of a checkpoint."""

    at: Point

    @classmethod
    def of(cls, places: list[Place]) -> "StepsStudy":
        return cls(*points_at(places))

    @property
    def checkpoints(self) -> tuple[Point, ...]:
        return (self.at,)

    def measure(self, store: Store) -> Steps:
        return Steps(self.at.label, self.at.step)


def draw(results: Results) -> object:
    records = of(results, Steps)
    if not records:
        return None
    with styled():
        drawing = Drawing(figsize=(WIDTH, 1))
        drawing.subplots().barh([0], [records[0].steps])
        return drawing


FIGURE = Figure(
    "steps", "Steps", "A bar.", "a run", draw, lambda r: of(r, Steps)[0].tables()[0], lambda r: "",
    evidence=True,
)  # fmt: skip


@pytest.fixture
def known() -> None:
    register_study(StepsStudy, Steps, probe="steps", takes=(1, 1), figures=(FIGURE,))


@pytest.mark.usefixtures("known")
def test_the_store_keeps_its_record_and_the_results_hold_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    run = execute(tiny("mlp-mnist/dense", "data.limit=600", "data.probe=50"), store)
    study = STUDIES["steps"].study.of([Place(run, 12)])
    record = carry_out(study, store)
    assert record == Steps("dense 0 end", 12)
    assert carry_out(study, store) == record  # read from the store this time
    assert record.tables()[0].cells == [["dense 0 end", "12"]]
    results = Results("mlp-mnist", "a trial", 0.02, 12, (), (), (record,))
    save_results(results, tmp_path / "results.json")
    again = load_results(tmp_path / "results.json")
    assert again.evidence == (record,)
    assert figures()["steps"].draw(again) is not None
    assert figures()["steps"].data(again).csv() == ",value\ndense 0 end,12\n"


def test_what_nobody_made_known_is_damage(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "results.json"
    save_results(Results("f", "t", 0.1, 1, (), (), (Steps("a", 1),)), path)
    assert "Invalid value 'steps'" in cli.fails("report", str(path))


OWN = """
from sparseflow.studies import Point, Record, Study, register_study
from sparseflow.studies.study import Tagged

class Length(Record, Tagged, frozen=True, tag="TAG"):
    steps: int

class LengthStudy(Study, Tagged, frozen=True, tag="TAG"):
    at: Point

    def measure(self, store):
        return Length(FACTOR * self.at.step)

register_study(LengthStudy, Length, probe="PROBE", takes=(1, 1))
"""


def own_study(path: Path, tag: str = "length", probe: str = "length", factor: str = "1") -> str:
    """Load a study from a file, and return the key of one of its studies."""
    text = OWN.replace("TAG", tag).replace("PROBE", probe).replace("FACTOR", factor)
    path.write_text(text)
    sf.use(path)
    return key(STUDIES[tag].study(Point("0" * 16, 3)))  # type: ignore[call-arg]


def test_code_that_measures_otherwise_names_another_result(tmp_path: Path) -> None:
    with clean_slate():
        before = own_study(tmp_path / "mine.py")
        assert own_study(tmp_path / "mine.py") == before
        assert own_study(tmp_path / "mine.py", factor="2") != before
    assert not any(kind.code for kind in STUDIES.values())  # keys of our own rest on versions alone


@pytest.mark.parametrize(
    ("tag", "probe", "message"),
    [
        ("spectrum", "length", "study 'spectrum' is registered by sparseflow"),
        ("length", "hessian", "probe 'hessian' is that of study 'spectrum'"),
    ],
)
def test_a_name_that_is_taken_is_refused(
    tag: str, probe: str, message: str, tmp_path: Path
) -> None:
    with clean_slate(), pytest.raises(SpecError, match=message):
        own_study(tmp_path / "mine.py", tag, probe)
    assert STUDIES["spectrum"].probe == "hessian"


def test_study_and_record_bear_one_tag() -> None:
    kind = STUDIES["plane"]
    with pytest.raises(SpecError, match="study 'plane' has a record with the tag 'steps'"):
        register_study(kind.study, Steps, probe="plane", takes=(3, 3))
