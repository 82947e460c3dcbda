"""Inference at 95 % sparsity: a network and linear layers, in batches and by single examples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.cases import LENET5
from benchmarks.progress import progress
from benchmarks.sparse.shapes import Shape
from benchmarks.timing import Record, interleave
from sparseflow.sparse import SparseLinear, to_sparse
from sparseflow.sparse.kernels.blocked import block
from sparseflow.sparse.kernels.linear import LinearPattern

SPARSITY = 0.95
ROUNDS, TURN, BUDGET = 200, 0.002, 10.0


def inference(share: float) -> list[Record]:
    """LeNet5 and two linear layers at batch 128, the larger one also at batch 1."""
    alone = torch.get_num_threads() == 1

    def floor(value: float) -> float | None:
        return value if alone else None

    small = Shape("linear 1024→1024", 1024, 1024)
    large = Shape("linear 4096→4096", 4096, 4096)
    return [
        *_network(share, floor(9)),
        *_linear(small, 128, share, floor(13)),
        *_linear(large, 128, share, floor(13)),
        *_linear(large, 1, share, floor(10)),
    ]


@torch.inference_mode()
def _network(share: float, floor: float | None) -> list[Record]:
    with torch.inference_mode(mode=False):
        model, masks = LENET5.sparse_model(1 - SPARSITY)
        images, _ = LENET5.examples(LENET5.batch)
        sparse = to_sparse(model, masks, images, force=True).eval()
    sides = {"dense": lambda: model(images), "sparse": lambda: sparse(images)}
    return _records(f"LeNet5, batch {LENET5.batch}", sides, share, {"sparse": floor})


@torch.inference_mode()
def _linear(shape: Shape, batch: int, share: float, floor: float | None) -> list[Record]:
    """The kernel on activations in its layout, and the module with both conversions.

    A single example has the plain layout: blocked, it would be computed 16 times.
    """
    generator = torch.Generator().manual_seed(0)
    pointers, columns = shape.topology(SPARSITY, generator)
    values = torch.randn(len(columns), generator=generator)
    rows = torch.arange(shape.after).repeat_interleave(pointers.diff().long())
    places = rows * shape.before + columns
    dense = nn.Linear(shape.before, shape.after, bias=False)
    dense.weight.data.zero_().view(-1)[places] = values
    layer = SparseLinear(shape.before, shape.after, places, values)
    pattern = LinearPattern(pointers, columns, shape.before)
    x = torch.randn(batch, shape.before, generator=generator)
    turned, one, blocked = x.t().contiguous(), x[0], block(x)
    kernel = "kernel, blocked" if batch > 1 else "kernel, one example"
    if not torch.allclose(layer(x), dense(x), rtol=1e-3, atol=1e-3):
        raise RuntimeError(f"{shape.name}: the sparse outputs differ from the dense ones")
    sides: dict[str, Callable[[], Tensor]] = {
        "by rows": lambda: dense(x),
        "by columns": lambda: dense.weight @ turned,
        kernel: (
            (lambda: pattern.forward(values, None, blocked))
            if batch > 1
            else (lambda: pattern.single(values, None, one))
        ),
        "module": lambda: layer(x),
    }
    return _records(f"{shape.name}, batch {batch}", sides, share, {kernel: floor})


def _records(
    case: str,
    sides: dict[str, Callable[[], Tensor]],
    share: float,
    floors: dict[str, float | None],
) -> list[Record]:
    timings = interleave(
        "sparse-inference",
        f"{case}, {SPARSITY:.0%} sparse",
        sides,
        ROUNDS,
        turn=TURN,
        budget=BUDGET * share,
        settings={"sparsity": SPARSITY},
    )
    seconds = timings.seconds
    if "by rows" in seconds:  # the better of dense PyTorch's two layouts
        both = seconds.pop("by rows"), seconds.pop("by columns")
        seconds["dense"] = min(both, key=sum)
    records = [
        timings.speedup(f"inference, {name}", name, "dense", floors.get(name))
        for name in seconds
        if name != "dense"
    ]
    text = ", ".join(f"{r.figure.removeprefix('inference, ')} {r.value:.2f}×" for r in records)
    progress.print(f"{timings.case}, {torch.get_num_threads()} thread(s): {text}")
    return records
