"""Hessian and Gauss-Newton matrix of the active parameters, as linear operators."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseflow.core.chunks import Chunks
from sparseflow.core.errors import MeasureError, first_line
from sparseflow.core.functional import Loss, undisturbed
from sparseflow.core.parallel import refuse_wrapped
from sparseflow.measure.linear import Replay
from sparseflow.measure.products import (
    Product,
    cast,
    chunks_of,
    each,
    gauss_newton_product,
    hessian_product,
    mean_value,
    plain_attention,
    refuse_noise,
)
from sparseflow.measure.states import dense_form

CACHE = 2**30
BLOCK = 64


def hessian(
    model: nn.Module,
    loss: Loss,
    data: Any,
    masks: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    chunk: int | Chunks | None = None,
    cache: int = CACHE,
) -> Curvature:
    """Hessian H = ∂²L/∂θ² of the mean loss over the data, on the active parameters.

    θ holds the active weights of masked parameters and every entry of the other
    trainable ones, as in the paper (Evci et al. 2022, section 4.1). Products
    are forward over reverse: the derivative of the gradient along v.

    The operator is a snapshot: later training does not change it. Neither
    weights, gradients, buffers, random streams nor flags of the model change.

    Args:
        model: any module, in evaluation mode where that makes a difference. Of a
            truly sparse one the connections are active, under the dense names.
        loss: ``loss(model, batch) -> scalar``, without weight decay.
        data: a batch, or an iterable of batches; each counts by its number of
            examples, or as :class:`Chunks` says.
        masks: masks of (some) parameters; the others count whole.
        dtype: compute in this type, ``torch.float64`` say: parameters, buffers
            and the floating tensors of the data are cast. None keeps them.
        chunk: examples at a time, or :class:`Chunks`, as for :func:`gradient_flow`.
        cache: bytes of activations to keep between products; what does not
            fit is computed again, at about the price of a gradient each time.

    Raises:
        MaskError: if the masks do not fit the model.
        MeasureError: if nothing is active, the loss is not a finite scalar, or
            batch norm or dropout is in training mode.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Linear(3, 2)
        >>> masks = sf.sparsify(net, density=0.5)
        >>> probe = (torch.ones(8, 3), torch.zeros(8, dtype=torch.long))
        >>> H = hessian(net, sf.cross_entropy, probe, masks)
        >>> H.shape, (H @ torch.ones(5)).shape
        ((5, 5), torch.Size([5]))
    """
    return Curvature(
        model, loss, data, masks, hessian_product, dtype=dtype, chunk=chunk, cache=cache
    )


def gauss_newton(
    model: nn.Module,
    loss: Loss,
    data: Any,
    masks: Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    chunk: int | Chunks | None = None,
    cache: int = CACHE,
) -> Curvature:
    """Gauss-Newton matrix G = Jᵀ (∂²L/∂z²) J on the active parameters.

    z is what the model returns, J = ∂z/∂θ. G is the part of the Hessian that
    stays when the model is replaced by its linearisation; it has no negative
    eigenvalue where the loss is convex in z, and for the cross-entropy of a
    softmax it is the Fisher matrix. The loss may call the model only once, and
    terms that do not pass through its output are left out.

    Arguments, snapshot and errors are those of :func:`hessian`.

    Raises:
        MaskError: if the masks do not fit the model.
        MeasureError: as for :func:`hessian`; or if the loss does not call the
            model exactly once, or the model does not return one tensor.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> gauss_newton(net, lambda model, x: model(x).square().mean(), x).dense()
        tensor([[2., 4.],
                [4., 8.]])
    """
    return Curvature(
        model, loss, data, masks, gauss_newton_product, dtype=dtype, chunk=chunk, cache=cache
    )


class Curvature:
    """A symmetric matrix over the active parameters, known by its products.

    Made by :func:`hessian` or :func:`gauss_newton`.

    Attributes:
        names: the parameters with active entries, in the model's order.
        shape: (n, n), n the number of active entries.
        dtype: what products are computed in; sums over chunks are float64.
        device: where the parameters lie.
        loss: mean loss over the data.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        masks: Mapping[str, Tensor] | None,
        product: Product,
        *,
        dtype: torch.dtype | None,
        chunk: int | Chunks | None,
        cache: int,
    ) -> None:
        """Take the snapshot and evaluate the loss once."""
        refuse_wrapped(model)
        model, values = dense_form(model, masks)
        refuse_noise(model)
        self._model, self._product = model, product
        named = dict(model.named_parameters())
        self._where = {
            name: where
            for name, p in named.items()
            if p.requires_grad and len(where := _active(p, values.get(name)))
        }
        self.names: tuple[str, ...] = tuple(self._where)
        if imaginary := [name for name in self.names if named[name].is_complex()]:
            raise MeasureError(
                f"{imaginary[0]} is {named[imaginary[0]].dtype}: curvature is that of real weights"
            )
        if not self.names:
            raise MeasureError(f"{type(model).__name__} has no active trainable parameter")
        ends = list(accumulate(len(where) for where in self._where.values()))
        self._spans = dict(zip(self.names, map(slice, [0, *ends], ends), strict=True))
        copies = {name: cast(p, dtype).clone() for name, p in named.items()}
        buffers = {name: cast(b, dtype).clone() for name, b in model.named_buffers()}
        self._point = {name: copies.pop(name) for name in self.names}
        first = self._point[self.names[0]]
        self.shape: tuple[int, int] = (ends[-1], ends[-1])
        self.dtype: torch.dtype = first.dtype
        self.device: torch.device = first.device
        self._chunks = chunks_of(model, loss, data, copies, buffers, dtype, chunk)
        self._replay = Replay(self._chunks, self._point, product, cache)
        with self._quiet():
            self.loss: float = mean_value(self._chunks, self._point)
            if product is gauss_newton_product:
                self._chunks[0].output(self._point)

    def __repr__(self) -> str:
        """Say how large it is and of how many parameters."""
        return f"Curvature({self.shape[0]} active entries of {len(self.names)} parameters)"

    def __matmul__(self, v: Float[Tensor, " n *k"]) -> Float[Tensor, " n *k"]:
        """Multiply with a vector (n,) or with k of them (n, k).

        Returns:
            float64 if ``v`` is, else in the operator's dtype.

        Raises:
            MeasureError: if ``v`` has another length, or the product is not finite.
        """
        n = self.shape[0]
        if v.ndim not in (1, 2) or v.shape[0] != n:
            raise MeasureError(
                f"a tensor of shape {tuple(v.shape)} does not fit: the operator takes ({n},) "
                f"or ({n}, k), n = {n} active entries"
            )
        columns = v.detach().reshape(n, -1).to(self.device, self.dtype)
        total = torch.zeros(columns.shape, dtype=torch.float64, device=self.device)
        with self._quiet():
            for part, apply in zip(self._chunks, self._replay.products(), strict=True):
                for j in range(columns.shape[1]):
                    rows = apply(self.state(columns[:, j]))
                    total[:, j].add_(self.vector(rows), alpha=part.share)
        self._check_finite(total)
        return total.reshape(v.shape).to(torch.promote_types(v.dtype, self.dtype))

    def vector(self, state: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Gather the active entries of full tensors, in the operator's order.

        Raises:
            MeasureError: if a parameter is missing or has another shape.
        """
        for name, p in self._point.items():
            if name not in state or state[name].shape != p.shape:
                given = f"shape {tuple(state[name].shape)}" if name in state else "nothing"
                raise MeasureError(f"{name} should have shape {tuple(p.shape)}; there is {given}")
        parts = [state[n].detach().flatten()[w.to(state[n].device)] for n, w in self._where.items()]
        return torch.cat(parts)

    def state(self, vector: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """Scatter a vector to full tensors by parameter name, zero at inactive entries.

        Raises:
            MeasureError: if the vector has another length.
        """
        if vector.shape != self.shape[:1]:
            raise MeasureError(
                f"the vector has shape {tuple(vector.shape)}; it should be ({self.shape[0]},)"
            )
        full = {}
        for name, where in self._where.items():
            flat = vector.new_zeros(self._point[name].numel())
            flat[where.to(vector.device)] = vector[self._spans[name]]
            full[name] = flat.view(self._point[name].shape)
        return full

    def dense(self, *, block: int = BLOCK) -> Float[Tensor, "n n"]:
        """Compute the whole matrix, in float64 sums, exactly symmetric.

        Columns are taken parameter by parameter, in blocks. Only the rows of
        their own and of later parameters are computed, the others follow by
        symmetry: a column of a late layer then needs no derivative of the
        earlier ones, where most of the time would go.

        Args:
            block: columns at a time; memory grows with ``block · chunk``.

        Returns:
            A matrix in the operator's dtype.

        Raises:
            MeasureError: if an entry is not finite.
        """
        matrix = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        with self._quiet():
            for name in self.names:
                span = self._spans[name]
                for start in range(span.start, span.stop, block):
                    stop = min(start + block, span.stop)
                    matrix[span.start :, start:stop] = self._columns(name, start, stop)
        self._check_finite(matrix)
        lower = matrix.tril()
        return (lower + lower.tril(-1).T).to(self.dtype)

    def _columns(self, name: str, start: int, stop: int) -> Tensor:
        """Columns of one parameter, from the row where it begins."""
        rows = self.names[self.names.index(name) :]
        first, at = self._spans[name].start, self._point[name]
        tangents = at.new_zeros(stop - start, at.numel())
        tangents[torch.arange(stop - start), self._where[name][start - first : stop - first]] = 1
        along = {name: tangents.view(-1, *at.shape)}
        total = torch.zeros(self.shape[0] - first, stop - start, dtype=torch.float64).to(at.device)
        for part in self._chunks:
            columns = each(lambda t, part=part: self._product(part, self._point, t, rows), along)
            active = [columns[n].reshape(stop - start, -1)[:, self._where[n]] for n in rows]
            total.add_(torch.cat(active, 1).T, alpha=part.share)
        return total

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Leave no trace on the model, and let every operation have derivatives."""
        with (
            undisturbed(self._model),
            torch.no_grad(),
            plain_attention(),
            warnings.catch_warnings(),
        ):
            for message in (".*performance drop.*", ".*torch.jit.script.*"):
                warnings.filterwarnings("ignore", message=message)
            try:
                yield
            except NotImplementedError as error:
                raise MeasureError(
                    f"an operation has no second derivative: {first_line(error)}"
                ) from error

    def _check_finite(self, product: Tensor) -> None:
        bad = (~product.isfinite()).flatten(1).any(1)
        if not bool(bad.any()):
            return
        row = int(bad.nonzero()[0, 0])
        name = next(n for n in self.names if self._spans[n].stop > row)
        raise MeasureError(
            f"the product with the curvature is not finite: {int(bad.sum())} of {self.shape[0]} "
            f"entries, the first in {name}"
        )


def _active(parameter: Tensor, mask: Tensor | None) -> Tensor:
    """Flat indices of the active entries."""
    if mask is None:
        return torch.arange(parameter.numel(), device=parameter.device)
    return mask.detach().to(parameter.device).flatten().nonzero().flatten()
