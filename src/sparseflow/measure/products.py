"""Second derivatives of a loss on one chunk of data, along given directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from sparseflow.core.batches import mapped, tensors_of
from sparseflow.core.chunks import Chunks, parts_of
from sparseflow.core.errors import MeasureError
from sparseflow.core.functional import Loss, scalar

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some examples, and the loss on them as a function of the parameters.

    Attributes:
        model: evaluated with tensors put in the place of its own.
        loss: ``loss(model, batch) -> scalar``.
        frozen: parameters that are not differentiated.
        buffers: buffers; every evaluation works on copies of them.
        tensors: the tensors of the batch.
        frame: the batch with an empty tensor in the place of each.
        share: how much these examples count, of 1 in all.
    """

    model: nn.Module
    loss: Loss
    frozen: State
    buffers: State
    tensors: list[Tensor]
    frame: Any
    share: float

    @property
    def kind(self) -> str:
        """What all chunks that one trace can serve have in common."""
        return f"{[(t.shape, t.dtype) for t in self.tensors]} {self.frame}"

    def holding(self, tensors: list[Tensor]) -> Chunk:
        """The same with other examples."""
        return replace(self, tensors=tensors)

    def value(self, parameters: State) -> Any:
        """What the loss returns at these parameters: a scalar tensor."""
        return self._call(_Loss(self.model, self.loss), parameters)

    def output(self, parameters: State) -> Tensor:
        """What the loss sees of the model at these parameters."""
        return self._call(_Output(self.model, self.loss), parameters)

    def value_of(self, output: Tensor) -> Tensor:
        """Loss as a function of the model's output."""
        return self.loss(_StandIn(self.model, output), self._batch())

    def _batch(self) -> Any:
        tensors = iter(self.tensors)
        return mapped(self.frame, lambda _: next(tensors))

    def _call(self, module: nn.Module, parameters: State) -> Any:
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        named = {f"model.{n}": t for n, t in (self.frozen | buffers | parameters).items()}
        return functional_call(module, named, (self._batch(),))


class _Loss(nn.Module):
    """The loss as a module, so that the parameters it reaches can be replaced."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Any:
        return self.loss(self.model, batch)


class _Output(_Loss):
    """The output of the model that the loss asks for."""

    def forward(self, batch: Any) -> Tensor:
        stand_in = _StandIn(self.model)
        self.loss(stand_in, batch)
        if stand_in.output is None:
            raise MeasureError(
                "the loss does not call the model: Gauss-Newton needs the one output it is made of"
            )
        return stand_in.output


class _StandIn(nn.Module):
    """What a loss gets in place of the model; it keeps or gives the output."""

    def __init__(self, model: nn.Module, given: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.given = model, given
        self.output: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.output is not None:
            raise MeasureError(
                "the loss calls the model more than once: Gauss-Newton is defined by one output"
            )
        output = self.model(*args, **kwargs) if self.given is None else self.given
        if not isinstance(output, Tensor):
            raise MeasureError(
                f"the model returns {type(output).__name__}: Gauss-Newton needs one tensor"
            )
        self.output = output
        return output


Product = Callable[[Chunk, State, State, Sequence[str]], State]
"""(chunk, point, directions by parameter, parameters) → those parameters' rows of the product"""


def hessian_product(part: Chunk, at: State, along: State, rows: Sequence[str]) -> State:
    """Rows of ∂²ℓ/∂θ² · v: the derivative of the gradient along v."""

    def gradient(moved: State) -> State:
        inside = at | moved
        return grad(lambda r: part.value(inside | r))({name: inside[name] for name in rows})

    return jvp(gradient, ({name: at[name] for name in along},), (along,))[1]


def gauss_newton_product(part: Chunk, at: State, along: State, rows: Sequence[str]) -> State:
    """Rows of Jᵀ (∂²ℓ/∂z²) J · v, z the model's output."""
    here = ({name: at[name] for name in along},)
    output = jvp(lambda p: part.output(at | p), here, (along,))
    curved = jvp(grad(part.value_of), output[:1], output[1:])[1]
    pull = vjp(lambda r: part.output(at | r), {name: at[name] for name in rows})[1]
    return pull(curved)[0]


def each(function: Callable[[State], State], tangents: State) -> State:
    """Apply a function to every first index; one by one if it cannot be vectorised."""
    try:
        return vmap(function)(tangents)
    except (RuntimeError, ValueError):
        count = len(next(iter(tangents.values())))
        rows = [function({n: t[i] for n, t in tangents.items()}) for i in range(count)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention written out: its fused kernels have no second derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def chunks_of(
    model: nn.Module,
    loss: Loss,
    data: Any,
    frozen: State,
    buffers: State,
    dtype: torch.dtype | None,
    chunk: int | Chunks | None,
) -> list[Chunk]:
    """Cut the data, in the wanted type, weighted by how much each part counts."""
    parts = parts_of(model, loss, data, chunk)
    total, empty = sum(weight for _, weight in parts), torch.empty(0)
    return [
        Chunk(
            *(model, loss, frozen, buffers),
            tensors=[cast(tensor, dtype) for tensor in tensors_of(batch)],
            frame=mapped(batch, lambda _: empty),
            share=weight / total,
        )
        for batch, weight in parts
    ]


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Floating tensors in another type; others, or without one, as they are."""
    fits = dtype is not None and tensor.is_floating_point()
    return tensor.detach().to(dtype) if fits else tensor.detach()


def mean_value(parts: Sequence[Chunk], at: State) -> float:
    """Mean loss over all chunks.

    The first chunk is evaluated once more at the end, when every random stream
    has moved on, to notice what draws at random without being a module.

    Raises:
        MeasureError: if the loss is not a finite scalar, or not the same twice.
    """
    values = [
        _finite(part.value(at), f"chunk {index + 1} of {len(parts)}")
        for index, part in enumerate(parts)
    ]
    again = float(parts[0].value(at))
    digits = torch.finfo(next(iter(at.values())).dtype).eps ** 0.5
    if not math.isclose(again, values[0], rel_tol=digits):
        raise MeasureError(
            f"the loss is {values[0]:.6g} and then {again:.6g} on the same examples: something "
            "drops or draws at random; call model.eval() first"
        )
    return sum(part.share * value for part, value in zip(parts, values, strict=True))


def _finite(value: Any, where: str) -> float:
    number = float(scalar(value))
    if not math.isfinite(number):
        raise MeasureError(f"the loss is {number} on {where}: curvature needs a finite loss")
    return number


def refuse_noise(model: nn.Module) -> None:
    """Refuse modules whose output depends on other examples or on chance.

    Raises:
        MeasureError: for batch norm or dropout in training mode.
    """
    for name, module in model.named_modules():
        kind = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise MeasureError(f"{kind} keeps no running statistics: it mixes examples")
        if not module.training:
            continue
        if isinstance(module, _BatchNorm):
            raise MeasureError(f"{kind} is in training mode: call model.eval() first")
        drop = module.p if isinstance(module, _DropoutNd) else _inner_dropout(module)
        if drop > 0:
            raise MeasureError(f"{kind} drops at random: call model.eval() first")


def _inner_dropout(module: nn.Module) -> float:
    inner = isinstance(module, nn.MultiheadAttention | nn.RNNBase)
    return float(module.dropout) if inner else 0.0
