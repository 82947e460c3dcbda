"""What stands beside each figure of the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparseflow.report import findings as say
from sparseflow.report import seen
from sparseflow.report.results import Results


@dataclass(frozen=True)
class Caption:
    """What stands beside a figure.

    Attributes:
        title: headline.
        reading: how to read it.
        seen: what it shows with the runs at hand; may be empty.
        missing: what to run, if there is nothing to draw.
        paper: the paper's own figure that it answers to; empty if none.
        evidence: whether it takes studies of checkpoints, not runs alone.
    """

    title: str
    reading: str
    seen: Callable[[Results], str]
    missing: str
    paper: str = ""
    evidence: bool = False


def _table(function: Callable[[say.Table], str]) -> Callable[[Results], str]:
    return lambda results: function(say.compared(results))


CAPTIONS: dict[str, Caption] = {
    "accuracy": Caption(
        "Accuracy by method and initialisation",
        "Every seed is a mark: a circle for masked dense initialisation and for methods that "
        "have one only, a square for Liu et al.'s, a diamond for the paper's (+). The bar is the "
        "median of the living runs. Crosses are dead runs, at chance.",
        _table(lambda table: f"{say.dead_or_alive(table)} {say.dynamic(table)}".strip()),
        "the training recipes",
    ),
    "flow": Caption(
        "Gradient norm during training",
        "L2 norm over all active parameters on a fixed probe batch. Thick line: median of the "
        "living seeds (dotted: masked dense, dashed: Liu et al., solid: the paper's, or the "
        "method's own start). Band: their range. × ends a dead run. Grey: the other panels. "
        "Gradual pruning is the dense network until it begins to prune.",
        _table(say.ticket_norm),
        "the training recipes",
        paper="Figure 2",
    ),
    "flow-kernels": Caption(
        "The same over kernels alone",
        "Norm over weights alone: in a badly initialised sparse network the biases can make up "
        "nearly all of the total. Drawn as above.",
        _table(say.kernels_at_start),
        "the training recipes",
    ),
    "updates": Caption(
        "What a mask update does to the gradient norm",
        "Norm just after an update over the norm just before, minus one; beyond 1 % the scale is "
        "logarithmic. Line and band: median and "
        "middle half of the updates in twelve stretches of training; thin lines: the seeds.",
        _table(say.update_changes),
        "set+, rigl+ or prune",
    ),
    "start-signal": Caption(
        "Signal at initialisation against sparsity",
        "Standard deviation of the output before the softmax, He scale, masks uneven over the "
        "neurons. Line: median over seeds; band: their range.",
        say.signal_at_start,
        "the init-* recipes",
        paper="Figure 1",
    ),
    "start-norm": Caption(
        "Gradient norm at initialisation against sparsity",
        "The same networks: gradient norm on the probe batch before any training.",
        say.norm_at_start,
        "the init-* recipes",
    ),
    "curvature-start": Caption(
        "Curvature at initialisation",
        "Largest and smallest eigenvalue of the Hessian over the active parameters, on the first "
        "training images, before any training. Dots: seeds. Triangles: the authors' code. Both "
        "scales are logarithmic.",
        seen.curvature_at_start,
        "spectra at initialisation",
        evidence=True,
    ),
    "spectra": Caption(
        "The Hessian's spectrum around one mask update",
        "One and the same network is updated by each rule. Grey: eigenvalues before the update; "
        "line: after it (thin: more draws of a random rule). The shaded side is negative; "
        "the bins are logarithmic away from zero, and so are the counts. Below, over all "
        "networks: a dot is a network (draws averaged), the bar the mean over seeds, the band its "
        "95 % interval. Negative: under −10⁻³ times the largest eigenvalue before the update.",
        seen.update_effects,
        "mask updates tried by several rules",
        paper="Figure 3",
        evidence=True,
    ),
    "spectrum": Caption(
        "The whole spectrum of a trained sparse network",
        "Every eigenvalue computed (grey) beside Lanczos quadrature (lines), which takes a "
        "fraction of the time; both axes as above.",
        seen.trained_spectra,
        "spectra of a trained network",
        evidence=True,
    ),
    "map": Caption(
        "A map of starts and ends",
        "All are children of one pruned network (star). Hollow: starts; filled: ends; an arrow is "
        "a run. Multidimensional scaling places them so that distances on the map are as near "
        "to the L2 distances between weights as two dimensions allow; the stress says how near "
        "(0 is perfect). Its directions mean nothing.",
        seen.nearness,
        "distances between starts and ends",
        paper="Figure 4",
        evidence=True,
    ),
    "paths": Caption(
        "Along the straight line to the pruned solution",
        "Training loss on the way from a network to the pruned network of its seed, and a little "
        "beyond either. Thin lines: seeds; thick: their median over the living; dotted: dead runs. "
        "Aligned: hidden units first permuted to match the pruned network's, so that equal "
        "functions with other names of units do not count as far apart.",
        seen.highest_on_lines,
        "lines to the pruned solution",
        paper="Figure 5",
        evidence=True,
    ),
    "plane": Caption(
        "The loss over the plane through three solutions",
        "Every point is a network: a mixture of the pruned one, a ticket and one trained from "
        "scratch on the ticket's mask. Shades run from low to high training loss as on the bar, "
        "each a step of the same factor.",
        seen.over_plane,
        "the plane through three solutions",
        evidence=True,
    ),
    "disagreement": Caption(
        "Who disagrees with whom",
        "A cell is a pair of networks: the share of test images that they classify differently. "
        "The number in a block is its mean in %, a network and itself left out. Lottery, "
        "scratch and prune restart all come from one pruned network.",
        seen.within_groups,
        "predictions of several groups",
        evidence=True,
    ),
}
"""All figures of the page, in its order."""
