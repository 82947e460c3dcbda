"""What the paper and its authors' code measured, to be shown with what is measured here.

Source of ``accuracy``, ``start``, ``kernels`` and ``early``: the authors' TensorFlow
code (google-research/rigl, folder rigl_tf2), run on the same MNIST with their own
configuration: LeNet5, 95 % sparse, 11,719 steps. Source of ``published``: Evci et
al., "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win", AAAI
2022, the MNIST table (5 runs each). They hold for that protocol and no other.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from sparseflow.report.results import Results
from sparseflow.studies import Reference, References
from sparseflow.studies.evidence import Curvature

AUTHORS_CODE = "the authors' code (google-research/rigl, rigl_tf2), run on the same MNIST"
PUBLISHED = "Evci et al., AAAI 2022, MNIST table, 5 runs each"


@dataclass(frozen=True)
class PublishedLine:
    """One line of the paper's MNIST table: means, each with its standard deviation.

    Attributes:
        start: how the networks of the line begin.
        group: the same networks here.
        accuracy: test accuracy in %.
        ensemble: test accuracy of the ensemble in %; None where there is none.
        disagreement: share of test images that two of them classify differently.
        pruned: the same between one of them and the pruned solution.
    """

    start: str
    group: str
    accuracy: tuple[float, float | None]
    ensemble: float | None = None
    disagreement: tuple[float, float] | None = None
    pruned: tuple[float, float] | None = None


PRUNED = ""
"""Group of the line of the one pruned network that the others are compared with."""

PUBLISHED_TABLE: dict[str, tuple[PublishedLine, ...]] = {
    "lenet5-mnist": (
        PublishedLine(
            "Lottery", "lottery:orders", (98.52, 0.02), 98.58, (0.0043, 0.0006), (0.0089, 0.0002)
        ),
        PublishedLine(
            "Scratch", "scratch:orders", (97.04, 0.15), 98.00, (0.0316, 0.0023), (0.0278, 0.0020)
        ),
        PublishedLine(
            "Scratch, different initialisations",
            "scratch:inits", (97.19, 0.33), 98.43, (0.0352, 0.0037), (0.0278, 0.0032),
        ),
        PublishedLine(
            "Prune restart",
            "prune-restart:orders", (98.60, 0.01), 98.63, (0.0027, 0.0003), (0.0077, 0.0003),
        ),
        PublishedLine("Pruned solution", PRUNED, (98.53, None)),
        PublishedLine(
            "Different pruned",
            "prune", (98.30, 0.23), 99.07, (0.0214, 0.0023), (0.0197, 0.0019),
        ),
    )
}  # fmt: skip
"""The published table; five runs a line."""

_SHUFFLED = (0.0001, 0.0004)
_AWARE = (0.07, 0.13)

_RUNS = {
    "dense": Reference((99.25,), (0.40,), (0.26, 0.38), (0.35,)),
    "small-dense": Reference((98.52,), (0.24,), (), (0.42,)),
    "prune": Reference((98.65, 98.55), published=(98.53, None), note="five pruned: 98.30 ± 0.23"),
    "prune-restart": Reference(published=(98.60, 0.01)),
    "lottery": Reference((98.01, 98.64), (0.036, 0.038), (0.003,), (0.18, 0.32), (98.52, 0.02)),
    "scratch": Reference((98.04, 97.24, 11.35), (0.032,), (), (0.03, 0.12), (97.04, 0.15)),
    "scratch+": Reference((97.71,), (0.35,), (), (0.53,)),
    "shuffled": Reference((11.35, 11.35, 11.35), (0.031, 0.034), _SHUFFLED, (0.03,)),
    "shuffled-liu": Reference((95.05, 90.82, 94.36), (0.08, 0.16), (0.02, 0.08), (0.55, 0.82)),
    "shuffled+": Reference((94.56, 90.88, 90.70), (0.14, 0.17), _AWARE, (0.53, 0.80)),
    "set": Reference((11.35,), (0.034,), _SHUFFLED, (0.03,)),
    "set+": Reference((97.77, 97.85), (0.08, 0.17), (), (0.70, 0.85)),
    "rigl": Reference((11.35,), (0.034,), _SHUFFLED, (0.03,)),
    "rigl+": Reference((97.91, 98.12, 97.77), (0.14, 0.17), _AWARE, (1.18, 1.31)),
}

_CURVATURE = {
    "dense": Curvature(3.9, -1.3),
    "lottery": Curvature(0.12, -0.04),
    "shuffled": Curvature(0.11, -0.06),
    "shuffled-liu": Curvature(0.68, -0.15),
    "shuffled+": Curvature(0.57, -0.17),
}
"""On the first 5,000 training images, measured with the authors' code."""

FIGURES = {
    "flow": "Figure 2 of the paper",
    "start-signal": "Figure 1 of the paper",
    "spectra": "Figure 3 of the paper",
    "map": "Figure 4 of the paper",
    "paths": "Figure 5 of the paper",
}
"""Which of the paper's figures each of ours answers to."""

REFERENCES = {
    "lenet5-mnist": References(
        name="authors' code",
        source=f"{AUTHORS_CODE}; published: {PUBLISHED}",
        runs=_RUNS,
        curvature=_CURVATURE,
        figures=FIGURES,
    )
}
"""By family."""

ABSENT = {
    "lenet5-mnist": "The authors' figures are for LeNet5 at 95 % sparsity and 11,719 steps, so "
    "none stand next to these runs."
}
"""What to say of each family where the settings are others."""


def with_references(results: Results) -> Results:
    """Add what the paper and its authors' code measured, where the settings are theirs."""
    theirs = bool(results.runs) and all(run.published for run in results.runs)
    absent = References(figures=FIGURES, absent=ABSENT.get(results.family, ""))
    reference = REFERENCES.get(results.family, absent) if theirs else absent
    return replace(results, references=reference)
