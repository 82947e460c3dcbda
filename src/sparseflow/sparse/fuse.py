"""Join what the rewritten graph of a model does in a row."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from sparseflow.sparse.chain import RELU, Apply, Pool, Stage
from sparseflow.sparse.norm import norm

Stages = dict[fx.Node, tuple[Stage, ...]]
"""What the chains of a graph do."""

_SUMS = {operator.add, operator.iadd, torch.add, "add"}


def join_norms(graph: fx.Graph, stages: Stages) -> None:
    """Join batch norm with the addition and the ReLU that alone read its value."""
    for node in list(graph.nodes):
        if stages.get(node) == (RELU,):
            bare = [a for a in node.args[:1] if _is_bare_norm(a)]
            more: tuple[Any, ...] = (None, True) if bare and len(bare[0].args) == 3 else (True,)
        elif node.target in _SUMS and not node.kwargs and _of_two(node):
            first, second = node.args
            free = node.args[:1] if node.target is operator.iadd else node.args
            bare = [a for a in free if _is_bare_norm(a) and len(a.args) == 3]
            more = (second if bare and bare[0] is first else first,)
        else:
            continue
        if not bare:
            continue
        with graph.inserting_before(node):
            joined = graph.call_function(norm, (*bare[0].args, *more))
        node.replace_all_uses_with(joined)
        stages.pop(node, None)
        graph.erase_node(node)
        graph.erase_node(bare[0])


def _of_two(node: fx.Node) -> bool:
    """Whether all arguments are two different values."""
    return len(node.all_input_nodes) == len(node.args) == 2


def _is_bare_norm(node: Any) -> bool:
    """Whether a value is of a batch norm without a ReLU, and read once."""
    return (
        isinstance(node, fx.Node)
        and node.target is norm
        and len(node.args) < 5
        and len(node.users) == 1
    )


def join_chains(graph: fx.Graph, stages: Stages) -> None:
    """Join each chain with the one before it, if nobody else reads that one's value."""
    alive = set(graph.nodes)
    for node in [n for n in stages if n not in alive]:
        del stages[node]
    for node in [n for n in graph.nodes if n in stages]:
        before = node.args[0]
        if not (isinstance(before, fx.Node) and before in stages and len(before.users) == 1):
            continue
        stages[node] = tidy(stages[before] + stages[node])
        node.args = (before.args[0], before.args[1], *before.args[2:], *node.args[2:])
        del stages[before]
        graph.erase_node(before)


def tidy(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Fuse ReLU and pooling into the layer before them.

    >>> from sparseflow.sparse.chain import RELU, Apply, Pool
    >>> tidy((Apply(), Pool((2, 2), (2, 2)), RELU))
    (Apply(relu=True, pool=Pool(kernel=(2, 2), stride=(2, 2), padding=(0, 0))),)
    """
    done: list[Stage] = []
    for stage in stages:
        last = done[-1] if done else None
        if isinstance(last, Apply) and stage == RELU:
            done[-1] = Apply(True, last.pool)
        elif isinstance(last, Apply) and isinstance(stage, Pool) and last.pool is None:
            done[-1] = Apply(last.relu, stage)
        else:
            done.append(stage)
    return tuple(done)
