"""Join consecutive steps of a rewritten graph: batch norm with what follows it, and chains."""

from __future__ import annotations

from typing import Any

from torch import fx

from sparseflow.core.operations import operation
from sparseflow.sparse.layers.chain import RELU, Apply, Pool, Stage
from sparseflow.sparse.layers.norm import norm

Stages = dict[fx.Node, tuple[Stage, ...]]
"""The stages of each node of a graph that is a chain."""


def join_norms(graph: fx.Graph, stages: Stages) -> None:
    """Join batch norm with the addition and the ReLU that are the only readers of its value."""
    for node in list(graph.nodes):
        if stages.get(node) == (RELU,):
            bare = [a for a in node.args[:1] if _is_bare_norm(a)]
            more: tuple[Any, ...] = (None, True) if bare and len(bare[0].args) == 3 else (True,)
        elif _adds(node):
            first, second = node.args
            bare = [a for a in node.args if _is_bare_norm(a) and len(a.args) == 3]
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


def _adds(node: fx.Node) -> bool:
    """Whether a node is the plain sum of two different values."""
    two = len(node.all_input_nodes) == len(node.args) == 2 and not node.kwargs
    return two and operation(node, None).name == "add"


def _is_bare_norm(node: Any) -> bool:
    """Whether a value is that of a batch norm without a ReLU, and is read once."""
    return (
        isinstance(node, fx.Node)
        and node.target is norm
        and len(node.args) < 5  # (x, n, module, added, relu)
        and len(node.users) == 1
    )


def join_chains(graph: fx.Graph, stages: Stages) -> None:
    """Join each chain with the one before it, if that one's value has no other reader."""
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

    >>> from sparseflow.sparse.layers.chain import RELU, Apply, Pool
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
