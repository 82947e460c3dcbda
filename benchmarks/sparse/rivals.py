"""The same step by other libraries, each by the fastest of its public interfaces.

``torch.sparse`` and sparseprop's linear kernels get activations with the
examples innermost, their native layout; sparseprop's convolutions run in the
faster of their two modes, as kernels and as a module; sparselab has only a
module. ``referees-sparse.txt`` says how to install the latter two.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.progress import skipped
from benchmarks.sparse.sides import Layer, Results, Side
from benchmarks.timing import fastest

HINT = "benchmarks/referees-sparse.txt says how to make an environment with it"


def rivals(layer: Layer) -> dict[str, Side]:
    """The libraries that are installed and have this kind of layer."""
    sides = {"torch.sparse": torch_sparse(layer)} if layer.shape.linear else {}
    if _library("sparseprop.modules") is not None:
        sides["sparseprop"] = sparseprop(layer)
        if not layer.shape.linear:
            sides["sparseprop, module"] = sparseprop_module(layer)
    if layer.shape.linear and _sparselab() is not None:
        sides["sparselab"] = sparselab(layer)
    return sides


def torch_sparse(layer: Layer) -> Side:
    """CSR products and ``sampled_addmm``; making the transposed matrix is not timed."""
    x, dy = layer.x.t().contiguous(), layer.dy.t().contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "in beta state"
        matrix = layer.weight.to_sparse_csr()
        transposed = layer.weight.t().contiguous().to_sparse_csr()

    def run() -> Results:
        gradient = torch.sparse.sampled_addmm(matrix, dy, layer.x, beta=0.0)
        return matrix @ x, transposed @ dy, gradient.values()

    return Side(run, _from_columns)


def sparseprop(layer: Layer) -> Side:
    """The kernels without the module; they accumulate into zeroed memory."""
    modules = importlib.import_module("sparseprop.modules")
    if layer.shape.linear:
        return _sparseprop_linear(layer, modules)
    made = modules.SparseConv2d.from_dense(_dense_module(layer))
    index, values = made.W_idx, made.W_val.detach()
    sides = {
        "examples innermost": _sparseprop_examples(layer, index, values),
        "along the width": _sparseprop_width(layer, index, values),
    }
    return sides[fastest({name: side.run for name, side in sides.items()}, runs=1)]


def _sparseprop_linear(layer: Layer, modules: ModuleType) -> Side:
    backend = importlib.import_module("sparseprop").backend
    x, dy = layer.x.t().contiguous(), layer.dy.t().contiguous()
    y, dx = torch.empty_like(dy), torch.empty_like(x)
    made = modules.SparseLinear.from_dense(_dense_module(layer))
    index, values = made.W_idx, made.W_val.detach()
    dvalues = torch.empty_like(values)

    def run() -> Results:
        backend.sparse_linear_vectorized_forward(x, *index, values, y.zero_())
        backend.sparse_linear_vectorized_backward(
            x, *index, values, dy, dx.zero_(), dvalues.zero_()
        )
        return y, dx, dvalues

    return Side(run, _from_columns)


def _sparseprop_examples(layer: Layer, index: tuple[Tensor, ...], values: Tensor) -> Side:
    backend = importlib.import_module("sparseprop").backend
    x, dy = (t.permute(1, 2, 3, 0).contiguous() for t in (layer.x, layer.dy))
    shape, y, dx, dw = (
        layer.shape,
        torch.empty_like(dy),
        torch.empty_like(x),
        torch.empty_like(values),
    )
    sizes = shape.kernel, shape.padding

    def run() -> Results:
        backend.sparse_conv2d_vectorized_forward_stride_1(x, *index, values, y.zero_(), *sizes)
        backend.sparse_conv2d_vectorized_backward_stride_1(
            x, *index, values, dy, dx.zero_(), dw.zero_(), *sizes
        )
        return y, dx, dw

    return Side(run, lambda r: (r[0].permute(3, 0, 1, 2), r[1].permute(3, 0, 1, 2), dw))


def _sparseprop_width(layer: Layer, index: tuple[Tensor, ...], values: Tensor) -> Side:
    backend = importlib.import_module("sparseprop").backend
    x, dy = layer.x, layer.dy
    shape, y, dx, dw = (
        layer.shape,
        torch.empty_like(dy),
        torch.empty_like(x),
        torch.empty_like(values),
    )
    sizes = shape.kernel, shape.padding

    def run() -> Results:
        backend.sparse_conv2d_vectorized_forward_over_on_stride_1(
            x, *index, values, y.zero_(), *sizes
        )
        backend.sparse_conv2d_vectorized_backward_over_on_stride_1(
            x, *index, values, dy, dx.zero_(), dw.zero_(), *sizes
        )
        return y, dx, dw

    return Side(run, lambda results: results)


def sparseprop_module(layer: Layer) -> Side:
    """The convolution as a module, in the faster of its two modes."""
    modules = importlib.import_module("sparseprop.modules")
    dense = _dense_module(layer)
    sides = {
        str(mode): _module(layer, made, made.W_val)
        for mode in (False, True)
        for made in [modules.SparseConv2d.from_dense(dense, vectorizing_over_on=mode)]
    }
    return sides[fastest({name: side.run for name, side in sides.items()}, runs=1)]


_MADE: list[object] = []
"""Matrices of sparselab, kept alive: it caches transposes by ``id``, which must not be reused."""


def sparselab(layer: Layer) -> Side:
    """The module, with this layer's weight; its rows are padded with spare entries."""
    library = importlib.import_module("sparselab")
    limits = importlib.import_module("threadpoolctl")
    limits.threadpool_limits(torch.get_num_threads())  # it has a separate OpenMP runtime
    made = library.SparseLinear(layer.shape.before, layer.shape.after, bias=False, sparsity=0.5)
    made._csr = library.PaddedCSR.from_dense(layer.weight)
    _MADE.append(made._csr)
    made._values = nn.Parameter(torch.from_numpy(made._csr.values))
    side = _module(layer, made, made._values)
    used = torch.from_numpy(made._csr.values) != 0
    return Side(side.run, lambda r: (r[0], r[1], r[2][used]))


def _module(layer: Layer, module: Any, values: nn.Parameter) -> Side:
    x = layer.x.clone().requires_grad_()

    @torch.enable_grad()
    def run() -> Results:
        x.grad = values.grad = None
        y = module(x)
        y.backward(layer.dy)
        assert x.grad is not None
        assert values.grad is not None
        return y.detach(), x.grad, values.grad

    return Side(run, lambda results: results)


def _dense_module(layer: Layer) -> nn.Module:
    shape = layer.shape
    if shape.linear:
        module: Any = nn.Linear(shape.before, shape.after, bias=False)
    else:
        module = nn.Conv2d(
            shape.before, shape.after, shape.kernel, padding=shape.padding, bias=False
        )
    module.weight = nn.Parameter(layer.weight)
    return module


def _from_columns(results: Results) -> Results:
    y, dx, dw = results
    return y.t(), dx.t(), dw


def _sparselab() -> ModuleType | None:
    library = _library("sparselab")
    return library if _library("threadpoolctl") is not None else None


@cache
def _library(name: str) -> ModuleType | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except (ImportError, OSError) as error:
        skipped(name.partition(".")[0], f"{error}; {HINT}")
        return None
