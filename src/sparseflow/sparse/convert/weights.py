"""Weights that a model uses by themselves, and not through the layers that they belong to."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sparseflow.core.hooks import clear_hooks
from sparseflow.sparse.layers.registry import SPARSE_FORMS


class _Watch(TorchDispatchMode):
    """Notes the operations on weights while none of their layers runs."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.used: dict[str, str] = {}
        self.running: set[str] = set()
        # By storage, so that views and what ``.data`` gives are seen too.
        self._names = {_storage(m.get_parameter("weight")): n for n, m in layers.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in pytree.tree_leaves((args, kwargs)):
            name = self._names.get(_storage(leaf)) if isinstance(leaf, Tensor) else None
            if name is not None and name not in self.running:
                self.used.setdefault(name, str(func.overloadpacket).removeprefix("aten."))
        return func(*args, **(kwargs or {}))


def used_alone(skeleton: nn.Module, example: tuple[Any, ...]) -> dict[str, str]:
    """Run a model without numbers, and note which weights are used outside of their layers.

    Args:
        skeleton: a model on the meta device, whose attributes may change.
        example: inputs on the meta device.

    Returns:
        The first such operation by the name of the weight; what is known up to where
        the model cannot run without numbers.
    """
    clear_hooks(skeleton)
    layers = {
        f"{path}.weight".lstrip("."): module
        for path, module in skeleton.named_modules()
        if type(module) in SPARSE_FORMS and "weight" in module._parameters
    }
    watch = _Watch(layers)
    for name, module in layers.items():
        module.register_forward_pre_hook(lambda *_, name=name: watch.running.add(name))
        module.register_forward_hook(lambda *_, name=name: watch.running.discard(name))
    with suppress(Exception), watch:  # a model may raise anything without numbers
        skeleton.eval()(*example)
    return watch.used


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
