"""All files of the report."""

from __future__ import annotations

import json
from pathlib import Path

from sparseflow.core.files import write_atomic
from sparseflow.core.optional import need
from sparseflow.report.claims import Claim, claims, claims_csv, claims_markdown, claims_rows
from sparseflow.report.page import render
from sparseflow.report.published import published_csv, published_markdown
from sparseflow.report.results import Results, save_results
from sparseflow.report.table import csv_table, markdown_table


def write_report(results: Results, out: Path) -> list[Path]:
    """Write ``index.html``, ``table.md``, ``table.csv``, ``results.json`` and the figures.

    Where there is evidence, from studies of checkpoints, the claims are judged
    and written too (``claims.json``, ``.md``, ``.csv``), and the published table
    beside ours (``published.md``, ``.csv``).

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
        "curvature-start": draw.curvature_start_figure(results),
        "spectra": draw.spectra_figure(results),
        "spectrum": draw.spectrum_figure(results),
        "map": draw.map_figure(results),
        "paths": draw.paths_figure(results),
        "plane": draw.plane_figure(results),
        "disagreement": draw.disagreement_figure(results),
    }
    drawn = {name: figure for name, figure in drawn.items() if figure is not None}
    vectors = {name: draw.svg(figure) for name, figure in drawn.items()}
    judged = claims(results) if results.evidence else []
    content: dict[str, str | bytes] = {
        "index.html": render(results, vectors, judged),
        "table.md": markdown_table(results),
        "table.csv": csv_table(results),
        **_judged(results, judged),
        **{f"{name}.svg": text for name, text in vectors.items()},
        **{f"{name}.png": draw.png(figure) for name, figure in drawn.items()},
    }
    for name, data in content.items():
        write_atomic(out / name, data)
    save_results(results, out / "results.json")
    return [out / name for name in (*content, "results.json")]


def _judged(results: Results, judged: list[Claim]) -> dict[str, str | bytes]:
    """Files that there are only with evidence."""
    files: dict[str, str | bytes] = {}
    if judged:
        rows = json.dumps(claims_rows(judged), indent=1, ensure_ascii=False, allow_nan=False)
        files |= {
            "claims.json": f"{rows}\n",
            "claims.md": claims_markdown(judged),
            "claims.csv": claims_csv(judged),
        }
    if results.agreement is not None:
        files |= {
            "published.md": published_markdown(results),
            "published.csv": published_csv(results),
        }
    return files
