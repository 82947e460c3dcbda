"""What a layer costs, dense and sparse: counts of its work, and coefficients that give seconds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sparseflow.core.random import generator
from sparseflow.sparse.blocked import LANES
from sparseflow.sparse.layers import zero_padding
from sparseflow.sparse.timing import Pass, Step, interleaved, layout_pass, passes

Kind = Literal["linear", "conv", "layout"]
Execution = Literal["dense", "sparse"]
Key = tuple[Execution, Kind, Step]
Dense = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Work:
    """Counts of what a layer does to one batch on the way forward.

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
        weight: seconds per weight read; what bounds small batches.

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
    """Coefficients by (execution, kind of layer, step).

    One line for every layer of a kind leaves out: how well a size fits the
    caches, what a kernel size, a stride or groups do to dense convolutions,
    channels-last layouts, that small work runs on one thread, and what is
    fused around a layer. Expect errors of tens of percent, more far away from
    the reference layers; :func:`sparseflow.plan` with ``measure=True`` has
    none of these.

    Attributes:
        lines: the coefficients; for the kind "layout", dense, those of a change
            of layout, whose outputs are the elements that are moved.
    """

    lines: Mapping[Key, Line]

    def seconds(
        self, execution: Execution, layer: Dense, shape: torch.Size, nnz: int, *, step: Step
    ) -> float:
        """Time of a layer on one input, in a run of layers of its execution.

        Args:
            execution: dense or sparse.
            layer: the dense layer.
            shape: shape of its input.
            nnz: weights of the sparse form.
            step: what is computed.
        """
        work = work_of(layer, shape, nnz if execution == "sparse" else None)
        return self.lines[execution, kind_of(layer), step].seconds(work)

    def layout(self, layer: Dense, shape: torch.Size, *, step: Step) -> float:
        """Time to block a layer's inputs and unblock its outputs, and back in training."""
        moved = shape.numel() + work_of(layer, shape).outputs
        key: Step = "forward" if step == "forward" else "inner"
        return self.lines["dense", "layout", key].seconds(Work(0, moved, 0))


def kind_of(layer: Dense) -> Kind:
    """Whether it is a linear layer or a convolution."""
    return "linear" if isinstance(layer, nn.Linear) else "conv"


def work_of(layer: Dense, shape: torch.Size, nnz: int | None = None) -> Work:
    """Counts of a layer on an input, with its non-zeros alone if they are given.

    Sparse kernels compute whole blocks of 16 examples.

    >>> work_of(nn.Linear(10, 4), torch.Size([20, 10]))
    Work(products=800, outputs=80, weights=40)
    >>> work_of(nn.Linear(10, 4), torch.Size([20, 10]), nnz=5)
    Work(products=160, outputs=128, weights=5)
    """
    if isinstance(layer, nn.Linear):
        examples, places = shape[:-1].numel(), 1
    else:
        examples, places = shape[:-3].numel(), _places(layer, shape)
    if nnz is not None:
        examples = -(-examples // LANES) * LANES
    weights = layer.weight.numel() if nnz is None else nnz
    outputs = examples * places * layer.weight.shape[0]
    return Work(examples * places * weights, outputs, weights)


def _places(layer: nn.Conv2d, shape: torch.Size) -> int:
    """Height times width of the output."""
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    sizes = zip(shape[-2:], zero_padding(layer), reach, layer.stride, strict=True)
    height, width = ((n + 2 * p - r) // s + 1 for n, p, r, s in sizes)
    return height * width


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


# (in, out), density, batch; from 50 to 99 % sparse, from small to large.
_LINEAR = (
    ((64, 64), 0.1, 64),
    ((784, 300), 0.05, 64),
    ((256, 256), 0.5, 128),
    ((1024, 1024), 0.02, 32),
    ((512, 512), 0.2, 1),
    ((1024, 512), 0.1, 64),
    ((1024, 512), 0.5, 64),
)
# (in, out, kernel), density, input shape.
_CONV = (
    ((6, 16, 5), 0.1, (32, 6, 12, 12)),
    ((1, 6, 5), 0.5, (32, 1, 28, 28)),
    ((16, 16, 3), 0.2, (16, 16, 16, 16)),
    ((32, 64, 1), 0.1, (32, 32, 8, 8)),
    ((64, 64, 3), 0.05, (16, 64, 8, 8)),
    ((64, 64, 3), 0.01, (1, 64, 16, 16)),
)
_LAYOUT = (512, 8192, 131072)
_BUDGET = 0.004  # seconds for each layer and step


def calibrated() -> Costs:
    """Coefficients of this machine at the present number of threads.

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
        found = interleaved(what, budget=_BUDGET, rounds=(2, 15))
        for key, work, times in zip(keys, counts, found, strict=True):
            works.setdefault(key, []).append(work)
            seconds.setdefault(key, []).append(min(times))  # of so few, the least disturbed

    with torch.random.fork_rng(devices=[]):
        for layer, mask, shape in _references():
            kind, nnz = kind_of(layer), int(mask.sum())
            counts = (work_of(layer, shape), work_of(layer, shape, nnz))
            for step in _STEPS:
                both = passes(layer, mask, shape, step=step, alone=False)
                time([(execution, kind, step) for execution in _BOTH], counts, both)
    for elements, step in itertools.product(_LAYOUT, _LAYOUT_STEPS):
        moved = Work(0, 2 * elements, 0)
        time([("dense", "layout", step)], [moved], [layout_pass(elements, step=step)])
    return Costs({key: fit(works[key], seconds[key]) for key in works})


_BOTH: tuple[Execution, ...] = ("dense", "sparse")
_STEPS: tuple[Step, ...] = ("forward", "first", "inner")
_LAYOUT_STEPS: tuple[Step, ...] = ("forward", "inner")


def _references() -> list[tuple[Dense, Tensor, torch.Size]]:
    """Layers, masks and input shapes to calibrate with."""
    stream = generator(0, "calibration")
    layers: list[tuple[Dense, float, torch.Size]] = [
        (nn.Linear(*sizes), density, torch.Size((batch, sizes[0])))
        for sizes, density, batch in _LINEAR
    ]
    layers += [(nn.Conv2d(*sizes), density, torch.Size(shape)) for sizes, density, shape in _CONV]
    return [
        (layer, torch.rand(layer.weight.shape, generator=stream) < density, shape)
        for layer, density, shape in layers
    ]
