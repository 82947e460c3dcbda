"""Rewrite a traced model so that activations stay blocked from layer to layer.

Every value of the graph has a plain form, a blocked form, or both; a change of
layout is inserted where a form is asked for that does not exist yet. Operations
that this file has no blocked form for ask for the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparseflow.core.operations import action, operation
from sparseflow.sparse.convert.fuse import Stages, join_chains, join_norms
from sparseflow.sparse.convert.pooling import pooling_of
from sparseflow.sparse.layers import SparseLayer
from sparseflow.sparse.layers.chain import (
    BLOCK,
    FLATTEN,
    RELU,
    UNBLOCK,
    Apply,
    Pool,
    Stage,
    run,
)
from sparseflow.sparse.layers.norm import norm


class Chain(nn.Module):
    """Stages that run as one node; the layers come as arguments."""

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        """Hold the stages."""
        super().__init__()
        self.stages = stages

    def forward(self, x: Tensor, n: int, *layers: SparseLayer) -> Tensor:
        """Run them."""
        return run(self.stages, layers, n, x)

    def extra_repr(self) -> str:
        """Name the stages."""
        return ", ".join(map(repr, self.stages))


@dataclass
class _Value:
    """The forms that a value of the old graph has in the new one.

    ``n`` is the number of examples of the blocked form, whose last block may be padded.
    """

    old: fx.Node
    plain: fx.Node | None = None
    blocked: fx.Node | None = None
    n: fx.Node | None = None


@dataclass
class _Rewriter:
    """One pass over the old graph."""

    modules: dict[str, nn.Module]
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, _Value] = field(default_factory=dict)
    stages: Stages = field(default_factory=dict)
    batched: set[fx.Node] = field(default_factory=set)

    def rewrite(self, old: fx.Graph) -> None:
        for node in old.nodes:
            # What comes from the inputs has one row per example; parameters have no examples.
            if node.op == "placeholder" or not self.batched.isdisjoint(node.all_input_nodes):
                self.batched.add(node)
            made = self._blocked_form(node) if node.op.startswith("call") else None
            if made is None:
                copied = self.graph.node_copy(node, lambda arg: self.plain(self.values[arg]))
                self.values[node] = _Value(node, plain=copied)
            else:
                self.values[node] = made
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))

    def plain(self, value: _Value) -> fx.Node:
        """The plain form, made on demand."""
        if value.plain is None:
            assert value.blocked is not None
            assert value.n is not None
            value.plain = self.chain(UNBLOCK, value.blocked, value.n)
        return value.plain

    def blocked(self, value: _Value) -> tuple[fx.Node, fx.Node]:
        """The blocked form, made on demand, and its number of examples."""
        if value.blocked is None:
            assert value.plain is not None
            value.n = self.graph.call_method("size", (value.plain, 0))
            value.blocked = self.chain(BLOCK, value.plain, value.n)
        assert value.n is not None
        return value.blocked, value.n

    def chain(self, stage: Stage, x: fx.Node, n: fx.Node, layer: str = "") -> fx.Node:
        """Note a chain of one stage; :func:`join_chains` joins them."""
        layers = (self.graph.get_attr(layer),) if layer else ()
        node = self.graph.call_module("", (x, n, *layers))
        self.stages[node] = (stage,)
        return node

    def _blocked_form(self, node: fx.Node) -> _Value | None:
        """Apply a node to blocked values, if it can be and there are any."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, SparseLayer):
            return self._sparse(node, module)
        name, does = operation(node, module).name, action(node, module)
        if name in ("cat", "concat"):
            return self._concatenated(node)
        if does == "merge":
            return self._merged(node)
        source = self._source(node)
        if source is None or source.blocked is None:
            return None
        if does == "number":
            return self._size(node, source)
        x, n = self.blocked(source)
        made = self._applied(node, module, x, n)
        return None if made is None else _Value(node, blocked=made, n=n)

    def _applied(
        self, node: fx.Node, module: nn.Module | None, x: fx.Node, n: fx.Node
    ) -> fx.Node | None:
        """What a node does, done to the blocked value: a stage of a chain, or a function."""
        name, does = operation(node, module).name, action(node, module)
        if name == "relu":
            return self.chain(RELU, x, n)
        if does == "flatten" or _flattens_by_shape(node, name):
            return x if _rank(node.args[0]) == 2 else self.chain(FLATTEN, x, n)
        if does == "norm":
            return self.graph.call_function(norm, (x, n, self.graph.get_attr(str(node.target))))
        if does == "pool":
            return self._pooled(node, module, x, n)
        if name == "mean":
            keep = _global_mean(node)
            return None if keep is None else self.graph.call_method("mean", (x, (2, 3), keep))
        return self._elementwise(node, module, x) if does in ("keep", "slope") else None

    def _elementwise(self, node: fx.Node, module: nn.Module | None, x: fx.Node) -> fx.Node | None:
        """A function of one tensor alone, applied as it is to the blocked one."""
        if operation(node, module).name == "Identity":
            return x
        if node.all_input_nodes != list(node.args[:1]) or _divides(node, module):
            return None
        return self.graph.node_copy(node, lambda _: x)

    def _pooled(
        self, node: fx.Node, module: nn.Module | None, x: fx.Node, n: fx.Node
    ) -> fx.Node | None:
        pool = pooling_of(node, module)
        if isinstance(pool, Pool):
            return self.chain(pool, x, n)
        return None if pool is None else self.graph.call_function(pool[0], (x, *pool[1]))

    def _sparse(self, node: fx.Node, module: SparseLayer) -> _Value | None:
        source = self._source(node)
        if source is None or _rank(source.old) != module.axes:
            return None  # a layer by itself may take other leading axes
        x, n = self.blocked(source)
        return _Value(node, blocked=self.chain(Apply(), x, n, str(node.target)), n=n)

    def _merged(self, node: fx.Node) -> _Value | None:
        """Element-wise combination of tensors of one shape, or with a number."""
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        values = [self.values[a] for a in operands]
        shapes = {_shape(a) for a in operands}
        alike = len(shapes) == 1 and None not in shapes and all(map(_is_float, operands))
        whole = len(operands) == len(node.all_input_nodes) and self.batched.issuperset(operands)
        if not (alike and whole and any(v.blocked for v in values)) or _divides(node, None):
            return None
        pairs = {id(v): self.blocked(v) for v in values}
        made = self.graph.node_copy(node, lambda arg: pairs[id(self.values[arg])][0])
        return _Value(node, blocked=made, n=self.blocked(values[0])[1])

    def _concatenated(self, node: fx.Node) -> _Value | None:
        parts = node.args[0] if node.args else None
        along = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(parts, tuple | list) or along != 1:
            return None
        values = [self.values[p] for p in parts if isinstance(p, fx.Node)]
        if len(values) != len(parts) or not all(v.blocked for v in values):
            return None
        made = self.graph.call_function(torch.cat, ([v.blocked for v in values], 1))
        return _Value(node, blocked=made, n=values[0].n)

    def _size(self, node: fx.Node, source: _Value) -> _Value | None:
        """``x.size(0)`` is the number of examples; other sizes need the plain form."""
        if node.target == "size" and node.args[1:] == (0,):
            return _Value(node, plain=source.n)
        return None

    def _source(self, node: fx.Node) -> _Value | None:
        first = node.args[0] if node.args else None
        return self.values.get(first) if isinstance(first, fx.Node) else None


