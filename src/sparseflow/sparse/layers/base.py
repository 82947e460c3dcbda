"""What sparse layers share: non-zero values, their topology, and what each type declares."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparseflow.core.errors import KernelError
from sparseflow.core.hooks import carry_over
from sparseflow.core.operations import arguments_of
from sparseflow.core.parameters import SPARSE_STATE, SparseWeight, replace_data
from sparseflow.sparse.kernels.pattern import Pattern
from sparseflow.sparse.layers.absent import AbsentWeight
from sparseflow.sparse.layers.chain import BLOCK, UNBLOCK, Apply, Record, run
from sparseflow.sparse.layers.copies import Copied, checksum_of
from sparseflow.sparse.layers.positions import active, no_connections, rows_and_columns

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
            :meth:`weight_gradient` needs. Copies of the layer record nothing.
        copied: None, or what is known of the values of a copy that was not trained.
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
        self.copied: Copied | None = None
        self._copies: weakref.WeakSet[SparseLayer] = weakref.WeakSet()
        pointers, columns = rows_and_columns(indices, self.shape)
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
        carry_over(self, type(self).of(layer, *no_connections()), layer)
        return layer.train(self.training)

    @property
    def weight(self) -> AbsentWeight:
        """Shape, dtype and device of the dense weight, which there is not."""
        return AbsentWeight(self.shape, self.values)

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
        self._check_buffers()
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
            KernelError: if they are not valid, or values of other positions are being
                mixed into a copy; the layer is then as before.
        """
        self.check_copies()
        pointers, columns = rows_and_columns(indices, self.shape)
        self.pattern = self._checked(values, pointers, columns)
        self.row_pointers, self.columns = pointers, columns
        replace_data(self.values, values.detach().to(self.values).contiguous())
        self._moved()

    @torch.no_grad()
    def dense_weight(self) -> Float[Tensor, " out *rest"]:
        """The weight as a dense tensor, zero off the topology."""
        self.check_values()
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

    def check_values(self) -> None:
        """Refuse a copy whose values belong to different positions.

        Raises:
            KernelError: saying how to average.
        """
        if self.copied is not None:
            self.copied.check(repr(self), self.values)

    def check_copies(self) -> None:
        """Refuse a copy of this layer whose values belong to different positions.

        Raises:
            KernelError: saying how to average.
        """
        for twin in self._copies:
            twin.check_values()

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
        self._moved()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save what belongs together."""
        self.check_values()
        self._check_buffers()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLayer:
        """Move or cast; a copy remembers its values in their new type."""
        self.check_values()
        super()._apply(fn, recurse)
        if self.copied is not None:
            self.copied.checksum = checksum_of(self.values)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this very layer."""
        state = self.__dict__ | {"record": None, "copied": None}
        del state["_copies"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without copies."""
        super().__setstate__(state)
        self._copies = weakref.WeakSet()

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLayer:
        """Copy the layer, and note that it is one."""
        self.check_values()
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        twin.copied = Copied(checksum_of(twin.values))
        self._copies.add(twin)
        return twin

    def _moved(self) -> None:
        """Note that values and connections are those of one layer, and tell the copies."""
        if self.copied is not None:
            self.copied = Copied(checksum_of(self.values))
        for twin in self._copies:
            if twin.copied is not None:
                behind = not (
                    torch.equal(twin.pattern.row_pointers, self.pattern.row_pointers)
                    and torch.equal(twin.pattern.columns, self.pattern.columns)
                )
                twin.copied.moved(twin.values, behind)

    def _check_buffers(self) -> None:
        """Refuse a topology that was written into: only the pattern's copy of it was checked.

        Raises:
            KernelError: if the buffers differ from the pattern.
        """
        pairs = (
            (self.row_pointers, self.pattern.row_pointers),
            (self.columns, self.pattern.columns),
        )
        if not all(torch.equal(buffer.cpu(), checked) for buffer, checked in pairs):
            raise KernelError(
                f"{self!r}: row_pointers and columns were written into, as an average over buffers "
                "does: use set_topology or load_state_dict, and AveragedModel with "
                "use_buffers=False or on sf.to_dense(model)"
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
