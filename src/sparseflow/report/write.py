"""All files of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparseflow.core.files import write_atomic
from sparseflow.core.optional import need
from sparseflow.report.figures import figures
from sparseflow.report.page import Section, render
from sparseflow.report.results import Results, save_results
from sparseflow.report.table import markdown_table, summary_table, summary_values


def write_report(results: Results, out: Path, sections: Sequence[Section] = ()) -> list[Path]:
    """Write ``index.html``, the table, ``results.json``, the figures, and files of the sections.

    The table is written as Markdown, CSV and LaTeX; each figure as SVG and PNG,
    with its values as CSV. A figure that has nothing to show is left out, and the
    page says so. Equal results give equal bytes.

    Args:
        results: from :func:`sparseflow.report.collect` or
            :func:`sparseflow.report.load_results`.
        out: folder, made if it does not exist.
        sections: of the page, besides those that every report has.

    Returns:
        The files, the page first.

    Raises:
        SparseflowError: if the ``report`` extra is not installed.
        StoreError: if the folder cannot be written.
    """
    style = need("sparseflow.plotting.style", extra="report")
    drawn = {name: figure.draw(results) for name, figure in figures().items()}
    drawn = {name: drawing for name, drawing in drawn.items() if drawing is not None}
    vectors = {name: style.svg(drawing) for name, drawing in drawn.items()}
    content: dict[str, str | bytes] = {
        "index.html": render(results, vectors, sections),
        "table.md": markdown_table(results),
        "table.csv": summary_values(results).csv(),
        "table.tex": summary_table(results).latex(),
        **{name: text for section in sections for name, text in section.files.items()},
        **{f"{name}.svg": text for name, text in vectors.items()},
        **{f"{name}.png": style.png(drawing) for name, drawing in drawn.items()},
        **{f"{name}.csv": figures()[name].data(results).csv() for name in drawn},
    }
    for name, data in content.items():
        write_atomic(out / name, data)
    save_results(results, out / "results.json")
    return [out / name for name in (*content, "results.json")]