def blocked_graph(root: nn.Module, old: fx.Graph) -> tuple[fx.Graph, dict[str, Chain]]:
    """Rewrite a graph; ``root`` holds its modules, the sparse ones converted.

    Args:
        root: the model.
        old: its traced graph; nodes know their shapes in ``meta["shape"]``.

    Returns:
        The new graph, and the chains that it calls, to be added to ``root``.
    """
    rewriter = _Rewriter(dict(root.named_modules()))
    rewriter.rewrite(old)
    join_norms(rewriter.graph, rewriter.stages)
    join_chains(rewriter.graph, rewriter.stages)
    chains: dict[str, Chain] = {}
    for node, stages in rewriter.stages.items():
        if stages == (RELU,):
            node.op, node.target, node.args = "call_function", torch.relu, node.args[:1]
            continue
        name = f"_chain{len(chains)}"
        while hasattr(root, name):
            name += "_"
        chains[name], node.target = Chain(stages), name
    rewriter.graph.lint()
    return rewriter.graph, chains


def _global_mean(node: fx.Node) -> bool | None:
    """Whether a mean over height and width keeps them; None for any other mean."""
    names = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
    over, rank = names.get("dim"), _rank(node.args[0])
    if rank != 4 or not isinstance(over, tuple | list) or "dtype" in names:
        return None
    if sorted(int(d) % rank for d in over) != [2, 3]:  # type: ignore[arg-type]
        return None
    return bool(names.get("keepdim", False))


def _divides(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether zeros in the padding of a batch could become infinite, and their gradients NaN.

    Dividing by a number, or raising to a power, of at least 1 is safe.
    """
    first, other = (*node.args, None, None)[:2]
    safe = isinstance(first, fx.Node) and isinstance(other, int | float) and other >= 1
    return operation(node, module).divides and not safe


def _is_float(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _shape(node: Any) -> torch.Size | None:
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


def _rank(node: Any) -> int | None:
    shape = _shape(node)
    return None if shape is None else len(shape)


def _flattens_by_shape(node: fx.Node, name: str) -> bool:
    """Whether a view or reshape does nothing but flatten each example."""
    if name not in ("view", "reshape"):
        return False
    before, after = _shape(node.args[0]), _shape(node)
    return before is not None and after == torch.Size([before[0], before[1:].numel()])
