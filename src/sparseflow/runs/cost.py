"""What a training costs, in floating-point operations."""

from __future__ import annotations

import math
from itertools import pairwise

from sparseflow.measure import flops
from sparseflow.runs.build import load_data, make_model
from sparseflow.runs.run import Run
from sparseflow.topology import stores_more


def training_flops(run: Run) -> float:
    """Floating-point operations of a finished training, with zeros left out.

    Evci et al. 2020, appendix H: a step on an example costs 3 f_S (forward, and
    backward twice that), one that forms the dense gradient 2 f_S + f_D; f_S and f_D
    are forward passes, sparse and dense. A growth gradient from a probe costs
    2 f_S + f_D on each of its examples, at each update. Between kept checkpoints
    f_S is taken for linear in the step. Measurements and evaluation are not counted,
    and what was multiplied by zero in masked dense execution is not either.

    Returns:
        The operations; NaN for a method that keeps weights beyond the mask of the
        forward pass, whose backward passes have another density.

    Raises:
        StoreError: if a checkpoint is damaged, or one that the run kept was removed.
        DataError: if the data set is missing or damaged.
    """
    spec, method = run.spec, run.spec.method
    if stores_more(method):
        return math.nan
    model, example = make_model(spec), load_data(spec).train[:1][0]
    steps = run.expected(spec.train.steps)
    counted = steps if method.changes else steps[:1]
    counts = {step: flops(model, example, run.state(step).masks()) for step in counted}
    first = counts[0]
    extra = {"batch": spec.train.batch, "probe": spec.data.probe}.get(
        str(method.growth_gradient), 0
    )
    total = 0.0
    for start, stop in pairwise(steps):
        ends = [counts[start], counts[stop]] if method.changes else [first, first]
        forward, step = (sum(e.forward for e in ends) / 2, sum(e.step for e in ends) / 2)
        total += (stop - start) * spec.train.batch * step
        every = method.gradients == "all"
        times = sum(every or method.due(s) for s in range(start + 1, stop + 1))
        dense = first.dense_forward - forward  # the batch's own backward pass is counted above
        if method.growth_gradient == "probe":
            dense = first.dense_forward + 2 * forward
        total += times * extra * dense
    return total
