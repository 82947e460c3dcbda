"""Studies: measurements that compare kept checkpoints of finished runs.

    points (run, step) -> study -> carry_out -> figures, kept in the store

The report reads what they find; ``sparseflow measure --probe`` shows one.
"""

from sparseflow.studies.audit import audit, inspect
from sparseflow.studies.execution import carry_out, carry_out_all, seconds
from sparseflow.studies.figures import Figures
from sparseflow.studies.load import point_of
from sparseflow.studies.spec import (
    AgreementStudy,
    DistanceStudy,
    Group,
    LineStudy,
    PlaneStudy,
    Point,
    SpectrumStudy,
    Study,
    UpdateStudy,
    label_of,
)

__all__ = [
    "AgreementStudy",
    "DistanceStudy",
    "Figures",
    "Group",
    "LineStudy",
    "PlaneStudy",
    "Point",
    "SpectrumStudy",
    "Study",
    "UpdateStudy",
    "audit",
    "carry_out",
    "carry_out_all",
    "inspect",
    "label_of",
    "point_of",
    "seconds",
]
