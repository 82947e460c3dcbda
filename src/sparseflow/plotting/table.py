"""A table as a value, and its four forms: Markdown, CSV, HTML and LaTeX."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def plain(value: Any) -> str:
    """Write a value with up to four significant digits; nothing for what is missing.

    >>> plain(0.123456), plain(None), plain(12), plain(float("nan"))
    ('0.1235', '', '12', '')
    """
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        head: its heading.
        show: the text of a value.
        right: whether it is aligned to the right, as numbers are.
    """

    head: str
    show: Callable[[Any], str] = plain
    right: bool = False


@dataclass(frozen=True)
class Table:
    """A table: values, and how to show them.

    Attributes:
        title: what it is of.
        columns: one for each value of a row.
        rows: the values; CSV has them as they are, all other forms as text.
        notes: what the columns mean; may be empty.

    Example:
        >>> table = Table.of("norms", [{"run": "rigl+", "norm": 0.51}])
        >>> print(table.markdown())
        | run | norm |
        | --- | ---: |
        | rigl+ | 0.51 |
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: str = ""

    @classmethod
    def of(cls, title: str, rows: Iterable[Mapping[str, Any]], notes: str = "") -> Table:
        """Make a table of rows that share their keys; columns of numbers are aligned right."""
        lines = list(rows)
        heads = list(lines[0]) if lines else []
        columns = (Column(head, right=_is_number(line[head] for line in lines)) for head in heads)
        values = (tuple(line[head] for head in heads) for line in lines)
        return cls(title, tuple(columns), tuple(values), notes)

    @classmethod
    def listing(cls, title: str, values: Mapping[str, Any]) -> Table:
        """Make a table of one value a row, each with its name."""
        return cls.of(title, [{"": name, "value": value} for name, value in values.items()])

    @property
    def cells(self) -> list[list[str]]:
        """The text of every cell."""
        return [
            [column.show(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """As Markdown, the notes beneath."""
        rule = ["---:" if column.right else "---" for column in self.columns]
        heads = [column.head for column in self.columns]
        lines = [_line(heads), _line(rule), *map(_line, self.cells)]
        return "\n".join(lines) + (f"\n\n{self.notes}\n" if self.notes else "")

    def csv(self) -> str:
        """The values unformatted, under their headings."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.head for column in self.columns])
        writer.writerows(self.rows)
        return out.getvalue()

    def html(self) -> str:
        """As an HTML table; the first cell of a row is its heading."""
        heads = "".join(f'<th scope="col">{html.escape(c.head)}</th>' for c in self.columns)
        body = "\n".join(f"<tr>{self._html_row(cells)}</tr>" for cells in self.cells)
        caption = f"<caption>{html.escape(self.title)}</caption>\n" if self.title else ""
        head = f"<thead><tr>{heads}</tr></thead>"
        return f"<table>\n{caption}{head}\n<tbody>\n{body}\n</tbody>\n</table>"

    def _html_row(self, cells: Sequence[str]) -> str:
        first, *rest = (html.escape(cell) for cell in cells)
        sides = (' class="right"' if column.right else "" for column in self.columns[1:])
        others = (f"<td{side}>{cell}</td>" for side, cell in zip(sides, rest, strict=True))
        return f'<th scope="row">{first}</th>{"".join(others)}'

    def latex(self) -> str:
        """As a LaTeX tabular, ruled by the package booktabs."""
        sides = "".join("r" if column.right else "l" for column in self.columns)
        heads = _latex_line(column.head for column in self.columns)
        body = "\n".join(map(_latex_line, self.cells))
        return (
            f"\\begin{{tabular}}{{{sides}}}\n\\toprule\n{heads}\n\\midrule\n{body}\n"
            "\\bottomrule\n\\end{tabular}\n"
        )


def _is_number(values: Iterable[Any]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in present
    )


_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_markdown, cells))} |"


def _markdown(cell: str) -> str:
    r"""Keep any text within its cell.

    >>> print(_markdown("p < 0.05 | <b>"))
    p < 0.05 \| &lt;b>
    """
    return _TAG.sub("&lt;", cell).replace("|", "\\|").replace("\n", " ")


_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"−": "$-$", "±": r"$\pm$", "×": r"$\times$", "✕": r"$\times$", "→": r"$\to$"},
        **{"←": r"$\gets$", "α": r"$\alpha$", "‖": r"$\|$", "∇": r"$\nabla$", "–": "--"},
        **{"…": r"\dots{}", "\n": " "},
    }
)


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"
