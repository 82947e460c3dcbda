"""The paper's claims: what each says, what is measured, and where the threshold lies.

A verdict comes from an interval and nothing else. Each is of 95 % by itself;
nothing is corrected for the number of claims. Dead runs are counted and left
out of means. Claims about gradient flow are judged in each window apart.
"""

from __future__ import annotations

from sparseflow.paper.claims import flow, functions, solutions, start, updates
from sparseflow.paper.judging import Claim
from sparseflow.report.results import Results

CLAIMS = (*start.CLAIMS, *flow.CLAIMS, *updates.CLAIMS, *solutions.CLAIMS, *functions.CLAIMS)
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
    return [claim.judge(results) for claim in CLAIMS]
