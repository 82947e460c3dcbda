"""Trace a model with torch.fx, and learn the shape of every value without computing it.

A trace is a list of calls. What else a forward may do (change buffers, run
hooks, write in place into what is read again) is either expressed in the list or
given as the reason why there is none.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils import _pytree as pytree

from sparseflow.core.errors import brief
from sparseflow.core.hooks import has_hooks
from sparseflow.core.operations import OUT_OF_PLACE, operation
from sparseflow.core.wrappers import copy_of
from sparseflow.sparse.convert.weights import used_alone
from sparseflow.sparse.layers.registry import SPARSE_FORMS

# Examples that stand for a single one: sizes of 1 broadcast, which would hide differences.
_FEW = 3


class _Value(fx.Proxy):
    """Stands for a tensor while tracing; torch.fx itself takes ``+=`` for a new tensor."""


def _writing(function: Callable[..., Any]) -> Callable[[_Value, Any], fx.Proxy]:
    """Make the method of a value that traces ``+=`` or its like as the call that it is."""

    def call(self: _Value, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return call


for _function in OUT_OF_PLACE:
    setattr(_Value, f"__{_function.__name__}__", _writing(_function))


class Tracer(fx.Tracer):
    """The tracer of torch, which does not enter layers that have a sparse form either."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is traced as one call."""
        return type(m) in SPARSE_FORMS or super().is_leaf_module(m, module_qualified_name)


class _Tracer(Tracer):
    """One that sees where a value is written into."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)


@dataclass(frozen=True)
class Trace:
    """What one trace of a model on example inputs gives; planning and conversion share it.

    Attributes:
        skeleton: the model without its numbers, on the meta device.
        graph: its calls, each node with its shape in ``meta["shape"]`` and its type
            in ``meta["dtype"]`` where that is a tensor's; None if it cannot be traced.
        problem: why there is no graph, else empty.
        example: the inputs.
        used_alone: weights that the forward uses outside of the layers they belong to,
            by name, with the operation; empty where the skeleton cannot run.
    """

    skeleton: nn.Module
    graph: fx.Graph | None
    problem: str
    example: tuple[Any, ...]
    used_alone: Mapping[str, str]


def trace(model: nn.Module, example: tuple[Any, ...]) -> Trace:
    """Trace a model on the meta device; the model is left alone.

    Args:
        model: any model; its parameters are not looked at.
        example: positional inputs, of which only shapes count. Inputs that it
            leaves out keep their defaults for good.
    """
    skeleton = _skeleton(model)
    graph = _graph(skeleton, example)
    used = used_alone(copy.deepcopy(skeleton), _on_meta(example, grow=False))
    if isinstance(graph, str):
        return Trace(skeleton, None, graph, example, used)
    return Trace(skeleton, graph, "", example, used)


@contextmanager
def training_flags(model: nn.Module) -> Iterator[None]:
    """Restore the training flags of all modules on exit."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _skeleton(model: nn.Module) -> nn.Module:
    """Copy a model without its numbers: parameters and buffers on the meta device."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy_of(model, memo)


def _graph(model: nn.Module, example: tuple[Any, ...]) -> fx.Graph | str:
    """Trace a skeleton, whose training flags stay; or say why it cannot be traced."""
    hooked = [n or "the model" for n, m in model.named_modules() if has_hooks(m)]
    if hooked:
        return f"forward hooks on {', '.join(hooked)} would not run"
    before = _state(model)
    fixed = _left_out(model, example)
    try:
        with training_flags(model):
            graphs = [_Tracer().trace(model.train(mode), fixed) for mode in (True, False)]
    except Exception as error:  # a model may raise anything under tracing
        return f"its forward cannot be traced ({brief(error)})"
    if _state(model) != before:
        return "its forward changes attributes of the model"
    if _text(graphs[0]) != _text(graphs[1]):
        return "its forward does different things in training and evaluation mode"
    graph = graphs[1]
    _drop_inputs(graph, fixed)
    return _in_place_problem(graph, model) or _with_shapes(model, graph, example)


def _state(model: nn.Module) -> list[Any]:
    """Identities of what a forward might replace: attributes and buffers of all modules."""
    skip = {"training", "_parameters", "_buffers", "_modules"}
    return [
        (
            {k: id(v) for k, v in m.__dict__.items() if k not in skip and "_tensor_const" not in k},
            {k: id(v) for k, v in m._buffers.items()},
        )
        for m in model.modules()
    ]


def _left_out(model: nn.Module, example: tuple[Any, ...]) -> dict[str, Any]:
    """Defaults of the inputs that the example leaves out."""
    given = inspect.signature(model.forward).parameters
    rest = list(given.values())[len(example) :]
    return {
        p.name: p.default for p in rest if p.default is not p.empty and p.kind is not p.VAR_KEYWORD
    }


def _drop_inputs(graph: fx.Graph, fixed: dict[str, Any]) -> None:
    """Take fixed inputs, and the checks on them, out of a graph."""
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        if str(node.target).removesuffix("_1") not in fixed and node.target not in fixed:
            continue
        doomed, users = [node], [node]
        while users:
            users = [user for n in users for user in n.users]
            doomed += users
        for each in reversed(doomed):
            if each.graph is graph and not each._erased:
                graph.erase_node(each)


def _writes(node: fx.Node, model: nn.Module) -> bool:
    """Whether a call writes into its first argument."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    if node.op != "call_function":
        return False
    underscored = name.endswith("_") and name not in {"is_", "not_", "and_", "or_"}
    return node.target in OUT_OF_PLACE or underscored or bool(node.kwargs.get("inplace"))


