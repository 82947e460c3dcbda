"""Train one layer of 16,384 → 16,384 for a few steps; run as a separate process.

Usage: ``python -m benchmarks.sparse.large SPARSITY THREADS``; prints one line of JSON
with the seconds of each step, the growth of the process up to its peak, and the number
of non-zeros. Sparsity 0 trains the dense layer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from sparseflow.sparse import SparseLinear

FEATURES, BATCH, STEPS = 16_384, 128, 5
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(sparsity: float, threads: int) -> None:
    """Build, train, report."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    _small_step()
    CLEAR.write_text("5")  # forget the peak of importing
    before = _status("VmRSS")
    layer = _sparse(1 - sparsity) if sparsity else nn.Linear(FEATURES, FEATURES)
    seconds = _train(layer)
    result = {
        "seconds": seconds,
        "grown": _status("VmHWM") - before,
        "before": before,
        "nonzeros": layer.nnz if isinstance(layer, SparseLinear) else FEATURES**2,
    }
    print(json.dumps(result))


def _sparse(density: float) -> SparseLinear:
    """A layer in which each connection exists with probability ``density``.

    Gaps between connections are then geometric, so nothing of the dense size is allocated.
    """
    size = FEATURES**2
    expected = density * size
    gaps = torch.empty(int(expected + 6 * expected**0.5)).geometric_(density)
    places = gaps.long().cumsum_(0).sub_(1)
    del gaps
    places = places[: int(torch.searchsorted(places, size))]
    values = torch.randn(len(places)).mul_((2 / (density * FEATURES)) ** 0.5)
    return SparseLinear(FEATURES, FEATURES, places, values, torch.zeros(FEATURES))


def _train(layer: nn.Module) -> list[float]:
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9)
    x, target = torch.randn(BATCH, FEATURES), torch.randn(BATCH, FEATURES)
    seconds = []
    for _ in range(STEPS):
        start = perf_counter()
        optimizer.zero_grad()
        nn.functional.mse_loss(layer(x), target).backward()
        optimizer.step()
        seconds.append(perf_counter() - start)
    return seconds


def _small_step() -> None:
    """Run one step, so that torch and the core load what they load on first use."""
    layer = SparseLinear(64, 64, torch.arange(64), torch.ones(64))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9)
    x: Tensor = torch.randn(BATCH, 64, requires_grad=True)
    nn.functional.mse_loss(layer(x), x.detach()).backward()
    optimizer.step()


def _status(name: str) -> int:
    """Bytes from ``/proc/self/status``."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
