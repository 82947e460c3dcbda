"""Rewrite a traced model so that activations stay blocked from layer to layer.

Every value of the graph is known in its plain form, its blocked form, or both;
a conversion is put in where a form is asked for that is not there yet. What
this file does not know asks for the plain form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from sparseflow.core.graph import call_action, module_action
from sparseflow.sparse.base import SparseLayer
from sparseflow.sparse.chain import (
    BLOCK,
    FLATTEN,
    RELU,
    UNBLOCK,
    Apply,
    Pool,
    Stage,
    run,
)
from sparseflow.sparse.fuse import Stages, join_chains, join_norms
from sparseflow.sparse.layers import SparseConv2d, SparseLinear
from sparseflow.sparse.norm import NORMS, norm
from sparseflow.sparse.pooling import pooling_of

_RELUS = {functional.relu, torch.relu, torch.relu_, "relu", "relu_"}
_MEANS = {torch.mean, "mean"}
_CATS = {torch.cat, torch.concat}
_BAD_PADDING = {"div", "div_", "truediv", "itruediv", "pow", "rsqrt", "reciprocal", "log"}
"""Functions that can make the padding of a batch infinite, and so its gradients NaN."""


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
    """The forms in which a value of the old graph is at hand in the new one."""

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
            # What comes from the inputs has an example in each row; a parameter has none.
            if node.op == "placeholder" or not self.batched.isdisjoint(node.all_input_nodes):
                self.batched.add(node)
            made = self._blocked_form(node)
            if made is None:
                copied = self.graph.node_copy(node, lambda arg: self.plain(self.values[arg]))
                self.values[node] = _Value(node, plain=copied)
            else:
                self.values[node] = made
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))

    def plain(self, value: _Value) -> fx.Node:
        """The plain form, made if it is not there."""
        if value.plain is None:
            assert value.blocked is not None
            assert value.n is not None
            value.plain = self.chain(UNBLOCK, value.blocked, value.n)
        return value.plain

    def blocked(self, value: _Value) -> tuple[fx.Node, fx.Node]:
        """The blocked form, made if it is not there, and its number of examples."""
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
        """Carry a node out on blocked values, if it can be and one is there."""
        if not node.op.startswith("call"):
            return None
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, SparseLinear | SparseConv2d):
            return self._sparse(node, module)
        if node.target in _CATS:
            return self._concatenated(node)
        action = call_action(node) if module is None else module_action(module)
        if action == "merge":
            return self._merged(node)
        source = self._source(node)
        if source is None or source.blocked is None:
            return None
        return self._size(node, source) if action == "number" else self._applied(node, source)

    def _applied(self, node: fx.Node, source: _Value) -> _Value | None:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        x, n = self.blocked(source)
        stage = _stage(node, module)
        if stage is not None:
            return _Value(node, blocked=self.chain(stage, x, n), n=n)
        made = self._function(node, module, x, n)
        return None if made is None else _Value(node, blocked=made, n=n)

    def _function(
        self, node: fx.Node, module: nn.Module | None, x: fx.Node, n: fx.Node
    ) -> fx.Node | None:
        """The same function as torch has it, on the blocked value."""
        action = call_action(node) if module is None else module_action(module)
        if isinstance(module, nn.Identity) or _flattens(node, module):
            return x
        if isinstance(module, NORMS):
            return self.graph.call_function(norm, (x, n, self.graph.get_attr(str(node.target))))
        if action == "pool":
            what = pooling_of(node, module)
            return None if what is None else self.graph.call_function(what[0], (x, *what[1]))
        if node.target in _MEANS:
            keep = _global_mean(node)
            return None if keep is None else self.graph.call_method("mean", (x, (2, 3), keep))
        alone = node.all_input_nodes == list(node.args[:1]) and not _divides(node)
        return self._copied(node, x) if action in ("keep", "slope") and alone else None

    def _sparse(self, node: fx.Node, module: SparseLinear | SparseConv2d) -> _Value | None:
        source = self._source(node)
        wanted = 2 if isinstance(module, SparseLinear) else 4
        if source is None or _rank(source.old) != wanted:
            return None  # the layer alone takes any leading dimensions
        x, n = self.blocked(source)
        return _Value(node, blocked=self.chain(Apply(), x, n, str(node.target)), n=n)

    def _merged(self, node: fx.Node) -> _Value | None:
        """Element-wise combination of tensors of one shape, or with a number."""
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        known = [self.values[a] for a in operands]
        shapes = {_shape(a) for a in operands}
        alike = len(shapes) == 1 and None not in shapes and all(map(_is_float, operands))
        whole = len(operands) == len(node.all_input_nodes) and self.batched.issuperset(operands)
        if not (alike and whole and any(v.blocked for v in known)) or _divides(node):
            return None
        pairs = {id(v): self.blocked(v) for v in known}
        made = self.graph.node_copy(node, lambda arg: pairs[id(self.values[arg])][0])
        return _Value(node, blocked=made, n=self.blocked(known[0])[1])

    def _concatenated(self, node: fx.Node) -> _Value | None:
        parts = node.args[0] if node.args else None
        along = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(parts, tuple | list) or along != 1:
            return None
        known = [self.values[p] for p in parts if isinstance(p, fx.Node)]
        if len(known) != len(parts) or not all(v.blocked for v in known):
            return None
        made = self.graph.call_function(torch.cat, ([v.blocked for v in known], 1))
        return _Value(node, blocked=made, n=known[0].n)

    def _size(self, node: fx.Node, source: _Value) -> _Value | None:
        """``x.size(0)`` is the number of examples; other sizes ask for the plain form."""
        if node.target == "size" and node.args[1:] == (0,):
            return _Value(node, plain=source.n)
        return None

    def _copied(self, node: fx.Node, x: fx.Node) -> fx.Node:
        first = node.args[0]

        def place(arg: fx.Node) -> fx.Node:
            return x if arg is first else self.plain(self.values[arg])

        return self.graph.node_copy(node, place)

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


def _stage(node: fx.Node, module: nn.Module | None) -> Stage | None:
    """The stage of a chain that a node is, if it is one."""
    if isinstance(module, nn.ReLU) or node.target in _RELUS:
        return RELU
    if _flattens(node, module):
        return FLATTEN if _rank(node.args[0]) != 2 else None
    pool = pooling_of(node, module)
    return pool if isinstance(pool, Pool) else None


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node does nothing but flatten each example."""
    if module is not None:
        return module_action(module) == "flatten"
    return call_action(node) == "flatten" or _flattens_by_shape(node)


