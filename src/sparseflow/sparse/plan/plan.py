"""The plan of a model's execution: a table of each layer and the whole, dense and sparse."""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparseflow.core.wrappers import copy_of
from sparseflow.sparse.convert.conversion import Conversion
from sparseflow.sparse.plan.predict import (
    Call,
    Calls,
    LayerPlan,
    Times,
    calls_of,
    cloned,
    layer_plan,
    never_called,
    predict,
)
from sparseflow.sparse.plan.timing import Pass, interleaved, passes

_LAYER_BUDGET, _WHOLE_BUDGET = 0.5, 2.0
_ROUNDS = (3, 25)


@dataclass(frozen=True)
class Plan:
    """Times of a model's masked layers, dense and sparse; printing it gives a table.

    Attributes:
        layers: each layer that has a sparse form, over all its calls.
        whole: if measured, the time of the whole model, dense and with the
            chosen layers sparse; else the sum over the layers, where those not
            chosen count as dense in both. If none is chosen, all count as chosen.
        obstacles: why the other masked weights stay dense, by name; under the
            name of the model's class, why it cannot be traced.
        batch: examples in the example input.
        threads: threads of torch.
        training: whether times are of a training step (forward, and gradients
            by inputs and parameters) or of a forward pass.
    """

    layers: tuple[LayerPlan, ...]
    whole: Times
    obstacles: dict[str, str]
    batch: int
    threads: int
    training: bool

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON, speed-ups and choices included."""
        rows = [
            asdict(p) | {"shape": list(p.shape), "speedup": p.speedup, "sparse": p.sparse}
            for p in self.layers
        ]
        whole = asdict(self.whole) | {"speedup": self.whole.speedup}
        return asdict(self) | {"layers": rows, "whole": whole}

    def __str__(self) -> str:
        """Print the table."""
        step = "training step" if self.training else "forward pass"
        how = "measured" if self.whole.measured else "predicted"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        text = io.StringIO()
        console = Console(file=text, width=200, color_system=None)
        console.print(f"{step}, batch {self.batch}, {threads}, {how}")
        console.print(self._table())
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        if self.obstacles:
            lines += ["not sparse, or not at full speed:"]
            lines += [f"  {name}: {why}" for name, why in self.obstacles.items()]
        return "\n".join(line for line in lines if line)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_footer=True)
        whole = "whole model" if self.whole.measured else "sum of the layers"
        footers = (whole, "", "", *_cells(self.whole), "")
        heads = ("layer", "shape", "density", "dense ms", "sparse ms", "speed-up", "choice")
        for head, footer in zip(heads, footers, strict=True):
            right = "left" if head in ("layer", "shape", "choice") else "right"
            table.add_column(head, footer, justify=right, no_wrap=True)
        for plan in self.layers:
            shape, density = "×".join(map(str, plan.shape)), f"{100 * plan.density:.3g} %"
            choice = "sparse" if plan.sparse else "dense"
            table.add_row(plan.name, shape, density, *_cells(plan), choice)
        return table


def _cells(times: Times) -> tuple[str, str, str]:
    seconds = (times.dense_seconds, times.sparse_seconds)
    dense, sparse = (f"{1000 * s:.3f}" for s in seconds)
    return dense, sparse, f"{times.speedup:.2f}×"


def plan(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    example_input: Any,
    *,
    measure: bool = False,
    training: bool = True,
) -> Plan:
    """Tell layer by layer what sparse execution would gain, for this batch on this machine.

    Predicted times come from costs that are calibrated once per process and
    number of threads (under half a second) and are rough, see
    :class:`sparseflow.sparse.plan.cost.Costs`; measured ones are medians of
    interleaved runs, at most about half a second per layer and two for the
    whole, or three rounds where these take longer. Nothing of the model, its
    gradients or the random streams changes.

    Args:
        model: a dense float32 model on the CPU.
        masks: masks by parameter name.
        example_input: one input, or a tuple of positional ones, of the batch
            size to plan for.
        measure: time the layers and the whole model, dense and sparse.
        training: plan for training steps, not for forward passes alone.

    Raises:
        MaskError: if the masks do not match, or the model does not run on the input.
        SparseUnavailable: if the compiled core is missing.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
        >>> masks = sf.sparsify(net, density=0.05)
        >>> gains = plan(net, masks, torch.randn(128, 784))
        >>> [(p.name, p.shape) for p in gains.layers], gains.layers[0].sparse
        ([('0.weight', (300, 784)), ('2.weight', (10, 300))], True)
    """
    conversion = Conversion(model, masks, example_input)
    calls = calls_of(conversion)
    obstacles = conversion.obstacles | never_called(calls)
    problem = conversion.trace.problem
    if problem:
        name = type(conversion.model).__name__
        obstacles[name] = f"{problem}; each sparse layer changes the layout alone"
    layers = (_measured if measure else predict)(conversion, calls, training=training)
    chosen = [p.name for p in layers if p.sparse] or [p.name for p in layers]
    if measure and layers:
        whole = _whole(conversion, chosen, training=training)
    else:
        whole = _sum(layers, chosen)
    tensors = [t for t in pytree.tree_leaves(conversion.example) if isinstance(t, Tensor)]
    batch = next((t.shape[0] for t in tensors if t.ndim), 1)
    return Plan(layers, whole, obstacles, batch, torch.get_num_threads(), training)


def _sum(layers: tuple[LayerPlan, ...], chosen: list[str]) -> Times:
    """Add up the layers, those not chosen as dense in both."""
    sparse = [p.sparse_seconds if p.name in chosen else p.dense_seconds for p in layers]
    dense = [p.dense_seconds for p in layers]
    return Times(dense_seconds=sum(dense, 0.0), sparse_seconds=sum(sparse, 0.0), measured=False)


def _measured(conversion: Conversion, calls: Calls, *, training: bool) -> tuple[LayerPlan, ...]:
    """Time each layer that is called."""

    def clock(layer: nn.Module, name: str, call: Call) -> tuple[float, float]:
        step, mask = call.step(training), conversion.masks[name]
        both = passes(layer, mask, call.shape, step=step, alone=call.alone)
        dense, sparse = interleaved(both, budget=_LAYER_BUDGET, rounds=_ROUNDS)
        return statistics.median(dense), statistics.median(sparse)

    used = [(name, uses) for name, uses in calls.items() if uses]
    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        return tuple(
            layer_plan(conversion, name, uses, clock, measured=True)
            for name, uses in bar.track(used, description="timing layers")
        )


def _whole(conversion: Conversion, names: list[str], *, training: bool) -> Times:
    """Time the whole model, dense and with these layers sparse."""
    parts = conversion.parts(names)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # what they say is among the obstacles
        example = cloned(conversion.example)
        models = (copy_of(conversion.model, {}), conversion.build(parts))
        both = [_model_pass(model, example, training) for model in models]
        times = interleaved(both, budget=_WHOLE_BUDGET, rounds=_ROUNDS)
    dense, sparse = map(statistics.median, times)
    return Times(dense_seconds=dense, sparse_seconds=sparse, measured=True)


def _model_pass(model: nn.Module, example: tuple[Any, ...], training: bool) -> Pass:
    """Return a forward pass; if training, with the gradients of the sum of all outputs."""
    model.train(training)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step() -> None:
        with torch.set_grad_enabled(training):
            leaves = pytree.tree_leaves(model(*example))
            outputs = [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]
            if outputs:
                total = torch.stack([t.sum() for t in outputs]).sum()
                torch.autograd.grad(total, parameters, allow_unused=True)

    return step
