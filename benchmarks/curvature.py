"""Curvature of a dense LeNet5, compared with PyHessian and curvlinops.

Nothing else depends on these libraries, and they need a separate environment
(``referees.txt``).
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import sparseflow as sf
from benchmarks.timing import Record, Timings, interleave
from sparseflow.data import in_batches, load_mnist
from sparseflow.measure.density import spectral_density
from sparseflow.measure.operators import hessian
from sparseflow.measure.spectrum import eigenvalues
from sparseflow.models import build

REFEREES = ("pyhessian", "curvlinops")
IMAGES, QUICK_IMAGES = 5_000, 1_000
TOP, TOLERANCE = 10, 1e-3
STEPS, PROBES = 50, 2
ROUNDS = 5

Batch = tuple[Tensor, Tensor]
Side = Callable[[], Tensor]


def curvature(share: float) -> list[Record]:
    """Time of the top eigenvalues and of the spectral density, over that of the faster referee."""
    missing = [name for name in REFEREES if not _importable(name)]
    if missing:
        sys.stderr.write(
            f"curvature is left out: {' and '.join(missing)} cannot be imported; "
            "benchmarks/referees.txt says how to make an environment with them\n"
        )
        return []
    images = IMAGES if share >= 1 else QUICK_IMAGES
    model, batch = _trained(images)
    title = f"LeNet5 dense, {images:,} images"
    top, density = _top_sides(model, batch), _density_sides(model, batch)
    _same(top)
    rounds = max(2, round(share * ROUNDS))
    return [
        *_records(f"top {TOP} eigenvalues", interleave("curvature", title, top, rounds, warm=0)),
        *_records(
            f"density, {STEPS} steps, {PROBES} probes",
            interleave("curvature", title, density, rounds, warm=1),
        ),
    ]


def _importable(name: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    except ImportError:
        return False
    return True


def _trained(images: int) -> tuple[nn.Module, Batch]:
    """LeNet5 after 100 steps, when its largest eigenvalues are well separated."""
    torch.manual_seed(0)
    data, model = load_mnist(), build("lenet5")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for batch in in_batches(data.train.first(12_800), 128):
        optimizer.zero_grad()
        sf.cross_entropy(model, batch).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, data.train[:images]


def _top_sides(model: nn.Module, batch: Batch) -> dict[str, Side]:
    def ours() -> Tensor:
        operator = hessian(model, sf.cross_entropy, batch)
        return eigenvalues(operator, TOP, "LM", tol=TOLERANCE).values

    def curvlinops() -> Tensor:
        linalg = importlib.import_module("scipy.sparse.linalg")
        operator = _curvlinops(model, batch).to_scipy()
        values = linalg.eigsh(operator, TOP, which="LM", tol=TOLERANCE, return_eigenvectors=False)
        return torch.from_numpy(values).double()

    def pyhessian() -> Tensor:
        values, _ = _pyhessian(model, batch).eigenvalues(maxIter=100, tol=TOLERANCE, top_n=TOP)
        return torch.tensor(values, dtype=torch.float64)

    return {"ours": ours, "curvlinops": curvlinops, "pyhessian": pyhessian}


def _density_sides(model: nn.Module, batch: Batch) -> dict[str, Side]:
    density = spectral_density(hessian(model, sf.cross_entropy, batch), STEPS, PROBES)
    ends = density.smallest, density.largest

    def ours() -> Tensor:
        operator = hessian(model, sf.cross_entropy, batch)
        return spectral_density(operator, STEPS, PROBES).density().mean

    def curvlinops() -> Tensor:
        """Lanczos without reorthogonalisation; it is given the ends of the spectrum."""
        spectrum = importlib.import_module("curvlinops.papyan2020traces.spectrum")
        operator = _curvlinops(model, batch)
        return spectrum.lanczos_approximate_spectrum(
            operator, STEPS, num_repeats=PROBES, boundaries=ends
        )[1]

    def pyhessian() -> Tensor:
        """It calls ``torch.eig``, which PyTorch no longer has: replaced for the call."""
        with patch.object(torch, "eig", _eig, create=True):
            nodes, _ = _pyhessian(model, batch).density(iter=STEPS, n_v=PROBES)
        return torch.tensor(nodes)

    return {"ours": ours, "curvlinops": curvlinops, "pyhessian": pyhessian}


def _curvlinops(model: nn.Module, batch: Batch) -> Any:
    library = importlib.import_module("curvlinops")
    return library.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [batch], check_deterministic=False
    )


def _pyhessian(model: nn.Module, batch: Batch) -> Any:
    """Given one batch, it differentiates once and reuses the graph for every product."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = importlib.import_module("pyhessian")
        return library.hessian(deepcopy(model), nn.CrossEntropyLoss(), data=batch, cuda=False)


def _eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def _same(sides: dict[str, Side]) -> None:
    """Check that all three compute the same largest eigenvalues, before they are timed."""
    top = {name: side().sort(descending=True).values[:3] for name, side in sides.items()}
    for name, values in top.items():
        if not torch.allclose(values, top["ours"], rtol=0.02):
            raise RuntimeError(f"{name} computes {values.tolist()}, sparseflow {top['ours']}")


def _records(what: str, timings: Timings) -> list[Record]:
    def ratio(ours: float, theirs: float) -> float:
        return ours / theirs

    seconds = timings.seconds
    seconds["faster"] = [min(t) for t in zip(*(seconds[n] for n in REFEREES), strict=True)]
    each = [timings.record(f"{what}: of {n}'s time", "ours", n, ratio, "×") for n in REFEREES]
    figure = f"{what}: of the faster one's time"
    return [*each, timings.record(figure, "ours", "faster", ratio, "×", target=1.0)]
