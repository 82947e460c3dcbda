"""A table says the same in every form, whatever stands in its cells."""

import csv
import io
import math
from html.parser import HTMLParser

import pytest

from sparseflow.plotting.table import Column, Table

ODD = 'a|b & <script>"x_1"</script> 50 % #\n\\{y}~^'


def table(*rows: dict[str, object]) -> Table:
    return Table.of("a title", rows)


def unescaped(cell: str) -> str:
    return cell.replace("\\|", "|").replace("&lt;", "<")


class Cells(HTMLParser):
    """Texts of the cells, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.rstrip("\n")


def test_numbers_are_aligned_right_and_rounded_but_not_in_csv() -> None:
    made = table({"run": "a", "norm": 0.123456, "steps": 3}, {"run": "b", "norm": None, "steps": 4})
    assert [column.right for column in made.columns] == [False, True, True]
    assert made.cells == [["a", "0.1235", "3"], ["b", "", "4"]]
    rows = list(csv.reader(io.StringIO(made.csv())))
    assert rows == [["run", "norm", "steps"], ["a", "0.123456", "3"], ["b", "", "4"]]


def test_a_column_of_truths_or_of_nothing_is_no_number() -> None:
    made = table({"aligned": True, "gap": None}, {"aligned": False, "gap": None})
    assert [column.right for column in made.columns] == [False, False]


def test_rows_of_other_keys_are_refused() -> None:
    with pytest.raises(KeyError):
        table({"a": 1}, {"b": 1})


def test_a_column_shows_its_values_its_own_way() -> None:
    percent = Column("share", lambda share: f"{share:.0%}", right=True)
    made = Table("", (Column("run"), percent), (("a", 0.25),))
    assert made.markdown() == "| run | share |\n| --- | ---: |\n| a | 25% |"
    assert made.csv() == "run,share\na,0.25\n"


def test_notes_stand_under_markdown() -> None:
    assert Table("", (Column("x"),), ((1,),), "why").markdown().endswith("| 1 |\n\nwhy\n")


@pytest.mark.parametrize("value", [ODD, "plain", "", "× ± − →"])
def test_every_form_keeps_odd_text_within_its_cell(value: str) -> None:
    made = table({"first": value, "second": value})
    lines = made.markdown().splitlines()
    assert len(lines) == 3
    cells = [
        unescaped(cell) for cell in lines[2].removeprefix("| ").removesuffix(" |").split(" | ")
    ]
    assert cells == [value.replace("\n", " ")] * 2
    assert list(csv.reader(io.StringIO(made.csv())))[1] == [value] * 2
    page = Cells(made.html())
    assert page.rows[1] == [value] * 2
    assert page.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    body = made.latex().split("\\midrule\n")[1].split("\n\\bottomrule")[0]
    assert body.endswith(r" \\")
    assert "\n" not in body
    assert body.replace(r"\&", "").count("&") == 1


def test_latex_escapes_what_latex_acts_on() -> None:
    body = table({"x": "50 % of a_b & {c} −1 ± 2 × 3 \\"}).latex()
    assert r"50 \% of a\_b \& \{c\} $-$1 $\pm$ 2 $\times$ 3 \textbackslash{}" in body
    assert body.startswith("\\begin{tabular}{l}\n\\toprule\nx \\\\\n\\midrule\n")


def test_a_table_of_nothing_has_every_form() -> None:
    empty = table()
    assert empty.cells == []
    assert empty.csv() == "\n"
    assert "<tbody>" in empty.html()
    assert "\\toprule" in empty.latex()


def test_what_is_not_finite() -> None:
    assert table({"x": math.nan}, {"x": 1.0}).cells == [[""], ["1"]]
