"""Time one pass of a layer, dense and sparse, in turns."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparseflow.sparse.kernels.blocked import LANES, block
from sparseflow.sparse.layers import SparseLayer
from sparseflow.sparse.layers.chain import from_blocked, to_blocked
from sparseflow.sparse.layers.registry import SPARSE_FORMS

Pass = Callable[[], Any]

Step = Literal["forward", "first", "inner"]
"""A forward pass alone; with the gradients of weight and bias; with that of the input, too."""


def interleaved(
    what: Sequence[Pass], *, budget: float, rounds: tuple[int, int]
) -> list[list[float]]:
    """Return the seconds of each in every round, in turns so that a change of load meets all.

    Args:
        what: functions to time; each is run once beforehand.
        budget: seconds after which no further round begins.
        rounds: least and largest number of rounds.
    """
    start = time.perf_counter()
    times: list[list[float]] = [[] for _ in what]
    with torch.inference_mode(False), torch.enable_grad():
        for one in what:
            one()
        for count in range(rounds[1]):
            if count >= rounds[0] and time.perf_counter() - start > budget:
                break
            for one, seconds in zip(what, times, strict=True):
                before = time.perf_counter()
                one()
                seconds.append(time.perf_counter() - before)
    return times


def passes(
    layer: nn.Module, mask: Tensor, shape: torch.Size, *, step: Step, alone: bool
) -> tuple[Pass, Pass]:
    """Return the passes of a layer on one input, dense and sparse, as functions to time.

    Args:
        layer: a dense layer that has a sparse form; it and its gradients do not change.
        mask: the mask of its weight.
        shape: shape of the input.
        step: which gradients to compute.
        alone: whether the sparse layer changes the layout by itself, or is one of a
            run of blocked layers.
    """
    with torch.inference_mode(False):
        sparse = SPARSE_FORMS[type(layer)].from_dense(layer, mask)
        x = torch.ones(shape)
        twin = twin_of(layer, Tensor.detach)
        weights = [tensor for tensor in twin._parameters.values() if tensor is not None]
        dense = _through_autograd(twin.forward, x, weights, step)
        if alone:
            return dense, _through_autograd(sparse, x.clone(), list(sparse.parameters()), step)
        return dense, _blocked(sparse, block(x), step)


def twin_of(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a shallow copy of a layer with changed parameters, whose ``forward`` runs no hook."""
    twin: Any = copy.copy(layer)
    twin._parameters = {n: p if p is None else change(p) for n, p in layer._parameters.items()}
    return twin


def layout_pass(elements: int, *, step: Step) -> Pass:
    """Return a pass that blocks and unblocks this many elements, and their gradients."""
    with torch.inference_mode(False):
        x = torch.ones(LANES, elements // LANES)
        return _through_autograd(lambda x: from_blocked(to_blocked(x), LANES), x, [], step)


def _through_autograd(
    forward: Callable[[Tensor], Tensor], x: Tensor, weights: Sequence[Tensor], step: Step
) -> Pass:
    """A forward pass, and the gradients that the step asks for."""
    with torch.no_grad():
        gradient = torch.ones_like(forward(x))
    training = step != "forward"
    wanted = [*weights, x] if step == "inner" else weights
    for tensor in wanted:
        tensor.requires_grad_(training)

    def run() -> None:
        y = forward(x)
        if training:
            torch.autograd.grad(y, wanted, gradient)

    return run


def _blocked(layer: SparseLayer, x: Tensor, step: Step) -> Pass:
    """The kernels, as a chain calls them."""
    kernels, values = layer.pattern, layer.values.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    gradient = torch.ones_like(kernels.forward(values, bias, x))

    def run() -> None:
        kernels.forward(values, bias, x)
        if step != "forward":
            kernels.weight_gradient(x, gradient, bias is not None)
        if step == "inner":
            kernels.input_gradient(values, gradient, x.shape[2:-1])

    return run
