"""A run of sparse layers as one node of autograd, in the blocked layout throughout.

A chain is a tuple of stages. The forward pass keeps what the backward pass
needs, and the backward pass walks the stages in reverse. Autograd sees one node
for all layers, so its bookkeeping does not dominate small networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd.function import once_differentiable

from sparseflow.core.errors import KernelError
from sparseflow.sparse.kernels.blocked import block, relu_gradient, unblock
from sparseflow.sparse.kernels.pattern import Pattern
from sparseflow.sparse.kernels.pool import max_pool, max_pool_gradient

Record = list[tuple[Tensor, Tensor]]
"""Blocked inputs and output gradients of the backward passes of one layer."""


@runtime_checkable
class Weighted(Protocol):
    """What a chain asks of a sparse layer."""

    values: Any
    bias: Any
    record: Record | None
    pattern: Pattern
    copied: Any

    def check_values(self) -> None:
        """Refuse a copy whose values belong to different positions."""
        ...


@dataclass
class Tape:
    """One pass through a chain, and what it keeps for the backward pass.

    Attributes:
        layers: sparse layers, in order.
        n: number of examples.
        parameters: values and bias of each, flat.
        saved: stack of tensors.
        shapes: stack of shapes.
        gradients: with respect to each parameter, filled in the backward pass.
        wanted: whether the input, then each parameter, needs a gradient.
        at: layers passed.
        owned: whether the present gradient is the chain's own, so that a stage may
            overwrite it.
        done: whether nothing earlier needs a gradient.
    """

    layers: tuple[Weighted, ...]
    n: int
    parameters: tuple[Any, ...]
    saved: list[Tensor] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)
    wanted: tuple[bool, ...] = ()
    at: int = 0
    owned: bool = False
    done: bool = False


@runtime_checkable
class Stage(Protocol):
    """One step of a chain, forward and backward."""

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """Output of the stage."""
        ...

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Gradient with respect to the stage's input, from that of its output."""
        ...


@dataclass(frozen=True)
class _Block:
    """From plain (n, ...) to blocked (n / 16, ..., 16)."""

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        return block(x)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        return unblock(gradient, tape.n) if tape.wanted[0] else gradient


@dataclass(frozen=True)
class _Unblock:
    """From blocked to the ``n`` plain examples."""

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        return unblock(x, tape.n)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        tape.owned = True
        return block(gradient)


@dataclass(frozen=True)
class _Flatten:
    """From blocked images to blocked features; no data move."""

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        tape.shapes.append(x.shape)
        return x.flatten(1, -2)

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        return gradient.view(tape.shapes.pop())


@dataclass(frozen=True)
class _Relu:
    """ReLU; one that follows a layer is fused into it."""

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        y = torch.relu(x)
        tape.saved.append(y)
        return y

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        gradient = relu_gradient(gradient, tape.saved.pop(), tape.owned)
        tape.owned = True
        return gradient


@dataclass(frozen=True)
class Pool:
    """Max-pooling.

    Attributes:
        kernel: height and width of the window.
        stride: steps between windows.
        padding: positions added on both sides.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """Take the largest of each window."""
        y, index = max_pool(x, self.kernel, self.stride, self.padding)
        tape.shapes.append(x.shape)
        tape.saved.append(index)
        return y

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Pass the gradient to the largest."""
        height, width = tape.shapes.pop()[2:4]
        index, tape.owned = tape.saved.pop(), True
        return max_pool_gradient(
            gradient, index, (height, width), self.kernel, self.stride, self.padding
        )


@dataclass(frozen=True)
class Apply:
    """The next sparse layer, then ReLU and max-pooling if asked.

    ReLU and max-pooling commute, so the gradient passes ReLU on the small
    pooled tensor.
    """

    relu: bool = False
    pool: Pool | None = None

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """Output of the layer, ReLU fused into it."""
        values, bias = tape.parameters[2 * tape.at : 2 * tape.at + 2]
        y = tape.layers[tape.at].pattern.forward(values, bias, x, self.relu)
        tape.at += 1
        tape.saved.append(x)
        if self.pool is not None:
            y = self.pool.forward(y, tape)
        if self.relu:
            tape.saved.append(y)
        return y

    def backward(self, gradient: Tensor, tape: Tape) -> Tensor:
        """Gradient of the inputs; those of values and bias are noted on the tape."""
        if self.relu:
            gradient = relu_gradient(gradient, tape.saved.pop(), tape.owned)
        if self.pool is not None:
            gradient = self.pool.backward(gradient, tape)
        tape.at -= 1
        x, layer, first = tape.saved.pop(), tape.layers[tape.at], 2 * tape.at
        if layer.record is not None:
            layer.record.append((x, gradient))
        of_values, of_bias = tape.wanted[first + 1 : first + 3]  # the input's flag comes first
        if of_values or of_bias:
            layer.copied = None  # it is trained: its values are its own
            tape.gradients[first : first + 2] = layer.pattern.weight_gradient(x, gradient, of_bias)
        if tape.at == 0 and not tape.wanted[0]:
            tape.done = True
            return gradient
        tape.owned = True
        return layer.pattern.input_gradient(tape.parameters[first], gradient, x.shape[2:-1])


