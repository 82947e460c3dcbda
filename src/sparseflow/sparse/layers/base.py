"""What sparse layers share: non-zero values, their topology, and what each type declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseflow.core.errors import KernelError, MaskError
from sparseflow.core.operations import arguments_of
from sparseflow.core.parameters import SPARSE_STATE, SparseWeight, replace_data
from sparseflow.sparse.kernels.pattern import Pattern
from sparseflow.sparse.layers.chain import BLOCK, UNBLOCK, Apply, Record, run

Form = TypeVar("Form", bound="SparseLayer")

_ALONE = (BLOCK, Apply(), UNBLOCK)


class Reference(NamedTuple):
    """A layer that costs are calibrated with.

    Attributes:
        sizes: positional arguments of the dense layer.
        density: share of its weight that is active.
        shape: shape of its input.
    """

    sizes: tuple[int, ...]
    density: float
    shape: tuple[int, ...]


class SparseLayer(nn.Module, SparseWeight):
    """What sparse layers share: values, topology, and how both are replaced.

    A type of layer is one subclass, registered by
    :func:`~sparseflow.sparse.layers.registry.sparse_form`. It declares the first
    attributes below and makes its ``pattern``; conversion, planning and files know no
    more of it.

    Attributes:
        dense_type: the dense layer that it stands for, set when it is registered.
        arguments: names of the arguments that build the dense layer, which are
            attributes of both forms; a file holds these.
        axes: axes of a batch of inputs that it takes in the blocked layout.
        cost: which coefficients of the cost model are its own.
        references: layers to calibrate these with; none if another type has them.
        pattern: its topology and kernels.
        values: the non-zero weights (nnz,), in the order of their flat
            positions in the dense weight.
        bias: dense bias (out,) or None.
        row_pointers: buffer (out + 1,), int32: where each output's values begin.
        columns: buffer (nnz,), int32: position of each value within its output's
            row of the dense weight.
        shape: shape of the dense weight.
        record: None, or a list to which every backward pass appends what
            :meth:`weight_gradient` needs.
    """

    dense_type: ClassVar[type[nn.Module]]
    arguments: ClassVar[tuple[str, ...]]
    axes: ClassVar[int]
    cost: ClassVar[str]
    references: ClassVar[tuple[Reference, ...]] = ()

    values: nn.Parameter
    bias: nn.Parameter | None
    row_pointers: Tensor
    columns: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        indices: Tensor,
        values: Tensor,
        bias: Float[Tensor, " out"] | None,
    ) -> None:
        """Hold the given connections.

        Raises:
            KernelError: if they are out of range, unsorted or of another number
                than the values.
            SparseUnavailable: if the compiled core is missing.
        """
        super().__init__()
        self.shape: torch.Size = torch.Size(shape)
        self.record: Record | None = None
        pointers, columns = _rows(indices, self.shape)
        self.pattern: Pattern = self._checked(values, pointers, columns)
        self.register_buffer("row_pointers", pointers)
        self.register_buffer("columns", columns)
        self.values = nn.Parameter(values.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @classmethod
    def from_dense(cls: type[Form], layer: nn.Module, mask: Tensor) -> Form:
        """Take a dense layer's active weights.

        Raises:
            MaskError: if the mask has another shape than the weight.
            KernelError: if the layer has no sparse form.
        """
        return cls.of(layer, *active(layer.get_parameter("weight"), mask))

    @classmethod
    def of(cls: type[Form], layer: Any, indices: Tensor, values: Tensor) -> Form:
        """Take a dense layer's geometry and bias; its weight is not looked at.

        Raises:
            KernelError: if the layer has no sparse form, or the topology is not valid.
        """
        raise NotImplementedError

    def to_dense(self) -> nn.Module:
        """Return the same layer, dense."""
        layer = self.dense_type(**arguments_of(self, self.arguments), device="meta")
        layer.weight = nn.Parameter(self.dense_weight(), self.values.requires_grad)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return layer.train(self.training)

    @property
    def nnz(self) -> int:
        """Number of non-zeros."""
        return self.columns.numel()

    @property
    def density(self) -> float:
        """Share of the dense weight that is held."""
        return self.nnz / max(self.shape.numel(), 1)

    def indices(self) -> Int[Tensor, " nnz"]:
        """Sorted flat positions of the values in the dense weight."""
        counts = self.row_pointers.diff().long()
        width = self.shape[1:].numel()
        starts = torch.arange(self.shape[0], device=counts.device) * width
        return starts.repeat_interleave(counts) + self.columns

    @torch.no_grad()
    def set_topology(self, indices: Tensor, values: Tensor) -> None:
        """Replace the connections; ``values`` stays the same parameter, without a gradient.

        Args:
            indices: sorted flat positions in the dense weight (k,), int64.
            values: their values (k,).

        Raises:
            KernelError: if they are not valid; the layer is then as before.
        """
        pointers, columns = _rows(indices, self.shape)
        self.pattern = self._checked(values, pointers, columns)
        self.row_pointers, self.columns = pointers, columns
        replace_data(self.values, values.detach().to(self.values).contiguous())

    @torch.no_grad()
    def dense_weight(self) -> Float[Tensor, " out *rest"]:
        """The weight as a dense tensor, zero off the topology."""
        weight = self.values.new_zeros(self.shape)
        weight.view(-1)[self.indices()] = self.values
        return weight

    def weight_gradient(self, rows: slice) -> Float[Tensor, " rows *rest"]:
        """Dense weight gradient of these outputs, summed over the recorded passes.

        Raises:
            KernelError: if nothing was recorded.
        """
        if not self.record:
            raise KernelError("no backward pass was recorded: set record = [] before it")
        start, stop, _ = rows.indices(self.shape[0])
        total = self.values.new_zeros((stop - start, *self.shape[1:]), dtype=torch.float32)
        for x, gradient in self.record if stop > start else ():
            self.pattern.add_dense_gradient(total, x, gradient, start)
        return total

    def values_gradient(self) -> Float[Tensor, " nnz"]:
        """Gradient of the values, summed over the recorded passes."""
        total = self.values.new_zeros(self.nnz, dtype=torch.float32)
        for x, gradient in self.record or ():
            total += self.pattern.weight_gradient(x, gradient, False)[0]
        return total

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to a plain tensor, as its dense form would."""
        return run(_ALONE, (self,), x.shape[0], x)

    def extra_repr(self) -> str:
        """Describe shape and density."""
        size = "×".join(map(str, self.shape))
        return f"{size}, nnz={self.nnz}, density={self.density:.4f}, bias={self.bias is not None}"

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Accept another number of non-zeros, after checking all that is given."""
        parts = [state_dict[prefix + name] for name in SPARSE_STATE if prefix + name in state_dict]
        if parts:
            try:
                self._take(parts, state_dict.get(prefix + "bias"))
            except KernelError as error:
                error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _take(self, parts: list[Any], bias: Any) -> None:
        """Make room for what a state dict holds of values and topology."""
        if len(parts) < 3 or not all(isinstance(each, Tensor) for each in parts):
            raise KernelError("values, row_pointers and columns can only be loaded together")
        if isinstance(bias, Tensor) and (self.bias is None or bias.shape != self.bias.shape):
            held = "no bias" if self.bias is None else f"one of {tuple(self.bias.shape)}"
            raise KernelError(f"a bias of shape {tuple(bias.shape)}; the layer has {held}")
        values, pointers, columns = parts
        if pointers.is_floating_point() or columns.is_floating_point():
            raise KernelError("row_pointers and columns must be integers")
        self.pattern = self._checked(values, pointers.int(), columns.int())
        self.row_pointers, self.columns = pointers.int().clone(), columns.int().clone()
        if values.shape != self.values.shape:
            replace_data(self.values, self.values.data.new_empty(values.shape))

    def _checked(self, values: Tensor, row_pointers: Tensor, columns: Tensor) -> Pattern:
        """The pattern of a topology, which shares no memory with what anyone may write into."""
        if values.shape != columns.shape:
            raise KernelError(
                f"values have shape {tuple(values.shape)}, connections {tuple(columns.shape)}"
            )
        if len(row_pointers) != self.shape[0] + 1:
            raise KernelError(
                f"row_pointers must have {self.shape[0] + 1} entries for {self.shape[0]} "
                f"outputs, has {len(row_pointers)}"
            )
        return self._make_pattern(
            row_pointers.detach().to("cpu", copy=True).contiguous(),
            columns.detach().to("cpu", copy=True).contiguous(),
        )

    def _make_pattern(self, row_pointers: Tensor, columns: Tensor) -> Pattern:
        """Return the kernels of the layer for a topology."""
        raise NotImplementedError


def active(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted flat positions and values of a dense weight's active entries.

    Raises:
        MaskError: if the mask has another shape than the weight.
    """
    if mask.shape != weight.shape:
        raise MaskError(
            f"a mask must match the weight's shape {tuple(weight.shape)}, has {tuple(mask.shape)}"
        )
    indices = mask.reshape(-1).nonzero().squeeze(1)
    return indices, weight.detach().reshape(-1)[indices]


def _rows(indices: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Row pointers and columns (int32) of sorted flat positions."""
    if indices.ndim != 1 or indices.dtype != torch.long:
        raise KernelError(
            f"indices must be a vector of int64, are {indices.dtype} with {indices.ndim} axes"
        )
    if indices.numel() and (int(indices[0]) < 0 or int(indices[-1]) >= shape.numel()):
        raise KernelError(
            f"indices must lie in 0 to {shape.numel() - 1} for a weight {tuple(shape)}, run from "
            f"{int(indices[0])} to {int(indices[-1])}"
        )
    if bool((indices[1:] <= indices[:-1]).any()):
        raise KernelError("indices must be strictly ascending: sorted, no connection twice")
    width = max(shape[1:].numel(), 1)
    edges = torch.arange(shape[0] + 1, device=indices.device) * width
    pointers = torch.searchsorted(indices, edges).to(torch.int32)
    return pointers, (indices % width).to(torch.int32)