def _in_place_problem(graph: fx.Graph, model: nn.Module) -> str:
    """Let whoever reads a value after it was written into read the result of that write.

    Returns where this is not enough: the reason why the model cannot be traced.
    """
    order = {node: at for at, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        target = node.args[0] if node.args else None
        if not _writes(node, model) or not isinstance(target, fx.Node):
            continue
        if target.op == "get_attr":
            return f"its forward writes into {target.target}"
        if target.op in ("call_method", "call_function") and _may_alias(target, order[node], order):
            return f"it writes in place into a view ({node.name})"
        for user in [u for u in target.users if order[u] > order[node]]:
            user.replace_input_with(target, node)
        node.target = OUT_OF_PLACE.get(node.target, node.target)
    return ""


def _may_alias(view: fx.Node, written: int, order: dict[fx.Node, int]) -> bool:
    """Whether the tensor that a call may be a view of is read after it was written into."""
    source = view.args[0] if view.args else None
    if not (operation(view, None).view and isinstance(source, fx.Node)):
        return False
    return any(order[user] > written for user in source.users)


def _with_shapes(model: nn.Module, graph: fx.Graph, example: tuple[Any, ...]) -> fx.Graph | str:
    try:
        module = fx.GraphModule(model, graph)
    except TypeError as error:  # a part has a name that torch.fx reserves
        return brief(error)
    problem = ""
    with training_flags(model):
        model.eval()
        for grow in (True, False):
            try:
                with redirect_stderr(StringIO()):  # it prints what it raises
                    ShapeProp(module).propagate(*_on_meta(example, grow))
                break
            except Exception as error:
                problem = f"it does not run on the example input ({brief(error)})"
        else:
            return problem
    for node in graph.nodes:
        tensor = node.meta.get("tensor_meta")
        if isinstance(getattr(tensor, "shape", None), torch.Size):
            node.meta["shape"], node.meta["dtype"] = tensor.shape, tensor.dtype
    return graph


def _on_meta(example: tuple[Any, ...], grow: bool) -> tuple[Any, ...]:
    """The example without numbers; with ``grow`` a single example becomes several."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        several = _FEW if grow and leaf.ndim > 1 and leaf.shape[0] == 1 else 1
        return torch.cat([leaf.detach().to("meta")] * several)

    return pytree.tree_map(moved, example)


def _text(graph: fx.Graph) -> list[str]:
    constant = re.compile(r"_tensor_constant\d+")
    lines = (f"{n.op} {n.target} {n.args} {n.kwargs}" for n in graph.nodes)
    return [constant.sub("constant", line) for line in lines]
