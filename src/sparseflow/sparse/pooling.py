"""Pooling of torch, by module or function, as it is done on blocked images."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.utils import _pair

from sparseflow.sparse import blocked as on
from sparseflow.sparse.chain import Pool
from sparseflow.sparse.kernels import LARGEST_POOL


def _max(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    kernel, steps, pads, apart = (
        _pair(kernel_size),
        _pair(stride or kernel_size),
        _pair(padding),
        _pair(dilation),
    )
    if return_indices:
        return None
    if ceil_mode or apart != (1, 1) or max(kernel) > LARGEST_POOL:
        return on.max_pool_any, (kernel, steps, pads, apart, ceil_mode)
    return Pool(kernel, steps, pads)


def _average(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    kernel, steps, pads = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    return on.avg_pool, (kernel, steps, pads, ceil_mode, count_include_pad, divisor_override)


def _adaptive(output_size: Any) -> Any:
    size = _pair(output_size)
    return None if None in size else (on.adaptive_avg_pool, size)


_POOLS: dict[Any, Callable[..., Any]] = {
    nn.MaxPool2d: _max,
    functional.max_pool2d: _max,
    torch.max_pool2d: _max,
    nn.AvgPool2d: _average,
    functional.avg_pool2d: _average,
    nn.AdaptiveAvgPool2d: _adaptive,
    functional.adaptive_avg_pool2d: _adaptive,
}


def pooling_of(node: fx.Node, module: nn.Module | None) -> Any:
    """A :class:`Pool`, a function with its arguments, or None for what is not known."""
    if module is not None:
        maker = _POOLS.get(type(module))
        if maker is None:
            return None
        return maker(
            **{name: getattr(module, name) for name in inspect.signature(maker).parameters}
        )
    maker = _POOLS.get(node.target)
    return None if maker is None else maker(*node.args[1:], **node.kwargs)
