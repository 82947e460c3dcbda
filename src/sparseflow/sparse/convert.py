"""From a masked dense model to a truly sparse one, and back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparseflow.core.errors import KernelError, MaskError
from sparseflow.core.wrappers import bare
from sparseflow.masks import Masks
from sparseflow.sparse.base import SparseLayer, active
from sparseflow.sparse.conv import check_numbers
from sparseflow.sparse.layers import SparseConv2d, SparseLinear, zero_padding
from sparseflow.sparse.layout import blocked_graph
from sparseflow.sparse.library import core
from sparseflow.sparse.predict import worthwhile
from sparseflow.sparse.trace import skeleton, trace

NonZeroParts = Mapping[str, tuple[Tensor, Tensor]]
"""Sorted flat positions and values of weights by name."""

_TYPES = (nn.Linear, nn.Conv2d)


class SparseModel(nn.Module):
    """A model whose activations stay blocked between sparse layers.

    It has the submodules and attributes of the model it was made from under
    their names, the sparse layers in place of the dense ones, and takes the
    inputs that the example gave.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, original: nn.Module, ranks: tuple[int | None, ...]
    ) -> None:
        """Take over the parts of ``root``; ``original`` is the dense skeleton."""
        super().__init__()
        own = set(self.__dict__)
        self.__dict__.update({k: v for k, v in root.__dict__.items() if k not in own})
        for name, parameter in root.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in root.named_buffers(recurse=False):
            self.register_buffer(name, buffer, name not in root._non_persistent_buffers_set)
        for name, child in root.named_children():
            self.add_module(name, child)
        self.training = root.training
        run = type(fx.GraphModule(root, graph, type(original).__name__)).forward
        # In a tuple, so that the skeleton is no submodule.
        self._converted = (original, run, ranks)

    @property
    def dense_skeleton(self) -> nn.Module:
        """The dense model it was made from, without its numbers."""
        return self._converted[0]

    def forward(self, *args: Any) -> Any:
        """Run the converted graph.

        Raises:
            KernelError: for an input with another number of axes than the example's.
        """
        _, run, ranks = self._converted
        for at, (given, rank) in enumerate(zip(args, ranks, strict=False)):
            if rank is not None and isinstance(given, Tensor) and given.ndim != rank:
                raise KernelError(
                    f"input {at} has {given.ndim} axes; this model was converted for {rank}: "
                    "convert it with an example like the inputs"
                )
        return run(self, *args)


def to_sparse(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    example_input: Any,
    *,
    force: bool = False,
) -> nn.Module:
    """Convert the masked layers of a model to truly sparse ones.

    Linear and 2-D convolution layers with a mask are replaced by layers that
    hold and compute with the non-zeros alone. The model is traced, and from the
    first sparse layer to the last activations stay in a blocked layout (16
    examples innermost); whatever the tracer or the layout does not know runs as
    it is, with a conversion at its border. Parameters that have no mask, and
    biases, are copied. The model given is left alone.

    Args:
        model: a dense float32 model on the CPU.
        masks: masks by parameter name; inactive weights are taken as zero.
        example_input: one input, or a tuple of positional ones; only shapes
            count. Its batch is the one that speed is predicted for.
        force: convert also layers that would be slower, as predicted for a
            training step, or for a forward pass if the model is in evaluation
            mode; else these stay dense, with a warning.

    Returns:
        A new model with the same inputs and outputs. Its sparse layers stand
        under the old names, with ``values`` in place of ``weight``.

    Raises:
        MaskError: if the masks do not fit, nothing can be converted, or every
            layer would be slower.
        SparseUnavailable: if the compiled core is missing.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> masks = sf.sparsify(net, density=0.2)
        >>> x = torch.randn(32, 64)
        >>> small = to_sparse(net, masks, x, force=True)
        >>> bool(torch.allclose(small(x), net(x), atol=1e-5))
        True
        >>> [name for name, _ in small.named_parameters()][:2]
        ['0.values', '0.bias']
    """
    core()
    model = bare(model)
    values = masks if isinstance(masks, Masks) else Masks(masks)
    values.check(model)
    named = dict(model.named_parameters())
    chosen, reasons = convertible(model, values)
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    if not force and chosen:
        chosen, losses = worthwhile(model, values, chosen, example)
        reasons |= losses
    if not chosen:
        why = "; ".join(f"{n}: {r}" for n, r in reasons.items()) or "there are no masks"
        raise MaskError(f"{type(model).__name__} has no layer to convert ({why})")
    if reasons:
        listed = "; ".join(f"{n} ({r})" for n, r in reasons.items())
        warnings.warn(f"left masked dense: {listed}", stacklevel=2)
    parts = {name: active(named[name], values[name]) for name in chosen}
    converted = assemble(model, parts, example)
    with torch.no_grad():
        for name, parameter in converted.named_parameters():
            if name in reasons:
                parameter.masked_fill_(~values[name].to(parameter.device), 0)
    return converted


