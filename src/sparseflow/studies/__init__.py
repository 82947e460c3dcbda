"""Studies: measurements that compare kept checkpoints of finished runs.

    points (run, step) -> study -> carry_out -> figures, kept in the store

The report reads what they find; ``sparseflow measure --probe`` shows one.
"""

from sparseflow.studies.audit import audit
from sparseflow.studies.execution import carry_out, carry_out_all, seconds
from sparseflow.studies.figures import (
    Agreement,
    Distances,
    Figures,
    Line,
    Plane,
    Spectrum,
    Updates,
)
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
    "Agreement",
    "AgreementStudy",
    "DistanceStudy",
    "Distances",
    "Figures",
    "Group",
    "Line",
    "LineStudy",
    "Plane",
    "PlaneStudy",
    "Point",
    "Spectrum",
    "SpectrumStudy",
    "Study",
    "UpdateStudy",
    "Updates",
    "audit",
    "carry_out",
    "carry_out_all",
    "label_of",
    "point_of",
    "seconds",
]
