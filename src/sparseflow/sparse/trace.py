"""Trace a model with torch.fx, and learn the shape of every value without computing it.

A trace is a list of calls. What else a forward may do (change buffers, run
hooks, write in place into what is read again) is either put into the list or
named as the reason why there is none.
"""

from __future__ import annotations

import copy
import inspect
import operator
import re
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils import _pytree as pytree

from sparseflow.core.errors import brief
from sparseflow.sparse.base import SparseLayer

_FEW = 3
"""Examples that stand for a single one: sizes of 1 broadcast, which would hide differences."""


_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class _Value(fx.Proxy):
    """Stands for a tensor while tracing; torch.fx itself takes ``+=`` for a new tensor."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Sparse layers are leaves, like the layers of torch."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SparseLayer) or super().is_leaf_module(m, module_qualified_name)


def skeleton(model: nn.Module) -> nn.Module:
    """Copy a model without its numbers: parameters and buffers on the meta device."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy.deepcopy(model, memo)


def trace(model: nn.Module, example: tuple[Any, ...]) -> fx.Graph | str:
    """Trace a model on the meta device.

    Args:
        model: a :func:`skeleton`; its training flags are left as they were.
        example: positional inputs, of which only shapes count. Inputs that it
            leaves out keep their defaults for good.

    Returns:
        The graph, each node with its shape in ``meta["shape"]`` and its type in
        ``meta["dtype"]`` where that is a tensor's; or why there is none.
    """
    hooked = [n or "the model" for n, m in model.named_modules() if _has_hooks(m)]
    if hooked:
        return f"forward hooks on {', '.join(hooked)} would not run"
    flags = [(m, m.training) for m in model.modules()]
    before = _state(model)
    fixed = _left_out(model, example)
    try:
        graphs = [_Tracer().trace(model.train(mode), fixed) for mode in (True, False)]
    except Exception as error:  # a model may raise anything under tracing
        return f"its forward cannot be traced ({brief(error)})"
    finally:
        for module, flag in flags:
            module.training = flag
    if _state(model) != before:
        return "its forward changes attributes of the model"
    if _text(graphs[0]) != _text(graphs[1]):
        return "its forward does different things in training and evaluation mode"
    graph = graphs[1]
    _drop_inputs(graph, fixed)
    return _in_place_problem(graph, model) or _with_shapes(model, graph, example)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _state(model: nn.Module) -> list[Any]:
    """What a forward might replace: attributes and buffers of all modules."""
    skip = {"training", "_parameters", "_buffers", "_modules"}
    return [
        (
            {k: id(v) for k, v in m.__dict__.items() if k not in skip and "_tensor_const" not in k},
            {k: id(v) for k, v in m._buffers.items()},
        )
        for m in model.modules()
    ]


def _left_out(model: nn.Module, example: tuple[Any, ...]) -> dict[str, Any]:
    """Defaults of the inputs that the example does not give."""
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
        doomed, found = [node], [node]
        while found:
            found = [user for n in found for user in n.users]
            doomed += found
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
    return node.target in _IN_PLACE or underscored or bool(node.kwargs.get("inplace"))


def _in_place_problem(graph: fx.Graph, model: nn.Module) -> str:
    """Let later readers of what a call wrote into read its result; say where that is not enough."""
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
        node.target = _IN_PLACE.get(node.target, node.target)
    return ""


def _may_alias(view: fx.Node, written: int, order: dict[fx.Node, int]) -> bool:
    """Whether what a call may be a view of is read after it was written into."""
    name = str(getattr(view.target, "__name__", view.target))
    if not re.match(r"view|reshape|flatten|transpose|permute|squeeze|unsqueeze|getitem|t$", name):
        return False
    source = view.args[0]
    return isinstance(source, fx.Node) and any(order[u] > written for u in source.users)


def _with_shapes(model: nn.Module, graph: fx.Graph, example: tuple[Any, ...]) -> fx.Graph | str:
    flags = [(m, m.training) for m in model.modules()]
    problem = ""
    try:
        module = fx.GraphModule(model, graph)
    except TypeError as error:  # a part with a name that torch.fx keeps for itself
        return brief(error)
    try:
        model.eval()
        for grow in (True, False):
            try:
                ShapeProp(module).propagate(*_on_meta(example, grow))
                break
            except Exception as error:
                problem = f"it does not run on the example input ({brief(error)})"
        else:
            return problem
    finally:
        for part, flag in flags:
            part.training = flag
    for node in graph.nodes:
        found = node.meta.get("tensor_meta")
        if isinstance(getattr(found, "shape", None), torch.Size):
            node.meta["shape"], node.meta["dtype"] = found.shape, found.dtype
    return graph


def _on_meta(example: tuple[Any, ...], grow: bool) -> tuple[Any, ...]:
    """The example without numbers; a single example becomes a few, if asked."""

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
