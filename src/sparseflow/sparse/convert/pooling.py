"""How the pooling of torch, by module or function, is done on blocked images.

A maker takes the arguments of torch. It gives a stage of a chain, or a function of
torch on the blocked images with its arguments, where the 16 lanes of the batch are one
more axis that is not pooled; or None for what needs the plain layout.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.utils import _pair

from sparseflow.core.operations import operation
from sparseflow.sparse.kernels.blocked import LANES
from sparseflow.sparse.kernels.pool import LARGEST_POOL
from sparseflow.sparse.layers.chain import Pool

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function, and its arguments after the blocked images."""


def _max(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Pool | Call | None:
    kernel, strides, pads = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    apart = _pair(dilation)
    if return_indices:
        return None
    if ceil_mode or apart != (1, 1) or max(kernel) > LARGEST_POOL:
        sizes = ((*kernel, 1), (*strides, 1), (*pads, 0), (*apart, 1))
        return functional.max_pool3d, (*sizes, ceil_mode)
    return Pool(kernel, strides, pads)


def _average(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Call:
    kernel, strides, pads = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    sizes = ((*kernel, 1), (*strides, 1), (*pads, 0))
    return functional.avg_pool3d, (*sizes, ceil_mode, count_include_pad, divisor_override)


def _adaptive(output_size: Any) -> Call | None:
    size = _pair(output_size)
    if size == (1, 1):
        return torch.mean, ((2, 3), True)
    return None if None in size else (functional.adaptive_avg_pool3d, ((*size, LANES),))


_MAKERS: dict[str, Callable[..., Pool | Call | None]] = {
    "max_pool2d": _max,
    "avg_pool2d": _average,
    "adaptive_avg_pool2d": _adaptive,
}


def pooling_of(node: fx.Node, module: nn.Module | None) -> Pool | Call | None:
    """Return what a node of a traced model becomes if it pools, else None."""
    maker = _MAKERS.get(operation(node, module).name)
    if maker is None:
        return None
    if module is None:
        return maker(*node.args[1:], **node.kwargs)
    return maker(**{name: getattr(module, name) for name in inspect.signature(maker).parameters})