def assemble(model: nn.Module, parts: NonZeroParts, example: tuple[Any, ...]) -> nn.Module:
    """Build the sparse form of a model from the connections of its layers.

    Args:
        model: the dense model; the weights named in ``parts`` may be on the
            meta device: they are not looked at.
        parts: positions and values by weight name.
        example: positional inputs, of which only shapes count.
    """
    original = skeleton(model)
    named = dict(model.named_parameters())
    memo: dict[int, Any] = {id(named[n]): nn.Parameter(torch.empty(0)) for n in parts}
    root = copy.deepcopy(model, memo)
    for name, (indices, values) in parts.items():
        path = name.rpartition(".")[0]
        root = _replaced(root, path, _sparse(root.get_submodule(path), indices, values))
    if isinstance(root, SparseLayer):
        return root
    _leave_fast_paths(root)
    traced = trace(original, example)
    if isinstance(traced, str):
        warnings.warn(
            f"{type(model).__name__}: {traced}; each sparse layer changes the layout alone, "
            "which costs most of the gain",
            stacklevel=3,
        )
        return root
    for node in traced.nodes:  # tensors made in the forward itself
        if node.op == "get_attr" and "_tensor_constant" in str(node.target):
            setattr(root, str(node.target), getattr(original, str(node.target)))
    graph, chains = blocked_graph(root, traced)
    for name, chain in chains.items():
        root.add_module(name, chain)
    ranks = tuple(e.ndim if isinstance(e, Tensor) else None for e in example)
    return SparseModel(root, graph, original, ranks)


def to_dense(model: nn.Module) -> nn.Module:
    """Convert a model with sparse layers back to the dense one it was made from.

    Inactive weights are zero. The model given is left alone.

    Raises:
        MaskError: if it has no sparse layer.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> masks = sf.sparsify(net, density=0.2)
        >>> back = to_dense(sf.to_sparse(net, masks, torch.randn(1, 64), force=True))
        >>> type(back).__name__, bool(torch.equal(back[0].weight, net[0].weight))
        ('Sequential', True)
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    if not layers:
        raise MaskError(f"{type(model).__name__} has no sparse layer")
    if not isinstance(model, SparseModel):
        root = copy.deepcopy(model)
        for path, layer in layers.items():
            root = _replaced(root, path, layer.to_dense())
        return root
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    memo: dict[int, Any] = {}
    for name, empty in (
        *model.dense_skeleton.named_parameters(),
        *model.dense_skeleton.named_buffers(),
    ):
        layer = layers.get(name.rpartition(".")[0]) if name.endswith("weight") else None
        source = state[name] if layer is None else layer.values
        filled = source.detach().clone() if layer is None else layer.dense_weight()
        memo[id(empty)] = (
            nn.Parameter(filled, source.requires_grad)
            if isinstance(empty, nn.Parameter)
            else filled
        )
    dense = copy.deepcopy(model.dense_skeleton, memo)
    flags = {name: module.training for name, module in model.named_modules()}
    for name, module in dense.named_modules():
        module.training = flags.get(name, model.training)
    return dense


def convertible(model: nn.Module, masks: Masks) -> tuple[list[str], dict[str, str]]:
    """Names of the masked weights that have a sparse form, and why the others have none."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    chosen, reasons = [], {}
    named = dict(model.named_parameters())
    for name in masks:
        path, _, local = name.rpartition(".")
        module = model.get_submodule(path)
        reason = _obstacle(module, local, named[name], owners[id(named[name])])
        if reason:
            reasons[name] = reason
        else:
            chosen.append(name)
    return chosen, reasons


def _obstacle(module: nn.Module, local: str, weight: Tensor, owners: list[str]) -> str:
    """Why a weight has no sparse form; empty if it has one."""
    if type(module) not in _TYPES or local != "weight":
        return f"{type(module).__name__} has no sparse form"
    if len(owners) > 1:
        return f"shared by {' and '.join(owners)}"
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return f"{weight.dtype} on {weight.device}, not float32 on the CPU"
    if isinstance(module, nn.Conv2d):
        try:
            zero_padding(module)
            check_numbers(
                tuple(weight.shape), module.stride, (0, 0), module.dilation, module.groups
            )
        except KernelError as error:
            return str(error)
    return ""


def _sparse(module: nn.Module, indices: Tensor, values: Tensor) -> SparseLayer:
    """The sparse form of a dense layer, whose weight is not looked at."""
    assert isinstance(module, nn.Linear | nn.Conv2d)
    if isinstance(module, nn.Linear):
        layer = SparseLinear.of(module, indices, values)
    else:
        layer = SparseConv2d.of(module, indices, values)
    layer.values.requires_grad_(module.weight.requires_grad)
    if layer.bias is not None and module.bias is not None:
        layer.bias.requires_grad_(module.bias.requires_grad)
    return layer.train(module.training)


def _leave_fast_paths(root: nn.Module) -> None:
    """Keep torch's transformer layers from their inference kernels, which read dense weights.

    Their attributes say whether such a kernel knows the activation and the padding; the
    kernels compute the same as the layers themselves.
    """
    for module in root.modules():
        if not any(isinstance(part, SparseLayer) for part in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


def _replaced(root: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put a module in another's place; return the root."""
    if not path:
        return module
    root.set_submodule(path, module)
    return root
