"""All files of the report."""

from __future__ import annotations

from pathlib import Path

from sparseflow.core.extra import need
from sparseflow.core.files import write_atomic
from sparseflow.report.page import render
from sparseflow.report.results import Results, save_results
from sparseflow.report.table import csv_table, markdown_table


def write_report(results: Results, out: Path) -> list[Path]:
    """Write ``index.html``, ``table.md``, ``table.csv``, ``results.json`` and the figures.

    Each figure is written as SVG and PNG; one that has nothing to show is left
    out, and the page says so. Equal results give equal bytes.

    Args:
        results: from :func:`sparseflow.report.collect` or
            :func:`sparseflow.report.load_results`.
        out: folder, made if it does not exist.

    Returns:
        The files, the page first.

    Raises:
        SparseflowError: if the ``report`` extra is not installed.
        StoreError: if the folder cannot be written.
    """
    draw = need("sparseflow.report.figures", extra="report")
    drawn = {
        "accuracy": draw.accuracy_figure(results),
        "flow": draw.flow_figure(results, "total"),
        "flow-kernels": draw.flow_figure(results, "kernels"),
        "updates": draw.updates_figure(results),
        "start-signal": draw.start_signal_figure(results),
        "start-norm": draw.start_norm_figure(results),
    }
    drawn = {name: figure for name, figure in drawn.items() if figure is not None}
    vectors = {name: draw.svg(figure) for name, figure in drawn.items()}
    content: dict[str, str | bytes] = {
        "index.html": render(results, vectors),
        "table.md": markdown_table(results),
        "table.csv": csv_table(results),
        **{f"{name}.svg": text for name, text in vectors.items()},
        **{f"{name}.png": draw.png(figure) for name, figure in drawn.items()},
    }
    for name, data in content.items():
        write_atomic(out / name, data)
    save_results(results, out / "results.json")
    return [out / name for name in (*content, "results.json")]
