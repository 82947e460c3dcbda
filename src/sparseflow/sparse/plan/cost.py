"""What a layer costs, dense and sparse: counts of its work, and coefficients in seconds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from sparseflow.core.random import generator
from sparseflow.sparse.kernels.blocked import LANES
from sparseflow.sparse.layers.registry import SPARSE_FORMS
from sparseflow.sparse.plan.timing import Pass, Step, interleaved, layout_pass, passes, twin_of

Execution = Literal["dense", "sparse"]
Key = tuple[Execution, str, Step]
"""Execution, which coefficients (``cost`` of a sparse form, or ``layout``), and step."""


@dataclass(frozen=True)
class Work:
    """Counts of what a layer does to one batch in the forward pass.

    Attributes:
        products: multiply-adds.
        outputs: output elements.
        weights: weights read.
    """

    products: int
    outputs: int
    weights: int


@dataclass(frozen=True)
class Line:
    """Seconds as a sum of parts that are proportional to the counts.

    Attributes:
        overhead: seconds of a call.
        product: seconds per multiply-add.
        output: seconds per output element.
        weight: seconds per weight read, which dominates small batches.

    Example:
        >>> Line(0.5, 2.0, 3.0, 5.0).seconds(Work(products=10, outputs=4, weights=1))
        37.5
    """

    overhead: float
    product: float
    output: float
    weight: float

    def seconds(self, work: Work) -> float:
        """Predicted time."""
        parts = self.product * work.products + self.output * work.outputs
        return self.overhead + parts + self.weight * work.weights


@dataclass(frozen=True)
class Costs:
    """Coefficients by (execution, cost of the layer type, step).

    One line for all layers of a type ignores how well a size fits the caches,
    what a kernel size, a stride or groups do to dense convolutions,
    channels-last layouts, that small work runs on one thread, and what is
    fused around a layer. Expect errors of tens of percent, more far away from
    the reference layers; :func:`sparseflow.plan` with ``measure=True`` has
    none of these.

    Attributes:
        lines: the coefficients; under ("dense", "layout", step) those of a change
            of layout, whose outputs are the elements moved.
    """

    lines: Mapping[Key, Line]

    def seconds(
        self, execution: Execution, layer: nn.Module, shape: torch.Size, nnz: int, *, step: Step
    ) -> float:
        """Time of a dense layer on an input of this shape, or of its sparse form with ``nnz``.

        The layer is taken to be one of a run of layers of the same execution.
        """
        work = work_of(layer, shape, nnz if execution == "sparse" else None)
        return self.lines[execution, SPARSE_FORMS[type(layer)].cost, step].seconds(work)

    def layout(self, layer: nn.Module, shape: torch.Size, *, step: Step) -> float:
        """Time to block a layer's inputs and unblock its outputs; in training, also backward."""
        moved = shape.numel() + work_of(layer, shape).outputs
        key: Step = "forward" if step == "forward" else "inner"
        return self.lines["dense", "layout", key].seconds(Work(0, moved, 0))


def work_of(layer: nn.Module, shape: torch.Size, nnz: int | None = None) -> Work:
    """Count the work of a layer on an input, with its non-zeros alone if they are given.

    Sparse kernels compute whole blocks of 16 examples.

    >>> work_of(nn.Linear(10, 4), torch.Size([20, 10]))
    Work(products=800, outputs=80, weights=40)
    >>> work_of(nn.Linear(10, 4), torch.Size([20, 10]), nnz=5)
    Work(products=160, outputs=128, weights=5)
    """
    axes = SPARSE_FORMS[type(layer)].axes
    examples, one = shape[: 1 - axes].numel(), shape[1 - axes :]
    if nnz is not None:
        examples = -(-examples // LANES) * LANES
    places = examples * _places(layer, one)
    weight = layer.get_parameter("weight")
    weights = weight.numel() if nnz is None else nnz
    return Work(places * weights, places * weight.shape[0], weights)


def _places(layer: nn.Module, one: torch.Size) -> int:
    """Positions in each output channel for one example: height times width, or 1."""
    twin = twin_of(layer, lambda parameter: torch.empty_like(parameter, device="meta"))
    with torch.no_grad():
        return twin.forward(torch.empty((1, *one), device="meta")).shape[2:].numel()


def fit(works: Sequence[Work], seconds: Sequence[float]) -> Line:
    """Find the non-negative coefficients of least squared relative error.

    >>> works = [Work(1, 0, 0), Work(3, 0, 0), Work(0, 2, 0), Work(0, 0, 1)]
    >>> line = fit(works, [3.0, 7.0, 1.0, 5.0])
    >>> [round(c, 6) for c in (line.overhead, line.product, line.output, line.weight)]
    [1.0, 2.0, 0.0, 4.0]
    """
    from scipy.optimize import nnls  # noqa: PLC0415  (slow to import, and used once a process)

    rows = np.array([(1, w.products, w.outputs, w.weights) for w in works], dtype=np.float64)
    rows /= np.array(seconds)[:, None]
    scale = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)  # columns differ by powers of ten
    overhead, product, output, weight = nnls(rows / scale, np.ones(len(rows)))[0] / scale
    return Line(float(overhead), float(product), float(output), float(weight))


_LAYOUT = (512, 8192, 131072)
_BUDGET = 0.004  # seconds for each layer and step


def calibrated() -> Costs:
    """Return the coefficients of this machine at the present number of threads.

    They are measured once per process and number of threads, in under half a
    second: a few layers are timed both ways, and lines fitted to the times.

    Raises:
        SparseUnavailable: if the compiled core is missing.
    """
    return _calibrated(torch.get_num_threads())


@functools.cache
def _calibrated(threads: int) -> Costs:  # noqa: ARG001  (the key under which it is kept)
    works: dict[Key, list[Work]] = {}
    seconds: dict[Key, list[float]] = {}

    def time(keys: Sequence[Key], counts: Sequence[Work], what: Sequence[Pass]) -> None:
        rounds = interleaved(what, budget=_BUDGET, rounds=(2, 15))
        for key, work, times in zip(keys, counts, rounds, strict=True):
            works.setdefault(key, []).append(work)
            seconds.setdefault(key, []).append(min(times))  # of so few, the least disturbed

    with torch.random.fork_rng(devices=[]):
        for layer, mask, shape in _references():
            cost, nnz = SPARSE_FORMS[type(layer)].cost, int(mask.sum())
            counts = (work_of(layer, shape), work_of(layer, shape, nnz))
            for step in get_args(Step):
                both = passes(layer, mask, shape, step=step, alone=False)
                time([(execution, cost, step) for execution in get_args(Execution)], counts, both)
    layout_steps: tuple[Step, ...] = ("forward", "inner")
    for elements, step in itertools.product(_LAYOUT, layout_steps):
        moved = Work(0, 2 * elements, 0)
        time([("dense", "layout", step)], [moved], [layout_pass(elements, step=step)])
    return Costs({key: fit(works[key], seconds[key]) for key in works})


def _references() -> list[tuple[nn.Module, Tensor, torch.Size]]:
    """Layers, masks and input shapes to calibrate with."""
    stream = generator(0, "calibration")
    made = []
    for form in SPARSE_FORMS.values():
        for sizes, density, shape in form.references:
            layer = form.dense_type(*sizes)
            drawn = torch.rand(layer.get_parameter("weight").shape, generator=stream)
            made.append((layer, drawn < density, torch.Size(shape)))
    return made
