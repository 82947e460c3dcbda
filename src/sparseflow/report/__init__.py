"""Tables, figures and the page: read from the store, or from the compact results of one.

    store -> collect -> Results (JSON) -> tables, figures, page (write_report)

Figures, intervals and the page need matplotlib, scipy and jinja2, which come
with ``pip install 'sparseflow[report]'``; they are imported when first used.
"""

from sparseflow.report.collect import collect
from sparseflow.report.compare import check as check_comparable
from sparseflow.report.compare import compare
from sparseflow.report.compare_text import as_data as comparison_data
from sparseflow.report.compare_text import markdown_table as comparison_markdown
from sparseflow.report.compare_text import write_comparison
from sparseflow.report.merge import merge
from sparseflow.report.page import Section
from sparseflow.report.results import (
    Results,
    RunValues,
    StartValues,
    load_results,
    save_results,
)
from sparseflow.report.table import markdown_table, summary_rows
from sparseflow.report.write import write_report

__all__ = [
    "Results",
    "RunValues",
    "Section",
    "StartValues",
    "check_comparable",
    "collect",
    "compare",
    "comparison_data",
    "comparison_markdown",
    "load_results",
    "markdown_table",
    "merge",
    "save_results",
    "summary_rows",
    "write_comparison",
    "write_report",
]
