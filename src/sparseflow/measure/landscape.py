"""The loss of a model at weights that are not its own, over a whole data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseflow.core.batches import batch_size, batches
from sparseflow.core.chunks import Chunks, Scores, parts_of, scores_of
from sparseflow.core.errors import MeasureError
from sparseflow.core.functional import logits_of, undisturbed

DEFAULT_CHUNK = 500


def loss_and_accuracy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Mean cross-entropy and accuracy in % of a classifier on (inputs, classes), in one pass.

    :func:`interpolate` and :func:`plane` take it for their ``loss``.

    >>> batch = (torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    >>> float(loss_and_accuracy(nn.Identity(), batch)["accuracy"])
    50.0
    """
    inputs, classes = batch
    logits = logits_of(model(inputs))
    return {
        "loss": functional.cross_entropy(logits, classes),
        "accuracy": 100 * (logits.argmax(1) == classes).double().mean(),
    }


class _Borrowed(nn.Module):
    """The loss as a module around the model, so that ``functional_call`` lends both weights."""

    def __init__(self, model: nn.Module, loss: Scores) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor | Mapping[str, Tensor]:
        return self.loss(self.model, batch)


class Landscape:
    """Evaluates one model at any weights: in eval mode, without a trace in the model.

    Batch norm's running statistics belong to the weights that they were
    gathered with. At every point they are gathered again: one pass in training
    mode over ``batch_norm_data``. The mean and variance are those of all values
    that enter a layer, within and between chunks; for the first one they are
    those of one big batch. A later one sees what the layers before it make of
    each chunk with the chunk's own statistics, as in training.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Scores,
        data: Any,
        *,
        batch_norm_data: Any = None,
        chunk: int | Chunks | None = None,
    ) -> None:
        """List the data once, cut in even chunks."""
        self._model, self._call = model, _Borrowed(model, loss)
        self._parts = parts_of(model, loss, data, chunk, default=DEFAULT_CHUNK)
        self._norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.running_mean is not None
        }
        self._norm_chunks: list[Any] = []
        if self._norms:
            cuts, size = Chunks.of(chunk), Chunks.of(chunk).size or DEFAULT_CHUNK
            pieces = (
                [batch for batch, _ in self._parts]
                if batch_norm_data is None
                else [c for batch in batches(batch_norm_data) for c in cuts.cut(batch, size)]
            )
            # A variance needs two examples.
            many = [piece for piece in pieces if batch_size(piece, cuts.axis) > 1]
            self._norm_chunks = many or pieces

    @torch.no_grad()
    def at(self, state: Mapping[str, Tensor], where: str) -> dict[str, float]:
        """Return the loss, and what else the loss function gives, at ``state``.

        Raises:
            MeasureError: if one of them is not finite; ``where`` says at what point.
        """
        tensors = self._tensors(state)
        sums: dict[str, float] = {}
        with undisturbed(self._model):
            self._model.eval()
            self._gather(tensors)
            for batch, weight in self._parts:
                for name, value in self._values(tensors, batch).items():
                    sums[name] = sums.get(name, 0.0) + value * weight
        total = sum(weight for _, weight in self._parts)
        means = {name: value / total for name, value in sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise MeasureError(f"{name} is {value} {where}: it must be finite")
        return means

    def _tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        places = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        return {n: state[n].to(tensor.device) for n, tensor in places.items() if n in state}

    def _gather(self, tensors: dict[str, Tensor]) -> None:
        """Put fresh batch-norm statistics into ``tensors``."""
        if not self._norms:
            return
        for name, module in self._norms.items():
            for buffer, value in module.named_buffers(recurse=False):
                tensors[_joined(name, buffer)] = value.clone()
        moments_of = {name: _Moments() for name in self._norms}
        hooks = [
            module.register_forward_pre_hook(moments_of[name].add, with_kwargs=True)
            for name, module in self._norms.items()
        ]
        try:
            for module in self._norms.values():
                module.train()
            for chunk in self._norm_chunks:
                self._run(tensors, chunk)
        finally:
            for hook, module in zip(hooks, self._norms.values(), strict=True):
                hook.remove()
                module.eval()
        for name, moments in moments_of.items():
            for buffer, value in moments.buffers().items():
                where = _joined(name, buffer)
                tensors[where] = value.to(tensors[where])

    def _run(self, tensors: dict[str, Tensor], chunk: Any) -> Tensor | Mapping[str, Tensor]:
        lent = {f"model.{name}": tensor for name, tensor in tensors.items()}
        return torch.func.functional_call(self._call, lent, (chunk,))

    def _values(self, tensors: dict[str, Tensor], chunk: Any) -> dict[str, float]:
        values = scores_of(self._run(tensors, chunk))
        if "loss" not in values:
            raise MeasureError(f"the loss gave {', '.join(values) or 'nothing'}; 'loss' is missing")
        return {name: float(value) for name, value in values.items()}


class _Moments:
    """Mean and variance of each channel over all that a batch-norm layer is given.

    Parts are joined by the law of total variance (Chan, Golub and LeVeque 1983).
    """

    def __init__(self) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self._count, self._mean, self._squares = 0, zero, zero

    def add(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Join the input of one forward pass; a forward pre-hook."""
        x = args[0] if args else kwargs["input"]
        axes = [axis for axis in range(x.ndim) if axis != 1]
        var, mean = (moment.double() for moment in torch.var_mean(x, axes, correction=0))
        count = x.numel() // x.shape[1]
        total, apart = self._count + count, mean - self._mean
        between = apart.square() * (self._count / total)
        self._squares = self._squares + count * (var + between)
        self._mean = self._mean + apart * (count / total)
        self._count = total

    def buffers(self) -> dict[str, Tensor]:
        """What batch norm keeps of it; nothing if no forward pass came by."""
        if not self._count:
            return {}
        # The variance is the unbiased one, as in training.
        variance = self._squares / max(self._count - 1, 1)
        return {"running_mean": self._mean, "running_var": variance}


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def mix(states: tuple[Mapping[str, Tensor], ...], shares: tuple[float, ...]) -> dict[str, Tensor]:
    """Return Σ share · state, for shares that sum to 1.

    Taken as the state of the largest share plus what the others add to it: a
    state whose share is 1 comes out bit for bit, and so does what all of them
    have in common. What is not floating point is that state's.
    """
    order = sorted(range(len(shares)), key=lambda i: -shares[i])
    nearest, others = states[order[0]], order[1:]

    def one(name: str) -> Tensor:
        base = nearest[name].detach()
        total = base.clone()
        if base.is_floating_point() or base.is_complex():
            for i in others:
                if shares[i]:
                    total.add_(states[i][name].detach().to(base) - base, alpha=shares[i])
        return total

    return {name: one(name) for name in nearest if all(name in state for state in states)}