BLOCK, UNBLOCK, FLATTEN, RELU = _Block(), _Unblock(), _Flatten(), _Relu()


def run(stages: tuple[Stage, ...], layers: tuple[Weighted, ...], n: int, x: Tensor) -> Tensor:
    """Run a chain.

    Args:
        stages: in order; each :class:`Apply` takes the next layer.
        layers: sparse layers in order.
        n: number of examples.
        x: plain if the first stage is :data:`BLOCK`, else blocked.

    Raises:
        KernelError: for anything but float32 (bfloat16 and half are computed
            in float32) on the CPU, a shape that does not match, or a transform of
            ``torch.func``.
    """
    return _opaque(stages, layers, n, x)


def to_blocked(x: Float[Tensor, " n *rest"]) -> Float[Tensor, "nb *rest 16"]:
    """Change to the blocked layout, padding the batch with zeros; differentiable."""
    return run((BLOCK,), (), x.shape[0], x)


def from_blocked(x: Float[Tensor, "nb *rest 16"], n: int) -> Float[Tensor, " n *rest"]:
    """Change back to the first ``n`` plain examples; differentiable."""
    return run((UNBLOCK,), (), n, x)


def _run(stages: tuple[Stage, ...], layers: tuple[Weighted, ...], n: int, x: Tensor) -> Tensor:
    if peek_interpreter_stack() is not None:
        raise KernelError(
            "torch.func (grad, vmap, jvp, ...) does not reach into the kernels of truly sparse "
            "layers: use backward or torch.autograd.grad, or transform sf.to_dense(model)"
        )
    for layer in layers:
        layer.check_values()
    parameters = [_float32(p) for layer in layers for p in (layer.values, layer.bias)]
    y = None
    if n == 1 and not torch.is_grad_enabled():
        y = _one_example(stages, layers, _float32(x), parameters)
    if y is None:
        y = _Run.apply(stages, layers, n, _float32(x), *parameters)
    dtype = x.dtype
    if stages[-1] == UNBLOCK and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")  # as dense layers would
    return y.to(dtype)


# torch.compiler.disable, except that the compiler is imported on the first call, not with this
# module: that takes longer than importing all the rest.
_opaque = cast(Callable[..., Tensor], torch._disable_dynamo(_run))


def _float32(tensor: Any) -> Any:
    """Widen narrower floats to float32; refuse any other dtype."""
    if tensor is None or tensor.dtype == torch.float32:
        return tensor
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.float()
    raise KernelError(f"sparse layers compute in float32, not {tensor.dtype}: use .float()")


def _one_example(
    stages: tuple[Stage, ...], layers: tuple[Weighted, ...], x: Tensor, parameters: list[Any]
) -> Tensor | None:
    """Run a chain of linear layers on one example, which blocked would be computed 16 times.

    Returns None where the chain does anything else.
    """
    first, inner, last = stages[0], stages[1:-1], stages[-1]
    linear = all(isinstance(s, Apply) and s.pool is None for s in inner)
    if not (linear and inner and (first, last) == (BLOCK, UNBLOCK)) or x.ndim != 2:
        return None
    y = x.reshape(-1)
    for at, (stage, layer) in enumerate(zip(inner, layers, strict=True)):
        assert isinstance(stage, Apply)
        values, bias = parameters[2 * at : 2 * at + 2]
        out = layer.pattern.single(values, bias, y, stage.relu)
        if out is None:
            return None
        y = out
    return y.unsqueeze(0)


class _Run(torch.autograd.Function):
    """A whole chain as one node of autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        stages: tuple[Stage, ...],
        layers: tuple[Weighted, ...],
        n: int,
        x: Tensor,
        *parameters: Any,
    ) -> Tensor:
        tape = Tape(layers, n, parameters)
        for stage in stages:
            x = stage.forward(x, tape)
        if any(ctx.needs_input_grad):
            ctx.stages, ctx.tape = stages, tape
            ctx.save_for_backward(*parameters, *tape.saved)
            tape.saved, tape.parameters = [], ()
        return x

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Any, ...]:
        # A tape of its own: the graph may be kept, and walked again.
        layers, saved = ctx.tape.layers, ctx.saved_tensors
        count = 2 * len(layers)
        tape = Tape(
            layers,
            ctx.tape.n,
            parameters=saved[:count],
            saved=list(saved[count:]),
            shapes=list(ctx.tape.shapes),
            gradients=[None] * count,
            wanted=ctx.needs_input_grad[3:],
            at=len(layers),
        )
        gradient = gradient.contiguous()
        for stage in reversed(ctx.stages):
            gradient = stage.backward(gradient, tape)
            if tape.done:
                break
        return None, None, None, gradient if tape.wanted[0] else None, *tape.gradients