def _global_mean(node: fx.Node) -> bool | None:
    """Whether a mean over height and width keeps them; None for any other mean."""
    names = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
    over, rank = names.get("dim"), _rank(node.args[0])
    if rank != 4 or not isinstance(over, tuple | list) or "dtype" in names:
        return None
    if sorted(int(d) % rank for d in over) != [2, 3]:  # type: ignore[arg-type]
        return None
    return bool(names.get("keepdim", False))


def _divides(node: fx.Node) -> bool:
    """Whether zeros in the padding of a batch could become infinite."""
    name = str(getattr(node.target, "__name__", node.target))
    if name not in _BAD_PADDING:
        return False
    first, other = (*node.args, None, None)[:2]
    return not (isinstance(first, fx.Node) and isinstance(other, int | float) and other >= 1)


def _is_float(node: fx.Node) -> bool:
    kind = node.meta.get("dtype")
    return isinstance(kind, torch.dtype) and kind.is_floating_point


def _shape(node: Any) -> torch.Size | None:
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


def _rank(node: Any) -> int | None:
    shape = _shape(node)
    return None if shape is None else len(shape)


def _flattens_by_shape(node: fx.Node) -> bool:
    """Whether a view or reshape does nothing but flatten each example."""
    if node.target not in {"view", "reshape", torch.reshape}:
        return False
    before, after = _shape(node.args[0]), _shape(node)
    return before is not None and after == torch.Size([before[0], before[1:].numel()])
