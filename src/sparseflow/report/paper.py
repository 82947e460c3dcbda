"""Figures by others, to stand beside those measured here.

Source of ``accuracy``, ``start``, ``kernels`` and ``early``: the authors' TensorFlow
code (google-research/rigl, folder rigl_tf2), run on the same MNIST with their own
configuration: LeNet5, 95 % sparse, 11,719 steps. Source of ``published``: Evci et
al., "Gradient Flow in Sparse Neural Networks and How Lottery Tickets Win", AAAI
2022, the MNIST table (5 runs each). They hold for that protocol and no other.
"""

from __future__ import annotations

from dataclasses import dataclass

AUTHORS_CODE = "the authors' code (google-research/rigl, rigl_tf2), run on the same MNIST"
PUBLISHED = "Evci et al., AAAI 2022, MNIST table, 5 runs each"


@dataclass(frozen=True)
class Reference:
    """What others measured.

    Attributes:
        accuracy: test accuracy in %, one figure a seed.
        start: gradient norm at step 0, over seeds.
        kernels: the same over kernels alone.
        early: mean gradient norm over steps 0 to 1,000, over seeds.
        published: test accuracy in % in the paper, mean and standard deviation
            (None where the paper gives none).
        note: what else to know about the published figure.
    """

    accuracy: tuple[float, ...] = ()
    start: tuple[float, ...] = ()
    kernels: tuple[float, ...] = ()
    early: tuple[float, ...] = ()
    published: tuple[float, float | None] | None = None
    note: str = ""


_SHUFFLED = (0.0001, 0.0004)
_AWARE = (0.07, 0.13)

REFERENCES: dict[str, dict[str, Reference]] = {
    "lenet5-mnist": {
        "dense": Reference((99.25,), (0.40,), (0.26, 0.38), (0.35,)),
        "small-dense": Reference((98.52,), (0.24,), (), (0.42,)),
        "prune": Reference(
            (98.65, 98.55), published=(98.53, None), note="five pruned: 98.30 ± 0.23"
        ),
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
}


def reference(family: str, recipe: str) -> Reference | None:
    """Return what others measured for a recipe at the full protocol."""
    return REFERENCES.get(family, {}).get(recipe)
