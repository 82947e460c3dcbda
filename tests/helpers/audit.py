"""What is wrong in a store: files that are well are left out."""

from sparseflow import runs, studies
from sparseflow.runs import Finding, Store


def audit(store: Store) -> list[Finding]:
    """Findings of runs and studies."""
    return [each for each in (*runs.inspect(store), *studies.inspect(store)) if each.wrong]
