"""What each masked layer of a model costs, dense and sparse, over all its calls."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sparseflow.core.errors import MaskError, brief
from sparseflow.sparse.convert.conversion import Conversion
from sparseflow.sparse.convert.trace import Trace, training_flags
from sparseflow.sparse.layers.registry import SPARSE_FORMS
from sparseflow.sparse.plan.cost import calibrated
from sparseflow.sparse.plan.timing import Step


@dataclass(frozen=True, kw_only=True)
class Times:
    """The time of something, dense and sparse.

    Attributes:
        dense_seconds: time of the dense form.
        sparse_seconds: time of the sparse form.
        measured: whether they were measured; else they were predicted.
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
    """The time of a layer, dense and sparse; see :class:`Times`.

    Attributes:
        name: name of its weight.
        kind: linear or conv: which coefficients of the cost model are its own.
        shape: shape of the dense weight.
        density: share of active weights.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float

    @property
    def sparse(self) -> bool:
        """Whether sparse execution is chosen: unless it would be slower."""
        return self.sparse_seconds <= self.dense_seconds


@dataclass(frozen=True)
class Call:
    """One use of a layer in the forward pass.

    Attributes:
        shape: shape of the input.
        alone: whether its sparse form must change the layout by itself, since its
            neighbours are not blocked.
        first: whether nothing before it is trained, so that the gradient with
            respect to its input is not needed.
    """

    shape: torch.Size
    alone: bool
    first: bool

    def step(self, training: bool) -> Step:
        """What is computed in it."""
        return "forward" if not training else "first" if self.first else "inner"


Calls = dict[str, list[Call]]
"""The calls of each layer, by the name of its weight."""

Clock = Callable[[nn.Module, str, Call], tuple[float, float]]
"""Gives the dense and sparse seconds of one call of a layer, whose weight has this name."""


def predict(conversion: Conversion, calls: Calls, *, training: bool) -> tuple[LayerPlan, ...]:
    """Predict the times of each layer that is called, with :func:`calibrated` costs."""
    costs, counts = calibrated(), conversion.masks.counts

    def clock(layer: nn.Module, name: str, call: Call) -> tuple[float, float]:
        step = call.step(training)
        dense = costs.seconds("dense", layer, call.shape, counts[name], step=step)
        sparse = costs.seconds("sparse", layer, call.shape, counts[name], step=step)
        if call.alone:
            sparse += costs.layout(layer, call.shape, step=step)
        return dense, sparse

    return tuple(layer_plan(conversion, name, calls[name], clock) for name in calls if calls[name])


def layer_plan(
    conversion: Conversion, name: str, calls: list[Call], clock: Clock, *, measured: bool = False
) -> LayerPlan:
    """Add up the calls of a layer; equal ones are timed once."""
    layer, shape, dense, sparse = conversion.layer(name), conversion.masks.shape(name), 0.0, 0.0
    for call, times in Counter(calls).items():
        seconds = clock(layer, name, call)
        dense, sparse = dense + times * seconds[0], sparse + times * seconds[1]
    return LayerPlan(
        name=name,
        kind=SPARSE_FORMS[type(layer)].cost,
        shape=tuple(shape),
        density=conversion.masks.counts[name] / max(shape.numel(), 1),
        dense_seconds=dense,
        sparse_seconds=sparse,
        measured=measured,
    )


def worthwhile(conversion: Conversion) -> tuple[list[str], dict[str, str]]:
    """Return the weights whose layers gain in the mode the model is in, and why others do not.

    Raises:
        MaskError: if all would be slower, or the model does not run on the input.
    """
    model, calls = conversion.model, calls_of(conversion)
    layers = predict(conversion, calls, training=model.training)
    slower = {p.name: f"would be {1 / p.speedup:.3g} times slower" for p in layers if not p.sparse}
    if layers and len(slower) == len(layers):
        listed = "; ".join(f"{name} {why}" for name, why in slower.items())
        raise MaskError(
            f"no layer of {type(model).__name__} would be faster sparse ({listed}); "
            "force=True converts them all the same"
        )
    return [p.name for p in layers if p.sparse], never_called(calls) | slower


def never_called(calls: Calls) -> dict[str, str]:
    """Return the layers without a call, with that as the reason why they stay dense."""
    return {name: "not called on the example input" for name, uses in calls.items() if not uses}


def calls_of(conversion: Conversion) -> Calls:
    """List how the layers that have a sparse form are called on the example input.

    Raises:
        MaskError: if the model does not run on it.
    """
    calls: Calls = {name: [] for name in conversion.names}
    _read(conversion.trace, calls)
    # Without a graph, or inside a module that the tracer does not enter.
    hidden: Calls = {name: uses for name, uses in calls.items() if not uses}
    if hidden:
        _observe(conversion, hidden)
    return calls


def _read(traced: Trace, calls: Calls) -> None:
    """Note the calls in a graph."""
    model, trained = traced.skeleton, set()
    modules = dict(model.named_modules())
    for node in traced.graph.nodes if traced.graph is not None else ():
        module = modules[str(node.target)] if node.op == "call_module" else None
        parameters = module.parameters() if module is not None else ()
        if node.op == "get_attr":
            parameters = [operator.attrgetter(str(node.target))(model)]
        behind = any(source in trained for source in node.all_input_nodes)
        if behind or any(p.requires_grad for p in parameters):
            trained.add(node)
        name = f"{node.target}.weight"
        if module is None or name not in calls:
            continue
        source = node.args[0] if node.args else node.kwargs["input"]
        shape = source.meta["shape"]
        alone = not node.args or len(shape) != SPARSE_FORMS[type(module)].axes
        calls[name].append(Call(shape, alone, first=not behind))


def _observe(conversion: Conversion, calls: Calls) -> None:
    """Note the calls in a real run in evaluation mode, which changes nothing of the model."""
    model, hooks = conversion.model, []
    for name, uses in calls.items():

        def note(_: Any, args: Any, kwargs: Any, uses: list[Call] = uses) -> None:
            x = pytree.tree_leaves((args, kwargs))[0]
            uses.append(Call(x.shape, alone=True, first=not x.requires_grad))

        hooks.append(conversion.layer(name).register_forward_pre_hook(note, with_kwargs=True))
    try:
        with (
            training_flags(model),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
        ):
            model.eval()(*cloned(conversion.example))
    except Exception as error:
        raise MaskError(
            f"{type(model).__name__} does not run on the example input ({brief(error)})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def cloned(example: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy inputs, for a model that may write into them and autograd that may keep them."""
    return pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, example)
