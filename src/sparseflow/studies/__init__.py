"""Studies: measurements that compare kept checkpoints of finished runs.

    checkpoints (run, step) -> Study.measure -> record, kept in the store

One file is one kind of study: what to measure, the record of it, its tables for
``sparseflow measure --probe``, and its figures for the report. A new kind needs
such a file and its place in the imports below.
"""

from sparseflow.studies.agreement import Agreement, AgreementStudy, Group
from sparseflow.studies.audit import inspect
from sparseflow.studies.distance import Distances, DistanceStudy
from sparseflow.studies.evidence import Evidence, Reference, References
from sparseflow.studies.execution import carry_out, carry_out_all, seconds
from sparseflow.studies.line import Line, LineStudy
from sparseflow.studies.plane import Plane, PlaneStudy
from sparseflow.studies.spectrum import Spectrum, SpectrumStudy
from sparseflow.studies.study import (
    STUDIES,
    Place,
    Point,
    Record,
    Study,
    StudyKind,
    decode,
    figures,
    key,
    label_of,
    point_of,
    register_study,
)
from sparseflow.studies.update import Updates, UpdateStudy
from sparseflow.studies.values import dead_below

__all__ = [
    "STUDIES",
    "Agreement",
    "AgreementStudy",
    "DistanceStudy",
    "Distances",
    "Evidence",
    "Group",
    "Line",
    "LineStudy",
    "Place",
    "Plane",
    "PlaneStudy",
    "Point",
    "Record",
    "Reference",
    "References",
    "Spectrum",
    "SpectrumStudy",
    "Study",
    "StudyKind",
    "UpdateStudy",
    "Updates",
    "carry_out",
    "carry_out_all",
    "dead_below",
    "decode",
    "figures",
    "inspect",
    "key",
    "label_of",
    "point_of",
    "register_study",
    "seconds",
]
