"""A dense model on its way to a sparse one: what can be converted, its one trace, the result."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparseflow.core.errors import KernelError, MaskError
from sparseflow.core.hooks import carry_over, has_state_hooks
from sparseflow.core.operations import arguments_of
from sparseflow.core.wrappers import bare, copy_of
from sparseflow.masks import Masks
from sparseflow.sparse.convert.model import SparseModel, replaced
from sparseflow.sparse.convert.rewrite import blocked_graph
from sparseflow.sparse.convert.trace import Trace, trace
from sparseflow.sparse.kernels.library import core
from sparseflow.sparse.layers import SparseLayer
from sparseflow.sparse.layers.positions import active, no_connections
from sparseflow.sparse.layers.registry import SPARSE_FORMS, has_sparse_layer

NonZeroParts = Mapping[str, tuple[Tensor, Tensor]]
"""Sorted flat positions and values of weights by name."""


class Conversion:
    """A dense model, its masks and example inputs: what planning and conversion share.

    Attributes:
        model: the dense model; the weights may have no memory of their own as long
            as their parts are given to :meth:`build`.
        masks: its masks.
        example: positional inputs, of which only shapes count.
        names: masked weights that have a sparse form.
        obstacles: why the other masked weights have none, by name.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], example_input: Any) -> None:
        """Find out what can be converted.

        Args:
            model: a dense model.
            masks: masks by parameter name.
            example_input: one input, or a tuple of positional ones.

        Raises:
            MaskError: if the masks do not match the model, or the inputs are a DataLoader.
            SparseUnavailable: if the compiled core is missing.
        """
        core()
        self.model = bare(model)
        self.masks = masks if isinstance(masks, Masks) else Masks(masks)
        self.masks.check(self.model)
        if isinstance(example_input, DataLoader):
            raise MaskError("example_input is a DataLoader: pass the inputs of one batch")
        self.example = example_input if isinstance(example_input, tuple) else (example_input,)
        reasons = _reasons(self.model, self.masks)
        if type(self.model) not in SPARSE_FORMS and not all(reasons.values()):
            reasons |= {
                name: f"its weight is used by itself ({by})"
                for name, by in self.trace.used_alone.items()
                if not reasons.get(name, "not masked")
            }
        self.names = [name for name, reason in reasons.items() if not reason]
        self.obstacles = {name: reason for name, reason in reasons.items() if reason}

    @cached_property
    def trace(self) -> Trace:
        """The model's trace, made on first use."""
        return trace(self.model, self.example)

    def layer(self, name: str) -> nn.Module:
        """Return the layer that a weight belongs to."""
        return self.model.get_submodule(name.rpartition(".")[0])

    def parts(self, names: Iterable[str]) -> NonZeroParts:
        """Return the active connections of these weights."""
        named = dict(self.model.named_parameters())
        return {name: active(named[name], self.masks[name]) for name in names}

    def build(self, parts: NonZeroParts) -> nn.Module:
        """Build the sparse form of the model, with these weights sparse.

        Warns where the model cannot be traced, so that each sparse layer changes the
        layout by itself.
        """
        named = dict(self.model.named_parameters())
        # Dense weights that nobody is going to read are not copied.
        memo: dict[int, Any] = {
            id(named[n]): nn.Parameter(torch.empty(0), named[n].requires_grad) for n in parts
        }
        root = copy_of(self.model, memo)
        for name, (indices, values) in parts.items():
            path = name.rpartition(".")[0]
            root = replaced(root, path, _sparse(root.get_submodule(path), indices, values))
        if isinstance(root, SparseLayer):
            return root
        _leave_fast_paths(root)
        if self.trace.graph is None:
            warnings.warn(
                f"{type(self.model).__name__}: {self.trace.problem}; each sparse layer changes "
                "the layout alone, which costs most of the gain",
                stacklevel=3,
            )
            return root
        return _rewritten(root, self.trace)


def _rewritten(root: nn.Module, traced: Trace) -> SparseModel:
    """The model that keeps activations blocked, from its parts and its traced graph."""
    assert traced.graph is not None
    for node in traced.graph.nodes:  # tensors made in the forward itself
        if node.op == "get_attr" and "_tensor_constant" in str(node.target):
            setattr(root, str(node.target), getattr(traced.skeleton, str(node.target)))
    graph, chains = blocked_graph(root, traced.graph)
    for node in graph.nodes:
        node.meta = {}  # shapes served the rewriting; some of their parts cannot be pickled
    for name, chain in chains.items():
        root.add_module(name, chain)
    ranks = tuple(e.ndim if isinstance(e, Tensor) else None for e in traced.example)
    return SparseModel(root, graph, traced.skeleton, ranks)


def _reasons(model: nn.Module, masks: Masks) -> dict[str, str]:
    """Why each masked weight has no sparse form; empty for those that have one."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    return {name: _obstacle(model, name, owners) for name in masks}


def _obstacle(model: nn.Module, name: str, owners: dict[int, list[str]]) -> str:
    path, _, local = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, SparseLayer):
        return "sparse already"
    form = SPARSE_FORMS.get(type(module))
    if form is None or local != "weight":
        return f"{type(module).__name__} has no sparse form"
    weight = module.get_parameter(local)
    if len(owners[id(weight)]) > 1:
        return f"shared by {' and '.join(owners[id(weight)])}"
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return f"{weight.dtype} on {weight.device}, not float32 on the CPU"
    own = _own_parts(module)
    try:  # the layer itself knows best: make one without connections
        form.of(module, *no_connections())
    except KernelError as error:
        return str(error)
    return f"it has {own} of its own, which would be lost" if own else ""


def _own_parts(module: nn.Module) -> str:
    """Name what a user has put into a layer that its sparse form cannot take over."""
    parts = {**module._parameters, **module._buffers, **module._modules}
    if extra := [name for name in parts if name not in ("weight", "bias")]:
        return ", ".join(extra)
    if "forward" in vars(module):
        return "a forward"
    return "hooks on its state" if has_state_hooks(module) else ""


def _sparse(module: nn.Module, indices: Tensor, values: Tensor) -> SparseLayer:
    """The sparse form of a dense layer, whose weight is not looked at."""
    form = SPARSE_FORMS[type(module)]
    layer = form.of(module, indices, values)
    carry_over(module, type(module)(**arguments_of(module, form.arguments), device="meta"), layer)
    layer.values.requires_grad_(module.get_parameter("weight").requires_grad)
    if layer.bias is not None:
        layer.bias.requires_grad_(module.get_parameter("bias").requires_grad)
    return layer.train(module.training)


def _leave_fast_paths(root: nn.Module) -> None:
    """Keep torch's transformer layers from their inference kernels, which read dense weights.

    These attributes say whether such a kernel supports the activation and the padding;
    the layers themselves compute the same without it.
    """
    for module in root.modules():
        if isinstance(module, nn.TransformerEncoder) and has_sparse_layer(module):
            module.use_nested_tensor = False
        if isinstance(module, nn.TransformerEncoderLayer) and has_sparse_layer(module):
            module.activation_relu_or_gelu = 0
