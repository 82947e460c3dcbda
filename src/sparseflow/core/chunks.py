"""A batch in chunks whose losses, weighted, make the loss of the whole; checked, not assumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.batches import Part, batch_size, batches, split, spread
from sparseflow.core.errors import MeasureError, brief
from sparseflow.core.functional import scalar, undisturbed

CHUNK = 250
_SAMPLE, _PIECE = 256, 8
"""Examples on which a chunking is tried, and in pieces of how many: the smaller the pieces, the
more a loss that is not a mean over examples shows."""

Scores = Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor]]
"""A loss, or named values that are averaged alike."""


@dataclass(frozen=True)
class Chunks:
    """How a batch is cut where it is too large to be measured at once.

    The loss of the whole is taken as Σ w·L / Σ w over its chunks. That is tried
    on some examples first, in evaluation mode, and refused if it does not hold.

    Attributes:
        size: examples at a time, at most. None leaves the choice: some hundred,
            or the whole batch where the loss does not add up from chunks.
        weight: how much a chunk counts; its number of examples by default. A
            mean over all tokens that are not ignored has their number. Given
            batches that are not cut are not tried: their weighted mean is then
            what is measured.
        axis: where the examples lie, 1 for batches that are time first.
            Tensors of another length along it go whole into every chunk.

    Example:
        >>> by_tokens = Chunks(64, weight=lambda batch: (batch["labels"] != -100).sum())
    """

    size: int | None = None
    weight: Callable[[Any], float | Tensor] | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.size is not None and self.size < 1:
            raise MeasureError(f"chunk is {self.size}; it is a number of examples, at least 1")
        if self.axis < 0:
            raise MeasureError(f"axis is {self.axis}; it counts from 0")

    @classmethod
    def of(cls, chunk: int | Chunks | None) -> Chunks:
        """Take a plain number for a size."""
        return chunk if isinstance(chunk, Chunks) else cls(chunk)

    def weigh(self, chunk: Any) -> float:
        """Return how much a chunk counts.

        Raises:
            MeasureError: if that is negative or not finite.
        """
        if self.weight is None:
            return float(batch_size(chunk, self.axis))
        weight = float(self.weight(chunk))
        if not (weight >= 0 and math.isfinite(weight)):
            raise MeasureError(f"weight gives {weight} for a chunk; it must be 0 or more")
        return weight

    def cut(self, batch: Any, size: int) -> list[Any]:
        """Cut a batch into even chunks of at most ``size`` examples."""
        count = batch_size(batch, self.axis)
        if count <= size:
            return [batch]
        return split(batch, math.ceil(count / math.ceil(count / size)), self.axis)


def parts_of(
    model: nn.Module,
    loss: Scores,
    data: Any,
    chunk: int | Chunks | None = None,
    *,
    default: int = CHUNK,
) -> list[Part]:
    """Cut a batch, or an iterable of batches, into parts and weigh them.

    Args:
        model: what the loss is tried with.
        loss: the loss that is measured.
        data: a batch or an iterable of batches.
        chunk: examples at a time, or all that :class:`Chunks` says.
        default: examples at a time where ``chunk`` does not say.

    Raises:
        MeasureError: if the data hold no example, or the loss of the whole
            is not the weighted mean over chunks.
    """
    chunks, listed = Chunks.of(chunk), batches(data)
    size = chunks.size or default
    pieces = [piece for batch in listed for piece in chunks.cut(batch, size)]
    # Of batches as they were given, a declared weight defines the mean: nothing can disagree.
    defined = chunks.weight is not None and len(pieces) == len(listed)
    tried = len(pieces) > 1 and not defined
    if tried and (wrong := _disagreement(model, loss, listed, chunks)):
        if chunks.size is None and len(listed) == 1:
            return [Part(listed[0], 1.0)]
        whole = ", or chunk=None to measure the batch as a whole" * (len(listed) == 1)
        raise MeasureError(
            f"{wrong}: pass chunk=Chunks(weight=...) to say how much a chunk counts{whole}"
        )
    parts = [Part(piece, weight) for piece in pieces if (weight := chunks.weigh(piece))]
    if not parts:
        raise MeasureError(
            "the data hold no example" + " that counts" * (chunks.weight is not None)
        )
    return parts


def scores_of(value: Any) -> dict[str, Tensor]:
    """Take what a loss returns as named numbers.

    Raises:
        MeasureError: if one of them is not a scalar tensor.
    """
    if not isinstance(value, Mapping) or hasattr(value, "loss"):
        return {"loss": scalar(value)}
    return {name: scalar(one, f"the loss, as {name!r},") for name, one in value.items()}


@torch.no_grad()
def _disagreement(model: nn.Module, loss: Scores, listed: list[Any], chunks: Chunks) -> str | None:
    """Say where the loss of some examples is not the weighted mean over pieces of them.

    Dropout and batch norm are in evaluation mode meanwhile: that they draw, or
    mix the examples of a chunk, does not make the loss less of a mean.
    """
    with undisturbed(model):
        model.eval()
        for batch in listed:
            count = min(batch_size(batch, chunks.axis), max(_SAMPLE // len(listed), _PIECE))
            piece = max(1, min(_PIECE, count // 4))
            if count > piece:
                sample = spread(batch, count, chunks.axis)
                if wrong := _difference(model, loss, sample, chunks, piece):
                    return wrong
    return None


def _difference(
    model: nn.Module, loss: Scores, sample: Any, chunks: Chunks, piece: int
) -> str | None:
    if not chunks.weigh(sample):
        return None
    count = batch_size(sample, chunks.axis)
    weighed = [(p, chunks.weigh(p)) for p in split(sample, piece, chunks.axis)]
    total = sum(weight for _, weight in weighed)
    try:
        whole = scores_of(loss(model, sample))
        values = [(scores_of(loss(model, p)), weight) for p, weight in weighed if weight]
    except MeasureError:
        raise
    except Exception as error:
        return f"the loss cannot be had from chunks of {piece} examples ({brief(error)})"
    for name, value in whole.items():
        mean = sum(float(scores[name]) * weight for scores, weight in values) / (total or 1.0)
        if not _close(value, mean):
            return (
                f"{name} is {float(value):.6g} on {count} examples and {mean:.6g} as the mean "
                f"over chunks of {piece} of them"
            )
    return None


def _close(value: Tensor, mean: float) -> bool:
    """Whether two means of the same values differ by no more than rounding.

    Half of the digits: kernels for another number of examples add up in another order, and
    autocast or TF32 round more coarsely than the type of the loss says.
    """
    exact, eps = float(value), torch.finfo(value.dtype).eps
    if not (math.isfinite(exact) and math.isfinite(mean)):
        return math.isfinite(exact) == math.isfinite(mean)
    return math.isclose(exact, mean, rel_tol=eps**0.5, abs_tol=4 * eps)
