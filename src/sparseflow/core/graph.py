"""What each node of a traced model does to hidden units, in a few words.

``linear``, ``conv`` and ``norm`` have weights of their own; ``keep`` acts on
every entry alone, ``pool`` on positions alone; ``flatten`` joins all dimensions
from the first on; ``merge`` combines tensors entry by entry; ``number`` gives a
size. Everything else is ``unknown``.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

SUPPORTED = (
    "supported are Linear and ungrouped Conv layers, BatchNorm, element-wise functions, "
    "pooling, dropout, flattening from dimension 1 (torch.flatten(x, 1), "
    "x.view(x.size(0), -1)) and element-wise sums and products"
)

_MODULES: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear,),
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "slope": (nn.PReLU,),
    "keep": (
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
        *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh),
        *(nn.Hardswish, nn.Hardsigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink),
        *(nn.Threshold, nn.Identity, nn.Dropout, nn.AlphaDropout),
    ),
    "pool": (
        *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
        *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    ),
}

# Names of functions of torch, torch.nn.functional and operator, and of methods.
_CALLS: dict[str, str] = {
    "keep": "relu relu_ relu6 leaky_relu elu selu celu gelu silu mish sigmoid sigmoid_ logsigmoid "
    "tanh tanh_ softplus softsign hardtanh hardswish hardsigmoid tanhshrink softshrink hardshrink "
    "threshold dropout alpha_dropout neg abs exp square pow clamp contiguous clone detach",
    "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d dropout1d dropout2d dropout3d",
    "merge": "add add_ iadd sub sub_ isub mul mul_ imul div div_ truediv",
    "number": "size dim",
}
_BY_METHOD = {name: what for what, names in _CALLS.items() for name in names.split()}
_BY_FUNCTION: dict[Any, str] = {
    getattr(home, name): what
    for home in (functional, torch, operator)
    for name, what in _BY_METHOD.items()
    if callable(getattr(home, name, None))
}


def module_action(module: nn.Module) -> str:
    """Say in one word what a leaf module does to hidden units."""
    if isinstance(module, nn.Flatten):
        return "flatten" if (module.start_dim, module.end_dim) == (1, -1) else "unknown"
    return next((what for what, types in _MODULES.items() if isinstance(module, types)), "unknown")


def call_action(node: fx.Node) -> str:
    """Say in one word what a call of a function or a method does to hidden units."""
    if _flattens(node):
        return "flatten"
    if node.op == "call_method":
        return _BY_METHOD.get(str(node.target), "unknown")
    if node.target is getattr:
        return "number" if node.args[1] in {"shape", "ndim", "dtype", "device"} else "unknown"
    return _BY_FUNCTION.get(node.target, "unknown")


def title(node: fx.Node, module: nn.Module | None) -> str:
    """Name a node as its user would."""
    if module is not None:
        return f"{type(module).__name__} {str(node.target)!r}"
    return getattr(node.target, "__name__", str(node.target))


def _flattens(node: fx.Node) -> bool:
    """Whether a call joins all dimensions from the first on."""
    given = list(node.args[1:])
    if node.target in {"flatten", torch.flatten}:
        names = dict(zip(("start_dim", "end_dim"), given, strict=False)) | node.kwargs
        return (names.get("start_dim", 0), names.get("end_dim", -1)) == (1, -1)
    if node.target in {"view", "reshape", torch.reshape} and not node.kwargs:
        shape = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given
        return len(shape) == 2 and _is_batch_size(shape[0]) and shape[1:] in ([-1], (-1,))
    return False


def _is_batch_size(node: Any) -> bool:
    """Whether a node is x.size(0), x.shape[0] or x.size()[0]."""
    if not isinstance(node, fx.Node) or node.args[1:] != (0,):
        return False
    if node.target == "size":
        return True
    source = node.args[0]
    return (
        node.target is operator.getitem
        and isinstance(source, fx.Node)
        and call_action(source) == "number"
    )
