"""Trace a model with torch.fx, and learn the shape of every value without computing it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils import _pytree as pytree

from sparseflow.sparse.layers import SparseLayer


class _Tracer(fx.Tracer):
    """Sparse layers are leaves, like the layers of torch."""

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
        example: positional inputs, of which only shapes count.

    Returns:
        The graph, each node with its shape in ``meta["shape"]`` where that is a
        tensor's; or why there is none.
    """
    flags = [(m, m.training) for m in model.modules()]
    try:
        graphs = [_Tracer().trace(model.train(mode)) for mode in (True, False)]
    except Exception as error:
        return f"its forward cannot be traced ({_brief(error)})"
    finally:
        for module, flag in flags:
            module.training = flag
    if not _same(*graphs):
        return "its forward does different things in training and evaluation mode"
    graph = graphs[1]
    if not isinstance(problem := _add_shapes(model, graph, example), fx.Graph):
        return problem
    return graph


def _add_shapes(model: nn.Module, graph: fx.Graph, example: tuple[Any, ...]) -> fx.Graph | str:
    module = fx.GraphModule(model, graph)
    inputs = pytree.tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) else t, example)
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        ShapeProp(module).propagate(*inputs)
    except Exception as error:
        return f"it does not run on the example input ({_brief(error)})"
    finally:
        for part, flag in modes:
            part.training = flag
    for node in graph.nodes:
        found = node.meta.get("tensor_meta")
        shape = getattr(found, "shape", None)
        if isinstance(shape, torch.Size):
            node.meta["shape"] = shape
    return graph


def _same(one: fx.Graph, other: fx.Graph) -> bool:
    """Whether two traces do the same."""
    return _text(one) == _text(other)


def _text(graph: fx.Graph) -> list[str]:
    return [f"{n.op} {n.target} {n.args} {n.kwargs}" for n in graph.nodes]


def _brief(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else ''}"
