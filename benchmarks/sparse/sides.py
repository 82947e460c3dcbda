"""One training step of a layer, by the sparse kernels and by dense PyTorch.

A step is the forward product and the gradients with respect to the input and the
weight, without a bias, into preallocated memory where the library allows it. Each
side starts from activations in its native layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.sparse.shapes import Shape
from sparseflow.sparse.kernels.blocked import block, unblock
from sparseflow.sparse.kernels.conv import ConvPattern
from sparseflow.sparse.kernels.linear import LinearPattern

Results = tuple[Tensor, Tensor, Tensor]
"""Output, gradient with respect to the input, gradient with respect to the weight."""


@dataclass(frozen=True)
class Layer:
    """A layer with its weight, input and output gradient.

    Attributes:
        shape: its kind and sizes.
        pointers: start of each output's connections in ``columns`` (CSR).
        columns: inputs of the connections.
        weight: the dense weight, zero where there is no connection.
        x: input batch.
        dy: gradient with respect to the output.
    """

    shape: Shape
    pointers: Tensor
    columns: Tensor
    weight: Tensor
    x: Tensor
    dy: Tensor

    @property
    def places(self) -> Tensor:
        """Sorted flat positions of the connections in the dense weight."""
        counts = self.pointers.diff().long()
        width = self.weight[0].numel()
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        return rows * width + self.columns

    @property
    def values(self) -> Tensor:
        """The weights of the connections."""
        return self.weight.flatten()[self.places]


@dataclass(frozen=True)
class Side:
    """One way to compute a step.

    Attributes:
        run: computes it.
        plain: converts the results to the plain layout, the weight gradient to one
            value for each connection in order; for the check, not timed.
    """

    run: Callable[[], Results]
    plain: Callable[[Results], Results]


def make_layer(shape: Shape, sparsity: float, batch: int) -> Layer:
    """A random layer and batch, the same every time."""
    generator = torch.Generator().manual_seed(0)
    pointers, columns = shape.topology(sparsity, generator)
    width = int(torch.Size(shape.weight_shape[1:]).numel())
    rows = torch.arange(shape.after).repeat_interleave(pointers.diff().long())
    weight = torch.zeros(shape.weight_shape)
    weight.view(-1)[rows * width + columns] = torch.randn(len(columns), generator=generator)
    x = shape.input(batch, generator)
    return Layer(shape, pointers, columns, weight, x, shape.output_gradient(batch, generator))


def ours(layer: Layer) -> Side:
    """The kernels of sparseflow on blocked tensors."""
    run = _ours_linear(layer) if layer.shape.linear else _ours_conv(layer)
    n = len(layer.x)
    return Side(run, lambda r: (unblock(r[0], n), unblock(r[1], n), r[2]))


def _ours_linear(layer: Layer) -> Callable[[], Results]:
    values, x, dy = layer.values, block(layer.x), block(layer.dy)
    pattern = LinearPattern(layer.pointers, layer.columns, layer.shape.before)

    def run() -> Results:
        y = pattern.forward(values, None, x)
        dx = pattern.input_gradient(values, dy)
        return y, dx, pattern.weight_gradient(x, dy, False)[0]

    return run


def _ours_conv(layer: Layer) -> Callable[[], Results]:
    shape, values, x, dy = layer.shape, layer.values, block(layer.x), block(layer.dy)
    sizes = (shape.after, shape.before, shape.kernel, shape.kernel)
    padding = (shape.padding, shape.padding)
    pattern = ConvPattern(layer.pointers, layer.columns, sizes, (1, 1), padding, (1, 1), 1)

    def run() -> Results:
        y = pattern.forward(values, None, x)
        dx = pattern.input_gradient(values, dy, (shape.size, shape.size))
        return y, dx, pattern.weight_gradient(x, dy, False)[0]

    return run


def dense(layer: Layer) -> dict[str, Side]:
    """Dense PyTorch, in both of its layouts for the layer."""
    if layer.shape.linear:
        return {"row by row": _dense_rows(layer), "column by column": _dense_columns(layer)}
    formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    return {name: _dense_conv(layer, layout) for name, layout in formats.items()}


def _dense_rows(layer: Layer) -> Side:
    weight, x, dy = layer.weight, layer.x, layer.dy
    y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(weight)

    def run() -> Results:
        return (
            torch.mm(x, weight.t(), out=y),
            torch.mm(dy, weight, out=dx),
            torch.mm(dy.t(), x, out=dw),
        )

    return Side(run, partial(_at, layer))


def _dense_columns(layer: Layer) -> Side:
    weight, x, dy = layer.weight, layer.x.t().contiguous(), layer.dy.t().contiguous()
    y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(weight)

    def run() -> Results:
        return (
            torch.mm(weight, x, out=y),
            torch.mm(weight.t(), dy, out=dx),
            torch.mm(dy, x.t(), out=dw),
        )

    return Side(run, lambda results: _at(layer, (results[0].t(), results[1].t(), results[2])))


def _dense_conv(layer: Layer, layout: torch.memory_format) -> Side:
    weight = layer.weight.contiguous(memory_format=layout)
    x = layer.x.contiguous(memory_format=layout)
    dy = layer.dy.contiguous(memory_format=layout)
    padding = [layer.shape.padding] * 2
    backward = torch.ops.aten.convolution_backward

    def run() -> Results:
        y = functional.conv2d(x, weight, padding=layer.shape.padding)
        dx, dw, _ = backward(
            dy, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [True, True, False]
        )
        return y, dx, dw

    return Side(run, partial(_at, layer))


def _at(layer: Layer, results: Results) -> Results:
    y, dx, dw = results
    return y, dx, dw.flatten()[layer.places]


def check(name: str, side: Side, expected: Results) -> None:
    """Compare a side's results with others before it is timed.

    Raises:
        RuntimeError: if they differ by more than rounding.
    """
    results = side.plain(side.run())
    names = ("output", "input gradient", "weight gradient")
    for what, got, want in zip(names, results, expected, strict=True):
        if not torch.allclose(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max() + 1)):
            raise RuntimeError(f"{name}: {what} differs from dense PyTorch's")
