"""The paper's claims, each held against the runs and studies at hand.

A verdict comes from an interval and nothing else. Each is of 95 % by itself;
nothing is corrected for the number of claims. Dead runs are counted and left
out of means. Claims about gradient flow are judged in each window apart.
"""

from __future__ import annotations

from sparseflow.report.claims.flow import flow_claims
from sparseflow.report.claims.functions import function_claims
from sparseflow.report.claims.judge import Claim, Judgement
from sparseflow.report.claims.solutions import solution_claims
from sparseflow.report.claims.start import start_claims
from sparseflow.report.claims.table import NOTE, claims_csv, claims_markdown, claims_rows
from sparseflow.report.claims.updates import update_claims
from sparseflow.report.results import Results

__all__ = [
    "NOTE",
    "Claim",
    "Judgement",
    "claims",
    "claims_csv",
    "claims_markdown",
    "claims_rows",
]

PARTS = (start_claims, flow_claims, update_claims, solution_claims, function_claims)
"""Claims by subject, in the order of the page."""


def claims(results: Results) -> list[Claim]:
    """Judge every claim; one without data is listed without a judgement.

    Args:
        results: from :func:`sparseflow.report.collect` or
            :func:`sparseflow.report.load_results`.

    Example:
        >>> from sparseflow.report import Results
        >>> nothing = Results("lenet5-mnist", "a trial", 0.05, 600, (), ())
        >>> {claim.verdict for claim in claims(nothing)}
        {'not settled'}
    """
    return [claim for part in PARTS for claim in part(results)]
