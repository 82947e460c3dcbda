"""The converted model, and the way from it to a dense one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from sparseflow.core.errors import KernelError, MaskError
from sparseflow.core.hooks import any_hooks, carry_hooks
from sparseflow.core.wrappers import copy_of
from sparseflow.sparse.convert.rewrite import Chain
from sparseflow.sparse.layers import SparseLayer


class SparseModel(nn.Module):
    """A model whose activations stay blocked between sparse layers.

    It has the submodules and attributes of the model it was made from under
    their names, the sparse layers in place of the dense ones, and takes the
    inputs that the example gave. While a submodule has hooks, which the joined
    layers would pass by, the model's own forward runs in place of the converted one.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, original: nn.Module, ranks: tuple[int | None, ...]
    ) -> None:
        """Take over the parts of ``root``; ``original`` is the dense skeleton."""
        super().__init__()
        self.__dict__.update(root.__dict__)
        # In a tuple: as an attribute, the skeleton would become a submodule.
        self._converted = (original, ranks, graph, _compiled(self, graph, original))

    @property
    def dense_skeleton(self) -> nn.Module:
        """The dense model it was made from, without its numbers."""
        return self._converted[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the converted graph; inputs may be given by name.

        Raises:
            KernelError: for an input with another number of axes than the example's.
        """
        original, ranks, _, run = self._converted
        if kwargs:
            args = _in_order(original, len(ranks), args, kwargs)
        for at, (given, rank) in enumerate(zip(args, ranks, strict=False)):
            if rank is not None and isinstance(given, Tensor) and given.ndim != rank:
                raise KernelError(
                    f"input {at} has {given.ndim} axes; this model was converted for {rank}: "
                    "convert it with an example like the inputs"
                )
        if any_hooks(m for m in self.modules() if m is not self):
            return type(original).forward(self._as_original(), *args)
        return run(self, *args)

    def _as_original(self) -> nn.Module:
        """This model as one of the class it was made from; they share all their parts."""
        parts = {k: m for k, m in self._modules.items() if not isinstance(m, Chain)}
        model = object.__new__(type(self.dense_skeleton))
        model.__dict__.update(self.__dict__, _modules=parts)
        return model

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the compiled graph, which cannot be pickled."""
        return self.__dict__ | {"_converted": self._converted[:3]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compile the graph."""
        super().__setstate__(state)
        original, ranks, graph = state["_converted"]
        self._converted = (original, ranks, graph, _compiled(self, graph, original))


def _in_order(
    original: nn.Module, count: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """The inputs of the graph, of which there are ``count``, by position.

    Raises:
        KernelError: naming the inputs that the example left out.
    """
    bound = inspect.signature(original.forward).bind(*args, **kwargs)
    names = list(bound.signature.parameters)[:count]
    if extra := [name for name in bound.arguments if name not in names]:
        raise KernelError(
            f"{', '.join(extra)} was left out of the example that this model was converted with: "
            "convert it with an example of all inputs"
        )
    bound.apply_defaults()
    return tuple(bound.arguments[name] for name in names)


def _compiled(model: nn.Module, graph: fx.Graph, original: nn.Module) -> Callable[..., Any]:
    """The forward function of a graph; its first argument is the model."""
    run = type(fx.GraphModule(model, graph, type(original).__name__)).forward
    graph.owning_module = None  # else it would be copied and pickled with the graph
    return run


def to_dense(model: nn.Module) -> nn.Module:
    """Convert a model with sparse layers back to the dense one it was made from.

    Inactive weights are zero. The model given is left alone.

    Raises:
        MaskError: if it has no sparse layer.

    Example:
        >>> import torch, sparseflow as sf
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> masks = sf.sparsify(net, density=0.2)
        >>> back = to_dense(sf.to_sparse(net, masks, torch.randn(1, 64), force=True))
        >>> type(back).__name__, bool(torch.equal(back[0].weight, net[0].weight))
        ('Sequential', True)
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    if not layers:
        raise MaskError(f"{type(model).__name__} has no sparse layer")
    if isinstance(model, SparseModel):
        return _refilled(model, layers)
    root = copy_of(model, {})
    for path, layer in layers.items():
        root = replaced(root, path, layer.to_dense())
    return root


def _refilled(model: SparseModel, layers: dict[str, SparseLayer]) -> nn.Module:
    """Copy the skeleton of a converted model with the numbers that this one has."""
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    skeleton = model.dense_skeleton
    memo: dict[int, Any] = {}
    for name, empty in (*skeleton.named_parameters(), *skeleton.named_buffers()):
        layer = layers.get(name.rpartition(".")[0]) if name.endswith("weight") else None
        source = state[name] if layer is None else layer.values
        filled = source.detach().clone() if layer is None else layer.dense_weight()
        if isinstance(empty, nn.Parameter):
            filled = nn.Parameter(filled, source.requires_grad)
        memo[id(empty)] = filled
    dense = copy.deepcopy(skeleton, memo)
    modules = dict(model.named_modules())
    for name, module in dense.named_modules():
        source = modules.get(name, model)
        module.training = source.training
        carry_hooks(source, module)
    return dense


def replaced(root: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put a module in another's place; return the root, which is that module itself at ``""``."""
    if not path:
        return module
    root.set_submodule(path, module)
    return root
