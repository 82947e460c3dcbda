"""What sparse layers share: non-zero values, their topology, and how both are replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseflow.core.errors import KernelError, MaskError
from sparseflow.core.parameters import SPARSE_STATE, SparseWeight, replace_data
from sparseflow.sparse.chain import BLOCK, UNBLOCK, Apply, Record, run

_ALONE = (BLOCK, Apply(), UNBLOCK)

Dense = TypeVar("Dense", nn.Linear, nn.Conv2d)


class SparseLayer(nn.Module, SparseWeight):
    """What sparse layers share: values, topology, and how both are replaced.

    Attributes:
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
        self._pattern: Any = self._checked(values, pointers, columns)
        self.register_buffer("row_pointers", pointers)
        self.register_buffer("columns", columns)
        self.values = nn.Parameter(values.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

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
        self._pattern = self._checked(values, pointers, columns)
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
        for x, gradient in self.record:
            self._add_weight_gradient(total, x, gradient, start, stop)
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
        """Take over another number of non-zeros, after checking all that is given."""
        found = [state_dict[prefix + name] for name in SPARSE_STATE if prefix + name in state_dict]
        if found:
            try:
                self._take(found, state_dict.get(prefix + "bias"))
            except KernelError as error:
                error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _take(self, found: list[Any], bias: Any) -> None:
        """Make room for what a state dict holds of values and topology."""
        if len(found) < 3 or not all(isinstance(each, Tensor) for each in found):
            raise KernelError("values, row_pointers and columns can only be loaded together")
        if isinstance(bias, Tensor) and (self.bias is None or bias.shape != self.bias.shape):
            own = None if self.bias is None else tuple(self.bias.shape)
            raise KernelError(f"a bias of shape {tuple(bias.shape)} does not fit {own}")
        values, pointers, columns = found
        if pointers.is_floating_point() or columns.is_floating_point():
            raise KernelError("row_pointers and columns must be whole numbers")
        self._pattern = self._checked(values, pointers.int(), columns.int())
        self.row_pointers, self.columns = pointers.int().clone(), columns.int().clone()
        if values.shape != self.values.shape:
            replace_data(self.values, self.values.data.new_empty(values.shape))

    def _checked(self, values: Tensor, row_pointers: Tensor, columns: Tensor) -> Any:
        """The pattern of a topology, which shares no memory with what anyone may write into."""
        _same_length(values, columns)
        if len(row_pointers) != self.shape[0] + 1:
            raise KernelError(
                f"{len(row_pointers)} row pointers for {self.shape[0]} outputs; it takes one more"
            )
        return self._make_pattern(
            row_pointers.detach().to("cpu", copy=True).contiguous(),
            columns.detach().to("cpu", copy=True).contiguous(),
        )

    def to_dense(self) -> nn.Module:
        """The same layer, dense."""
        raise NotImplementedError

    # What a chain calls, on blocked tensors.

    def blocked(self, values: Tensor, bias: Tensor | None, x: Tensor, *, relu: bool) -> Tensor:
        """Output of the layer for blocked inputs."""
        raise NotImplementedError

    def one_example(
        self, values: Tensor, bias: Tensor | None, x: Tensor, *, relu: bool
    ) -> Tensor | None:
        """Output for the plain features of one example; None if there is no kernel for it."""
        return None

    def blocked_input_gradient(self, values: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
        """Gradient by the blocked inputs ``x``."""
        raise NotImplementedError

    def blocked_weight_gradient(
        self, x: Tensor, gradient: Tensor, *, bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Gradient by values and, if asked, by the bias."""
        raise NotImplementedError

    def _make_pattern(self, row_pointers: Tensor, columns: Tensor) -> Any:
        raise NotImplementedError

    def _add_weight_gradient(
        self, total: Tensor, x: Tensor, gradient: Tensor, start: int, stop: int
    ) -> None:
        raise NotImplementedError


def active(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted flat positions and values of a dense weight's active entries.

    Raises:
        MaskError: if the mask has another shape than the weight.
    """
    if mask.shape != weight.shape:
        raise MaskError(
            f"a mask of {tuple(mask.shape)} does not fit a weight {tuple(weight.shape)}"
        )
    indices = mask.reshape(-1).nonzero().squeeze(1)
    return indices, weight.detach().reshape(-1)[indices]


def filled(layer: Dense, source: SparseLayer) -> Dense:
    """Give a dense layer made on the meta device the weights of a sparse one."""
    layer.weight = nn.Parameter(source.dense_weight(), source.values.requires_grad)
    if source.bias is not None:
        layer.bias = nn.Parameter(source.bias.detach().clone(), source.bias.requires_grad)
    return layer.train(source.training)


def _rows(indices: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Row pointers and columns (int32) of sorted flat positions."""
    if indices.ndim != 1 or indices.dtype != torch.long:
        raise KernelError(
            f"indices are {indices.dtype} of {indices.ndim} axes, not a vector of int64"
        )
    if indices.numel() and (int(indices[0]) < 0 or int(indices[-1]) >= shape.numel()):
        raise KernelError(
            f"indices reach {int(indices[-1])}; a weight {tuple(shape)} has no such place"
        )
    if bool((indices[1:] <= indices[:-1]).any()):
        raise KernelError("indices are not sorted, or name a connection twice")
    width = max(shape[1:].numel(), 1)
    edges = torch.arange(shape[0] + 1, device=indices.device) * width
    pointers = torch.searchsorted(indices, edges).to(torch.int32)
    return pointers, (indices % width).to(torch.int32)


def _same_length(values: Tensor, columns: Tensor) -> None:
    if values.shape != columns.shape:
        raise KernelError(f"{tuple(values.shape)} values for {tuple(columns.shape)} connections")
