"""Hooks of modules: whether there are any, and how one module takes over those of another."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules import module as torch_module

_CALL = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks"),
)
_STATE = (
    *("_state_dict_pre_hooks", "_state_dict_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module runs hooks in addition to its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def any_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether calling any of these modules runs hooks, those for all modules included."""
    return bool(torch_module._has_any_global_hook()) or any(map(has_hooks, modules))


def has_state_hooks(module: nn.Module) -> bool:
    """Whether saving or loading the state of a module runs hooks, and copies of it would."""
    hooks = (hook for name in _STATE for hook in getattr(module, name).values())
    return not all(getattr(hook, "stays_behind", False) for hook in hooks)


def clear_hooks(model: nn.Module) -> None:
    """Remove the hooks of all modules of a model."""
    for module in model.modules():
        for name in _CALL:
            getattr(module, name).clear()


def carry_hooks(source: nn.Module, target: nn.Module) -> None:
    """Let the calls of one module run the hooks that those of another run."""
    for name in _CALL:
        setattr(target, name, getattr(source, name).copy())
    target._is_full_backward_hook = source._is_full_backward_hook


def carry_over(source: nn.Module, fresh: nn.Module, target: nn.Module) -> None:
    """Let a module that replaces another have its hooks, and the attributes that users gave it.

    Args:
        source: the module that is replaced.
        fresh: one of its type that nobody has touched: what it has is not carried over.
        target: the module that takes its place.
    """
    carry_hooks(source, target)
    for name in vars(source).keys() - vars(fresh).keys():
        setattr(target, name, vars(source)[name])
