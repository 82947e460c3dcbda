"""Time one pass of a layer, dense and sparse, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseflow.sparse.base import SparseLayer
from sparseflow.sparse.blocked import LANES, from_blocked, to_blocked
from sparseflow.sparse.kernels import block
from sparseflow.sparse.layers import SparseConv2d, SparseLinear, zero_padding

Pass = Callable[[], Any]

Step = Literal["forward", "first", "inner"]
"""A forward pass; with the gradients by weight and bias; with that by the input too."""


def interleaved(
    what: Sequence[Pass], *, budget: float, rounds: tuple[int, int]
) -> list[list[float]]:
    """Seconds of each in every round, timed in turns so that a change of load meets all.

    Args:
        what: functions to time; each is run once before.
        budget: seconds after which no further round begins.
        rounds: least and largest number of rounds.
    """
    start = time.perf_counter()
    times: list[list[float]] = [[] for _ in what]
    with torch.inference_mode(False), torch.enable_grad():
        for one in what:
            one()
        for done in range(rounds[1]):
            if done >= rounds[0] and time.perf_counter() - start > budget:
                break
            for one, found in zip(what, times, strict=True):
                before = time.perf_counter()
                one()
                found.append(time.perf_counter() - before)
    return times


def passes(
    layer: nn.Linear | nn.Conv2d, mask: Tensor, shape: torch.Size, *, step: Step, alone: bool
) -> tuple[Pass, Pass]:
    """A layer on one input, dense and sparse, as functions to be timed.

    Args:
        layer: the dense layer; neither it nor its gradients are changed.
        mask: what of its weight is active.
        shape: shape of the input.
        step: which gradients to find.
        alone: whether the sparse layer changes the layout itself, or stands in
            a run of blocked layers.
    """
    with torch.inference_mode(False):
        sparse = (
            SparseLinear.from_dense(layer, mask)
            if isinstance(layer, nn.Linear)
            else SparseConv2d.from_dense(layer, mask)
        )
        x = torch.ones(shape)
        own = _dense(layer, x, step)
        if alone:
            weights = list(sparse.parameters())
            return own, _through_autograd(sparse, x.clone(), weights, step)
        return own, _blocked(sparse, block(x), step)


def layout_pass(elements: int, *, step: Step) -> Pass:
    """Blocking and unblocking of so many elements, and of their gradients."""
    with torch.inference_mode(False):
        x = torch.ones(LANES, elements // LANES)
        return _through_autograd(lambda x: from_blocked(to_blocked(x), LANES), x, [], step)


def _dense(layer: nn.Linear | nn.Conv2d, x: Tensor, step: Step) -> Pass:
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    weights = [weight] if bias is None else [weight, bias]
    if isinstance(layer, nn.Linear):
        return _through_autograd(lambda x: functional.linear(x, weight, bias), x, weights, step)
    how = (layer.stride, zero_padding(layer), layer.dilation, layer.groups)
    return _through_autograd(lambda x: functional.conv2d(x, weight, bias, *how), x, weights, step)


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
    values, bias = layer.values.detach(), None if layer.bias is None else layer.bias.detach()
    gradient = torch.ones_like(layer.blocked(values, bias, x, relu=False))

    def run() -> None:
        layer.blocked(values, bias, x, relu=False)
        if step != "forward":
            layer.blocked_weight_gradient(x, gradient, bias=bias is not None)
        if step == "inner":
            layer.blocked_input_gradient(values, gradient, x)

    return run
