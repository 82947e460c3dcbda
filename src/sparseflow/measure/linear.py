"""One linear map per chunk of data, applied many times: what does not change is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from sparseflow.core.random import generator
from sparseflow.measure.products import Chunk, Product, State

Tensors = list[Tensor]


class Linear:
    """A function f(x, v), linear in v, as two graphs: x → r and (r, v) → f(x, v).

    What a derivative has to know of the point x (activations, signs, indices)
    is computed once and used for every v, as in ``torch.func.linearize``. Here
    x is an input of the first graph, so one trace serves every x of the same
    shapes, and the size of r is known: it can be kept or computed again.

    A trace holds whatever Python decided on its way, so a function that looks
    at values may differ from its trace: compare before use.
    """

    def __init__(
        self, function: Callable[[Tensors, Tensors], Tensors], x: Tensors, v: Tensors
    ) -> None:
        """Trace the function at x and v."""
        traced = make_fx(function)(x, v)
        self._point, self._linear = _split(traced, len(x))

    def at(self, x: Sequence[Tensor]) -> Tensors:
        """Compute r, all that the linear part needs of x."""
        return list(self._point(*x))

    def apply(self, r: Sequence[Tensor], v: Sequence[Tensor]) -> Tensors:
        """Apply the linear part."""
        return list(self._linear(*r, *v))


def _split(traced: fx.GraphModule, count: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a graph in what follows from its first ``count`` inputs alone, and the rest."""
    nodes = list(traced.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    moving = set(inputs[count:])
    for node in nodes:
        if node.op == "output" or not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
    fixed = [node for node in nodes if node not in moving]
    crossing = [n for n in fixed if n.op != "get_attr" and not moving.isdisjoint(n.users)]

    point, copies = fx.Graph(), {}
    for node in fixed:
        copies[node] = point.node_copy(node, copies.__getitem__)
    point.output(tuple(copies[node] for node in crossing))
    point.eliminate_dead_code()

    linear, copies = fx.Graph(), {}
    for node in crossing:
        copies[node] = linear.placeholder(node.name)
    for node in nodes:
        if node in moving or node.op == "get_attr":
            copies[node] = linear.node_copy(node, copies.__getitem__)
    linear.eliminate_dead_code()
    return fx.GraphModule(traced, point), fx.GraphModule(traced, linear)


class Replay:
    """The products of every chunk at one point, linearised at first use.

    One trace serves all chunks that look alike. Up to ``cache`` bytes of what
    the chunks' products need are kept; the rest is computed again each time.
    A chunk that cannot be traced is differentiated again for every product.
    """

    def __init__(self, parts: Sequence[Chunk], point: State, product: Product, cache: int) -> None:
        """Nothing is computed yet."""
        self._parts, self._point, self._product, self._left = parts, point, product, cache
        self._names = list(point)
        self._traces: dict[str, Linear | None] = {}
        self._linearised: list[tuple[Linear | None, Tensors | None]] = []

    def products(self) -> Iterator[Callable[[State], State]]:
        """For each chunk in turn, its product with a direction for every parameter."""
        for index, part in enumerate(self._parts):
            if index == len(self._linearised):
                self._linearised.append(self._linearise(part))
            linear, stored = self._linearised[index]
            if linear is None:
                yield lambda v, part=part: self._product(part, self._point, v, self._names)
                continue
            r = linear.at(self._inputs(part)) if stored is None else stored
            yield lambda v, linear=linear, r=r: dict(
                zip(self._names, linear.apply(r, list(v.values())), strict=True)
            )

    def _inputs(self, part: Chunk) -> Tensors:
        return [*self._point.values(), *part.tensors]

    def _linearise(self, part: Chunk) -> tuple[Linear | None, Tensors | None]:
        if part.kind not in self._traces:
            self._traces[part.kind] = self._trace(part)
        linear = self._traces[part.kind]
        r = None if linear is None else self._checked(linear, part)
        if r is None:
            return None, None
        size = _bytes(r, but=self._inputs(part))
        if size > self._left:
            return linear, None
        self._left -= size
        return linear, r

    def _trace(self, part: Chunk) -> Linear | None:
        count = len(self._names)

        def function(x: Tensors, v: Tensors) -> Tensors:
            point, along = (dict(zip(self._names, t, strict=True)) for t in (x[:count], v))
            rows = self._product(part.holding(x[count:]), point, along, self._names)
            return [rows[name] for name in self._names]

        try:
            return Linear(
                function, self._inputs(part), [torch.ones_like(p) for p in self._point.values()]
            )
        except Exception:  # what fails without a trace too is raised there
            return None

    def _checked(self, linear: Linear, part: Chunk) -> Tensors | None:
        """What the chunk's products need, if they agree with the derivative itself.

        A trace may have kept what was true only of the chunk it was made on,
        such as the number of entries that a condition selects.
        """
        stream = generator(0, "curvature", "check")
        v = {n: torch.randn(p.shape, generator=stream).to(p) for n, p in self._point.items()}
        direct = self._product(part, self._point, v, self._names)
        try:
            r = linear.at(self._inputs(part))
            ours = linear.apply(r, list(v.values()))
        except RuntimeError:
            return None
        return r if _agree(ours, [direct[name] for name in self._names]) else None


def _bytes(tensors: Sequence[Tensor], *, but: Sequence[Tensor]) -> int:
    """Memory behind the tensors, each storage once, without that of ``but``."""
    shared = {tensor.untyped_storage().data_ptr() for tensor in but}
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for pointer, size in sizes.items() if pointer not in shared)


def _agree(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether two results are equal up to half of the digits of their type."""
    a, b = (torch.cat([t.flatten().double() for t in side]) for side in (ours, theirs))
    digits = torch.finfo(theirs[0].dtype).eps ** 0.5
    return bool((a - b).norm() <= digits * b.norm())
