"""Which parameters can be sparse, and how their connections run.

A :class:`Layer` is one weight together with the layout that says which of its
entries enter one neuron and which leave one input. Everything above (masks,
initialisation, topology) meets dense parameters only through it, and truly
sparse ones through :class:`SparseWeight`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sparseflow.core.errors import MaskError
from sparseflow.core.layouts import Layout, WeightLayout, default_names, layout_of, padding_rows
from sparseflow.core.parallel import is_sharded
from sparseflow.core.parametrised import check_zeros_stay, computed, originals
from sparseflow.core.wrappers import bare

ROWS = 1 << 18
"""Entries of a dense gradient that are made at a time, at most (one row at least)."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight that can be sparse.

    Attributes:
        name: the parameter's name in ``model.named_parameters()``.
        parameter: the weight itself.
        module: the module that owns it.
        layout: ``out_in`` for (out, in / groups, *kernel), ``in_out`` for
            transposed convolutions and GPT-2's linear layers, ``lookup`` for
            embeddings. Stacked gates and projections (recurrent layers, packed
            attention) are ``out_in``: each row is a neuron of its own.
        groups: groups of a convolution, else 1.
        padding: row of an embedding that stands for padding: it has no gradient
            and no connections, and stays zero. None where there is none.

    Example:
        >>> layer = maskable(nn.Linear(4, 2))["weight"]
        >>> layer.shape, layer.fan_in(torch.ones(2, 4, dtype=torch.bool)).unique().tolist()
        (torch.Size([2, 4]), [4])
    """

    name: str
    parameter: nn.Parameter
    module: nn.Module
    layout: Layout
    groups: int = 1
    padding: int | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.parameter.shape

    @property
    def size(self) -> int:
        """Number of entries of the weight."""
        return self.parameter.numel()

    @property
    def capacity(self) -> int:
        """Number of entries that can be active: all but those of the padding row."""
        return self.size - (0 if self.padding is None else self.shape[1:].numel())

    def values(self) -> Shaped[Tensor, "*w"]:
        """The weights themselves, for whoever needs more than their shape.

        Raises:
            MaskError: if they are on the meta device.
        """
        if self.parameter.is_meta:
            raise MaskError(
                f"{self.name} is on the meta device and has no values: move the model first, "
                'model.to_empty(device="cpu")'
            )
        return self.parameter.detach()

    def without_padding(
        self, tensor: Shaped[Tensor, "*w"], fill: float | bool
    ) -> Shaped[Tensor, "*w"]:
        """A tensor of the weight's shape with something else in the padding row."""
        if self.padding is None:
            return tensor
        changed = tensor.clone()
        changed[self.padding] = fill
        return changed

    def neurons(self, tensor: Shaped[Tensor, "*w"]) -> Shaped[Tensor, "neurons inputs"]:
        """View a tensor of the weight's shape as one row per output neuron."""
        return tensor.flatten(1) if self.layout == "out_in" else self._columns(tensor)

    def inputs(self, tensor: Shaped[Tensor, "*w"]) -> Shaped[Tensor, "inputs neurons"]:
        """View a tensor of the weight's shape as one row per input channel."""
        return self._columns(tensor) if self.layout == "out_in" else tensor.flatten(1)

    def from_neurons(self, rows: Shaped[Tensor, "neurons inputs"]) -> Shaped[Tensor, "*w"]:
        """Undo :meth:`neurons`."""
        return rows.reshape(self.shape) if self.layout == "out_in" else self._uncolumns(rows)

    def fan_in(self, mask: Shaped[Tensor, "*w"]) -> Int[Tensor, "*w"]:
        """Active incoming connections of each entry's neuron, kernel positions included.

        An embedding row is looked up alone: its fan-in is 1.
        """
        if self.layout == "lookup":
            return torch.ones(self.shape, dtype=torch.long, device=mask.device)
        count = self.neurons(mask).sum(1, keepdim=True)
        return self.from_neurons(count.expand(-1, self.size // len(count)))

    def fan_out(self, mask: Shaped[Tensor, "*w"]) -> Int[Tensor, "*w"]:
        """Active outgoing connections of each entry's input, kernel positions included."""
        count = self.inputs(mask).sum(1, keepdim=True)
        spread = count.expand(-1, self.size // len(count))
        return self._uncolumns(spread) if self.layout == "out_in" else spread.reshape(self.shape)

    def _columns(self, tensor: Tensor) -> Tensor:
        rows, columns = self.shape[0] // self.groups, self.shape[1]
        grouped = tensor.reshape(self.groups, rows, columns, -1)
        return grouped.permute(0, 2, 1, 3).reshape(self.groups * columns, -1)

    def _uncolumns(self, tensor: Tensor) -> Tensor:
        rows, columns = self.shape[0] // self.groups, self.shape[1]
        grouped = tensor.reshape(self.groups, columns, rows, -1)
        return grouped.permute(0, 2, 1, 3).reshape(self.shape)


@runtime_checkable
class SparseWeight(Protocol):
    """A layer that holds the non-zeros of its weight alone.

    Layers name it among their bases: from Python 3.12 on, ``isinstance`` does
    not see the parameters of a module that merely looks like one.

    Attributes:
        values: the non-zero weights, in the order of their flat positions.
        shape: shape of the dense weight, output neurons first.
        record: None, or a list to which every backward pass appends what the
            dense weight gradient needs.
    """

    values: nn.Parameter
    shape: torch.Size
    record: list[Any] | None

    def indices(self) -> Int64[Tensor, " nnz"]:
        """Return the sorted flat positions of the values in the dense weight."""
        ...

    def set_topology(self, indices: Int64[Tensor, " k"], values: Float[Tensor, " k"]) -> None:
        """Replace positions and values; the same parameter then holds them, without gradient."""
        ...

    def weight_gradient(self, rows: slice) -> Float[Tensor, " rows *rest"]:
        """Return the dense weight gradient of these output rows, summed over ``record``."""
        ...

    def values_gradient(self) -> Float[Tensor, " nnz"]:
        """Return the gradient of the values, summed over ``record``.

        A layer that can make it without the dense gradient overrides this.
        """
        positions, (count, *_), parts = self.indices(), self.shape, []
        width = self.shape[1:].numel()
        step = max(1, ROWS // max(width, 1))
        for start in range(0, count, step):
            stop = min(start + step, count)
            inside = positions[(positions >= start * width) & (positions < stop * width)]
            dense = self.weight_gradient(slice(start, stop)).reshape(-1)
            parts.append(dense[inside - start * width])
        return torch.cat(parts) if parts else self.values.detach().new_zeros(0)


SPARSE_STATE = ("values", "row_pointers", "columns")
"""What a sparse layer's ``state_dict`` holds in place of its weight."""


def sparse_weights(model: nn.Module) -> dict[str, SparseWeight]:
    """List the truly sparse layers of a model by the name of their weight.

    The weight of a sparse layer keeps the name that it has in the dense model,
    ``<module>.weight``, so that masks of one fit the other.
    """
    return {
        f"{path}.weight".lstrip("."): module
        for path, module in bare(model).named_modules()
        if isinstance(module, SparseWeight)
    }


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """List all parameters of a model; the values of a sparse layer under its weight's name.

    Those of a compiled or an averaged model go by the names of the module inside.

    >>> list(named_weights(nn.Linear(2, 2)))
    ['weight', 'bias']
    """
    renamed = {id(layer.values): name for name, layer in sparse_weights(model).items()}
    return {renamed.get(id(p), name): p for name, p in bare(model).named_parameters()}


def replace_data(parameter: nn.Parameter, data: Shaped[Tensor, "*shape"]) -> None:
    """Give a parameter other data, of another size if need be, and no gradient.

    A graph that is still alive, as that of the last loss in a training loop
    is, keeps the node that adds up the parameter's gradient, and with it the
    old size: the next backward pass would be refused. A change of type in
    between makes autograd forget that node. Data of the same size are written
    in place instead: ``DistributedDataParallel`` has its own hook on the node.
    """
    parameter.grad = None
    if data.shape == parameter.shape:
        with torch.no_grad():
            parameter.copy_(data)
        return
    other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
    parameter.data = parameter.data.new_empty(0, dtype=other)
    parameter.data = data


def maskable(
    model: nn.Module,
    *,
    types: Collection[type[nn.Module]] | None = None,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    where: Callable[[str, nn.Module], bool] | None = None,
    dense_first: bool = False,
    dense_last: bool = False,
) -> dict[str, Layer]:
    """List the weights of a model that are to be sparse, in order of definition.

    By default every trainable Linear and Conv1d/2d/3d weight, those of subclasses
    and of transformers' ``Conv1D`` included. A tied weight is listed once, under
    its first name, and its mask holds wherever it is used; frozen ones are left
    alone. Of a parametrised weight it is the original that is listed, if zeros
    of it are zeros of the weight, as under ``spectral_norm``.

    Args:
        model: any module; of a compiled or an averaged one, the module inside.
        types: module types whose weights are taken. Transposed convolutions,
            ``nn.MultiheadAttention`` (its packed ``in_proj_weight``), recurrent
            layers and embeddings are known and taken on request; others once they
            are known through :func:`sparseflow.register_layout`.
        include: regular expressions (or one); a parameter is kept only if one matches
            its name (``re.search``). Empty means all.
        exclude: regular expressions (or one); a parameter that matches one is left out.
        where: a predicate on (parameter name, module) for anything else.
        dense_first: leave the first layer found dense.
        dense_last: leave the last layer found dense.

    Raises:
        MaskError: if nothing is left, a lazy module has no shape yet, or a weight
            is sharded already, or is computed from others in a way under which a mask
            would not hold.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> list(maskable(net)), list(maskable(net, dense_last=True))
        (['0.weight', '2.weight'], ['0.weight'])
    """
    model, passes = bare(model), _filter(include, exclude, where)
    names = {id(p): name for name, p in model.named_parameters()}
    padding = padding_rows(model)
    layers: dict[str, Layer] = {}
    for path, module, layout in _modules(model, types):
        for layer in _layers_of(module, layout, names, padding):
            trained = layer.parameter.requires_grad and not _is_empty(layer.parameter)
            if trained and passes(layer.name, module):
                layers.setdefault(layer.name, layer)
        for local in computed(module, layout.weights):
            if passes(name := f"{path}.{local}".lstrip("."), module):
                raise MaskError(
                    f"{name} is not a parameter: a forward hook computes it from others (the older "
                    "weight_norm, spectral_norm or prune). Take torch.nn.utils.parametrizations "
                    "or remove the hook, or leave it out with exclude="
                )
    chosen = list(layers.values())[1 if dense_first else 0 : -1 if dense_last else None]
    if not chosen:
        kinds = default_names() if types is None else ", ".join(t.__name__ for t in types)
        raise MaskError(
            f"{type(model).__name__} has no weight to make sparse: none of its trainable "
            f"parameters belongs to {kinds} and passes the filters"
        )
    for layer in chosen:
        _check(layer)
    return {layer.name: layer for layer in chosen}


def _filter(
    include: str | Iterable[str],
    exclude: str | Iterable[str],
    where: Callable[[str, nn.Module], bool] | None,
) -> Callable[[str, nn.Module], bool]:
    keep = [include] if isinstance(include, str) else list(include)
    drop = [exclude] if isinstance(exclude, str) else list(exclude)

    def passes(name: str, module: nn.Module) -> bool:
        if keep and not any(re.search(p, name) for p in keep):
            return False
        return not any(re.search(p, name) for p in drop) and (where is None or where(name, module))

    return passes


def _modules(
    model: nn.Module, types: Collection[type[nn.Module]] | None
) -> Iterator[tuple[str, nn.Module, WeightLayout]]:
    """Modules of these types, or of those taken by default, with what is known of them."""
    unknown = [t.__name__ for t in types or () if layout_of(t) is None]
    if unknown:
        raise MaskError(
            f"no sparse weights are known for module type {', '.join(unknown)}: make them known "
            "with sf.register_layout"
        )
    for path, module in model.named_modules():
        layout = layout_of(type(module))
        if layout and (layout.default if types is None else isinstance(module, tuple(types))):
            yield path, module, layout


def _layers_of(
    module: nn.Module, layout: WeightLayout, names: dict[int, str], padding: dict[int, int]
) -> Iterator[Layer]:
    parameters = module.named_parameters(recurse=False)
    weights = [p for local, p in parameters if re.fullmatch(layout.weights, local)]
    groups = getattr(module, "groups", 1)
    for parameter in (*weights, *originals(module, layout.weights)):
        row = padding.get(id(parameter))
        yield Layer(names[id(parameter)], parameter, module, layout.layout, groups, row)


def _is_empty(parameter: nn.Parameter) -> bool:
    return not is_lazy(parameter) and not parameter.numel()


def _check(layer: Layer) -> None:
    """Refuse a weight that has no shape or axes, is in parts, or whose zeros would not hold."""
    if is_lazy(layer.parameter):
        raise MaskError(
            f"{layer.name} is of a lazy module and has no shape yet: run the model on one batch "
            "first"
        )
    if layer.parameter.ndim < 2:
        raise MaskError(
            f"{layer.name} has shape {tuple(layer.shape)}: a weight has an axis of neurons and one "
            "of inputs"
        )
    if is_sharded(layer.parameter):
        raise MaskError(
            f"{layer.name} is sharded: make the model sparse first, then call fully_shard"
        )
    if layer.parameter.itemsize < 2 or is_traceable_wrapper_subclass(layer.parameter):
        kind = type(layer.parameter).__name__
        raise MaskError(
            f"{layer.name} is a {kind} of {layer.parameter.dtype}: low-bit weights cannot be "
            "masked; make the model sparse first, then quantise it"
        )
    check_zeros_stay(layer.name, layer.module, layer.parameter)
