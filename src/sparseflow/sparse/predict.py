"""What each masked layer of a model costs dense and sparse, over all its calls."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparseflow.core.errors import MaskError
from sparseflow.masks import Masks
from sparseflow.sparse.cost import Dense, Kind, calibrated, kind_of
from sparseflow.sparse.timing import Step
from sparseflow.sparse.trace import skeleton, trace


@dataclass(frozen=True, kw_only=True)
class Times:
    """One thing both ways.

    Attributes:
        dense_seconds: time of the dense form.
        sparse_seconds: time of the sparse form.
        measured: whether they were measured, or predicted.
    """

    dense_seconds: float
    sparse_seconds: float
    measured: bool

    @property
    def speedup(self) -> float:
        """How many times faster the sparse form is; below 1 if it is slower."""
        return self.dense_seconds / max(self.sparse_seconds, 1e-9)


@dataclass(frozen=True, kw_only=True)
class LayerPlan(Times):
    """A layer both ways; see :class:`Times`.

    Attributes:
        name: name of its weight.
        kind: linear or conv.
        shape: shape of the dense weight.
        density: share of active weights.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    density: float

    @property
    def sparse(self) -> bool:
        """The choice: sparse unless that would be slower."""
        return self.sparse_seconds <= self.dense_seconds


@dataclass(frozen=True)
class Call:
    """One use of a layer in the forward pass.

    Attributes:
        shape: shape of the input.
        alone: whether its sparse form must change the layout itself, and does
            not stand among blocked values.
        first: whether nothing before it is trained, so that nobody asks for
            the gradient by its input.
    """

    shape: torch.Size
    alone: bool
    first: bool

    def step(self, training: bool) -> Step:
        """What is computed in it."""
        return "forward" if not training else "first" if self.first else "inner"


Calls = dict[str, list[Call]]
"""The uses of each layer, by the name of its weight."""

Clock = Callable[[Dense, str, Call], tuple[float, float]]
"""Dense and sparse seconds of one call of a layer, whose weight has this name."""


def predict(
    model: nn.Module, masks: Masks, calls: Calls, *, training: bool
) -> tuple[LayerPlan, ...]:
    """Predict the times of each layer that is called, with :func:`calibrated` costs."""
    costs, counts = calibrated(), masks.counts

    def clock(layer: Dense, name: str, call: Call) -> tuple[float, float]:
        step = call.step(training)
        dense = costs.seconds("dense", layer, call.shape, counts[name], step=step)
        sparse = costs.seconds("sparse", layer, call.shape, counts[name], step=step)
        if call.alone:
            sparse += costs.layout(layer, call.shape, step=step)
        return dense, sparse

    return tuple(
        layer_plan(model, masks, name, uses, clock) for name, uses in calls.items() if uses
    )


def layer_plan(
    model: nn.Module,
    masks: Masks,
    name: str,
    calls: Iterable[Call],
    clock: Clock,
    *,
    measured: bool = False,
) -> LayerPlan:
    """Add up the calls of a layer; equal ones are timed once."""
    layer, shape, dense, sparse = layer_of(model, name), masks.shape(name), 0.0, 0.0
    for call, times in Counter(calls).items():
        one = clock(layer, name, call)
        dense, sparse = dense + times * one[0], sparse + times * one[1]
    return LayerPlan(
        name=name,
        kind=kind_of(layer),
        shape=tuple(shape),
        density=masks.counts[name] / max(shape.numel(), 1),
        dense_seconds=dense,
        sparse_seconds=sparse,
        measured=measured,
    )


def worthwhile(
    model: nn.Module, masks: Masks, names: Iterable[str], example: tuple[Any, ...]
) -> tuple[list[str], dict[str, str]]:
    """Names of the layers that gain in the mode the model is in, and why the others do not.

    Raises:
        MaskError: if all would be slower, or the model does not run on the input.
    """
    calls, _ = calls_of(model, names, example)
    layers = predict(model, masks, calls, training=model.training)
    slower = {p.name: f"would be {1 / p.speedup:.3g} times slower" for p in layers if not p.sparse}
    if layers and len(slower) == len(layers):
        listed = "; ".join(f"{name} {why}" for name, why in slower.items())
        raise MaskError(
            f"no layer of {type(model).__name__} would be faster sparse ({listed}); "
            "force=True converts them all the same"
        )
    return [p.name for p in layers if p.sparse], never_called(calls) | slower


def never_called(calls: Calls) -> dict[str, str]:
    """Layers without a call, and that as the reason why they stay dense."""
    return {name: "not called on the example input" for name, uses in calls.items() if not uses}


def layer_of(model: nn.Module, name: str) -> Dense:
    """The layer that a weight belongs to."""
    layer = model.get_submodule(name.rpartition(".")[0])
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer


def calls_of(model: nn.Module, names: Iterable[str], example: tuple[Any, ...]) -> tuple[Calls, str]:
    """Find how layers are called, and why the model cannot be traced (else empty).

    Raises:
        MaskError: if the model does not run on the example input.
    """
    found: Calls = {name: [] for name in names}
    empty = skeleton(model)
    graph = trace(empty, example)
    if isinstance(graph, str):
        _observe(model, found, example)
        return found, graph
    _read(empty, graph, found)
    hidden: Calls = {name: [] for name, calls in found.items() if not calls}
    if hidden:  # in a module that the tracer does not enter
        _observe(model, hidden, example)
    return found | hidden, ""


def _read(model: nn.Module, graph: fx.Graph, found: Calls) -> None:
    """Note the calls that stand in a graph."""
    modules, trained = dict(model.named_modules()), set()
    for node in graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        own = module.parameters() if module is not None else ()
        if node.op == "get_attr":
            own = [operator.attrgetter(str(node.target))(model)]
        behind = any(source in trained for source in node.all_input_nodes)
        if behind or any(p.requires_grad for p in own):
            trained.add(node)
        name = f"{node.target}.weight"
        if module is None or name not in found:
            continue
        source = node.args[0] if node.args else node.kwargs["input"]
        shape, rank = source.meta["shape"], 2 if isinstance(module, nn.Linear) else 4
        alone = not node.args or len(shape) != rank
        found[name].append(Call(shape, alone, first=not behind))


def _observe(model: nn.Module, found: Calls, example: tuple[Any, ...]) -> None:
    """Note the calls in a real run in evaluation mode, which leaves no trace."""
    flags = [(m, m.training) for m in model.modules()]
    hooks = []
    for name, calls in found.items():

        def note(_: Any, args: Any, kwargs: Any, calls: list[Call] = calls) -> None:
            x = pytree.tree_leaves((args, kwargs))[0]
            calls.append(Call(x.shape, alone=True, first=not x.requires_grad))

        layer = layer_of(model, name)
        hooks.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            model.eval()(*cloned(example))
    except Exception as error:
        raise MaskError(
            f"{type(model).__name__} does not run on the example input "
            f"({type(error).__name__}: {error})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, flag in flags:
            module.training = flag


def cloned(example: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs that a model may write into, and autograd keep."""
    return pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, example)
