"""Floating-point operations of a network, dense and sparse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from sparseflow.core.errors import MeasureError
from sparseflow.core.functional import arguments
from sparseflow.masks import Masks
from sparseflow.measure.states import dense_form


@dataclass(frozen=True)
class Flops:
    """Operations of one pass over the example: a multiplication and an addition are two.

    Matrix products, convolutions and attention are counted, nothing else:
    biases, norms, activations and pooling are not.

    Attributes:
        forward: of a forward pass with zeros left out.
        step: of a forward and a backward pass.
        dense_forward: of a forward pass with zeros multiplied too.
        dense_step: of a forward and a backward pass likewise.
        per_layer: ``forward`` of each module with weights of its own, by name.
    """

    forward: float
    step: float
    dense_forward: int
    dense_step: int
    per_layer: dict[str, float]


def flops(model: nn.Module, example: Any, masks: Mapping[str, Tensor] | None = None) -> Flops:
    """Count the operations of a network on an example, with PyTorch's own counter.

    What a module computes counts by the density of its masked weights, in the
    backward pass too, whose products have the same zeros (Evci et al. 2020,
    appendix H, without the dense gradient of the steps that update). Nothing is
    computed: shapes are enough.

    Args:
        model: any module, counted in the mode it is in; a truly sparse one as the
            masked dense model that it stands for.
        example: its input, a tuple of inputs or a mapping of named ones; for how
            many examples, its first axis says.
        masks: masks of (some) parameters; the others count whole.

    Raises:
        MaskError: if the masks do not fit the model.
        MeasureError: if a masked weight belongs to a module that has others
            inside or is never called by itself.

    Example:
        >>> net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
        >>> count = flops(net, torch.ones(1, 100))
        >>> count.dense_forward == 2 * (100 * 50 + 50 * 10)
        True
    """
    model, values = dense_form(model, masks)
    owners = _owners(model, values)
    densities = _densities(owners, values)
    args, kwargs = arguments(example)
    calls: list[_Call] = []
    with _watched(model, calls):
        dense_forward = _count(model, args, kwargs, backward=False)
    forward_calls, called = list(calls), {call.name for call in calls}
    if missing := sorted({paths[0] for paths in owners.values() if called.isdisjoint(paths)}):
        raise MeasureError(
            f"the masked {', '.join(missing)} are never called by themselves, as the projections "
            "of attention are not: their operations cannot be told apart; leave these masks out"
        )
    with _watched(model, calls):
        dense_step = _count(model, args, kwargs, backward=True)
    counts: dict[str, int] = {}
    for call in forward_calls:
        count = _count(call.module, call.args, call.kwargs, backward=False)
        counts[call.name] = counts.get(call.name, 0) + count
    saved = sum(
        (1 - densities[call.name]) * _count(call.module, call.args, call.kwargs, backward=True)
        for call in calls[len(forward_calls) :]
        if call.name in densities
    )
    per_layer = {name: count * densities.get(name, 1.0) for name, count in counts.items() if count}
    return Flops(
        forward=float(dense_forward - sum(counts.values()) + sum(per_layer.values())),
        step=float(dense_step - saved),
        dense_forward=dense_forward,
        dense_step=dense_step,
        per_layer=per_layer,
    )


class _Call(NamedTuple):
    """One call of a module that has parameters of its own."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextmanager
def _watched(model: nn.Module, calls: list[_Call]) -> Iterator[None]:
    """Note the calls of all modules with parameters of their own and none inside."""

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(_Call(name, module, *_shells((args, kwargs))))

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and not _inside(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _inside(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _owners(model: nn.Module, masks: Masks) -> dict[str, list[str]]:
    """Paths of the modules that hold each masked weight: several where it is tied."""
    named = dict(model.named_parameters())
    owners: dict[str, list[str]] = {name: [] for name in masks}
    for path, module in model.named_modules():
        held = {id(p) for p in module.parameters(recurse=False)}
        for name in (n for n in masks if id(named[n]) in held):
            if _inside(module):
                raise MeasureError(
                    f"{name} belongs to a module with others inside, which are not told apart"
                )
            owners[name].append(path)
    return owners


def _densities(owners: Mapping[str, list[str]], masks: Masks) -> dict[str, float]:
    """Share of active entries among the masked weights of each module."""
    sizes: dict[str, list[int]] = {}
    for name, paths in owners.items():
        entry = masks.entry(name)
        for path in paths:
            size = sizes.setdefault(path, [0, 0])
            size[0] += entry.count
            size[1] += entry.shape.numel()
    return {path: active / size for path, (active, size) in sizes.items()}


def _count(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, backward: bool
) -> int:
    """Count the operations of one call, on tensors without content.

    Each module is counted by itself: the counter's own attribution to modules
    is right forwards, but not backwards through shortcuts.
    """
    state = {n: _shell(p, p.requires_grad) for n, p in module.named_parameters()}
    state |= {n: _shell(b, False) for n, b in module.named_buffers()}
    args, kwargs = _shells((args, kwargs))
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(backward):
        output = functional_call(module, state, args, kwargs)
        if backward:
            leaves = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]
            torch.autograd.backward([t.sum() for t in leaves if t.requires_grad])
    return counter.get_total_flops()


def _shells(tree: Any) -> Any:
    """The same tree with tensors without content; they want gradients as the originals do."""
    return pytree.tree_map(
        lambda t: _shell(t, t.requires_grad) if isinstance(t, Tensor) else t, tree
    )


def _shell(tensor: Tensor, grad: bool) -> Tensor:
    return torch.empty_like(tensor, device="meta", requires_grad=grad)
