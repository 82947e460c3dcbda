"""The paper: what to run for its evidence, its claims, its published values, its sections.

Evci, Ioannou, Keskin, Dauphin, "Gradient Flow in Sparse Neural Networks and How
Lottery Tickets Win", AAAI 2022. The report is general; this room hands it what
it says of the paper.
"""

from sparseflow.paper.claims import CLAIMS, claims
from sparseflow.paper.claims.forms import claims_markdown, claims_rows
from sparseflow.paper.judging import Claim, Judgement
from sparseflow.paper.plan import Reproduction, reproduction
from sparseflow.paper.sections import sections, write_report
from sparseflow.paper.table import published_data, published_markdown
from sparseflow.paper.values import with_references

__all__ = [
    "CLAIMS",
    "Claim",
    "Judgement",
    "Reproduction",
    "claims",
    "claims_markdown",
    "claims_rows",
    "published_data",
    "published_markdown",
    "reproduction",
    "sections",
    "with_references",
    "write_report",
]
