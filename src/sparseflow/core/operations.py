"""The operations that the package knows in a traced model: one table, a row each.

The table says by which names and module types an operation is called, what it does to
hidden units, whether its result may share memory with its input, whether a file of a
model may hold it, and with which arguments its modules are built again. Aligning units,
tracing, the blocked layout and files all ask it. Layers that have a truly sparse form
declare that, and what a file holds of them, in :mod:`sparseflow.sparse.layers`.

What is done to hidden units is one word: ``linear``, ``conv`` and ``norm`` have weights;
``keep`` is elementwise, and ``slope`` too, with a weight for each unit; ``pool`` acts on
each channel alone; ``flatten`` joins all dimensions after the batch; ``merge`` combines
tensors elementwise; ``number`` returns a size. Everything else is ``unknown``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

SUPPORTED = (
    "supported are Linear and ungrouped Conv layers, BatchNorm, element-wise functions, "
    "pooling, dropout, flattening from dimension 1 (torch.flatten(x, 1), "
    "x.view(x.size(0), -1)) and element-wise sums and products"
)


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes:
        calls: names of its functions (of torch, torch.nn.functional and operator) and
            methods. The first is the name of the row, which joins several operations
            where nobody tells them apart. Those that end in ``_``, and Python's own such
            as ``iadd``, write into their first argument. A capitalised name stands for
            modules alone.
        action: the word for what it does to hidden units.
        modules: module types that do it, each with the names of the arguments that build
            it again, or None if a file cannot hold it.
        stored: whether a file may hold calls of its functions and methods.
        view: whether its result may share memory with its first argument.
        divides: whether it can turn zeros into infinities, and their gradients into NaN.
    """

    calls: str
    action: str = "unknown"
    modules: Mapping[type[nn.Module], str | None] = field(default_factory=dict)
    stored: bool = False
    view: bool = False
    divides: bool = False

    @property
    def name(self) -> str:
        """The first of its calls."""
        return self.calls.split()[0]


_NORM = "num_features eps momentum affine track_running_stats"
_WINDOW = "kernel_size stride padding"
_AVERAGE = f"{_WINDOW} ceil_mode count_include_pad divisor_override"

_TABLE = (
    Operation("Linear", "linear", {nn.Linear: None}),
    Operation("Conv", "conv", {nn.Conv1d: None, nn.Conv2d: None, nn.Conv3d: None}),
    Operation(
        "BatchNorm",
        "norm",
        {nn.BatchNorm1d: _NORM, nn.BatchNorm2d: _NORM, nn.BatchNorm3d: None},
    ),
    Operation("PReLU", "slope", {nn.PReLU: None}),
    Operation("Identity", "keep", {nn.Identity: ""}),
    # Elementwise.
    Operation("relu relu_", "keep", {nn.ReLU: "inplace"}, stored=True),
    Operation("relu6", "keep", {nn.ReLU6: "inplace"}, stored=True),
    Operation("leaky_relu", "keep", {nn.LeakyReLU: "negative_slope inplace"}, stored=True),
    Operation("elu", "keep", {nn.ELU: "alpha inplace"}, stored=True),
    Operation("gelu", "keep", {nn.GELU: "approximate"}, stored=True),
    Operation("silu", "keep", {nn.SiLU: "inplace"}, stored=True),
    Operation("hardswish", "keep", {nn.Hardswish: "inplace"}, stored=True),
    Operation("sigmoid sigmoid_", "keep", {nn.Sigmoid: ""}, stored=True),
    Operation("tanh tanh_", "keep", {nn.Tanh: ""}, stored=True),
    Operation("dropout", "keep", {nn.Dropout: "p inplace"}, stored=True),
    Operation(
        "selu celu mish logsigmoid softplus softsign hardtanh hardsigmoid tanhshrink softshrink "
        "hardshrink threshold alpha_dropout",
        "keep",
        dict.fromkeys(
            (
                *(nn.SELU, nn.CELU, nn.Mish, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh),
                *(nn.Hardsigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold),
                nn.AlphaDropout,
            )
        ),
    ),
    Operation("neg abs exp square clamp clone", "keep"),
    Operation("pow", "keep", divides=True),
    Operation("contiguous", "keep", stored=True, view=True),
    Operation("detach", "keep", view=True),
    # Each channel alone.
    Operation("max_pool2d", "pool", {nn.MaxPool2d: f"{_WINDOW} dilation ceil_mode"}, stored=True),
    Operation("avg_pool2d", "pool", {nn.AvgPool2d: _AVERAGE}, stored=True),
    Operation("adaptive_avg_pool2d", "pool", {nn.AdaptiveAvgPool2d: "output_size"}, stored=True),
    Operation("dropout2d", "pool", {nn.Dropout2d: "p inplace"}),
    Operation(
        "max_pool1d max_pool3d avg_pool1d avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "adaptive_max_pool3d adaptive_avg_pool1d adaptive_avg_pool3d dropout1d dropout3d",
        "pool",
        dict.fromkeys(
            (
                *(nn.MaxPool1d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool3d),
                *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
                *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool3d, nn.Dropout1d, nn.Dropout3d),
            )
        ),
    ),
    # Several tensors, or a tensor and a number.
    Operation("add add_ iadd", "merge", stored=True),
    Operation("sub sub_ isub", "merge", stored=True),
    Operation("mul mul_ imul", "merge", stored=True),
    Operation("truediv itruediv", "merge", stored=True, divides=True),
    Operation("div div_", "merge", divides=True),
    Operation("floordiv", stored=True),
    Operation("cat", stored=True),
    Operation("concat"),  # not stored: operator.concat could fill the memory
    # Shapes. Whether it flattens depends on the arguments: see _flattens.
    Operation("flatten", modules={nn.Flatten: "start_dim end_dim"}, stored=True, view=True),
    Operation("view", stored=True, view=True),
    Operation("reshape", stored=True, view=True),
    Operation("getitem", stored=True, view=True),
    Operation(
        "transpose permute squeeze unsqueeze t narrow select expand expand_as view_as reshape_as "
        "chunk split unbind",
        view=True,
    ),
    Operation("size", "number", stored=True),
    Operation("dim", "number"),
    # Across units.
    Operation("mean", stored=True),
    Operation("softmax", modules={nn.Softmax: "dim"}, stored=True),
    Operation("log_softmax", modules={nn.LogSoftmax: "dim"}, stored=True),
)

_UNKNOWN = Operation("unknown")
_HOMES = {"functional": functional, "torch": torch, "operator": operator}
_BY_NAME = {name: row for row in _TABLE for name in row.calls.split()}
_BY_MODULE = {module: row for row in _TABLE for module in row.modules}
_BY_FUNCTION: dict[Any, Operation] = {
    getattr(home, name): row
    for name, row in _BY_NAME.items()
    for home in _HOMES.values()
    if callable(getattr(home, name, None))
}

OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in _BY_NAME
    if f"i{name}" in _BY_NAME
}
"""``+=`` and its like, and the functions that give the same without writing."""

STORED_MODULES: dict[type[nn.Module], tuple[str, ...]] = {
    module: tuple(arguments.split())
    for row in _TABLE
    for module, arguments in row.modules.items()
    if arguments is not None
}
"""Module types that a file may hold, and the names of the arguments that build them."""

_WRITING = {f"{name}_" for name in _BY_NAME} | {f"i{name}" for name in _BY_NAME}
_STORED = [name for name, row in _BY_NAME.items() if row.stored and name not in _WRITING]
STORED_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{home}.{name}": getattr(module, name)
    for home, module in _HOMES.items()
    for name in _STORED
    if callable(getattr(module, name, None))
}
"""Functions that a file may call, by the names that it gives them."""

STORED_METHODS = frozenset(name for name in _STORED if hasattr(torch.Tensor, name))
"""Methods of tensors that a file may call."""


def of_module(module: nn.Module) -> Operation:
    """Return the row of a module's type, or of the nearest type that it inherits from."""
    rows = (_BY_MODULE.get(base) for base in type(module).__mro__)
    return next((row for row in rows if row is not None), _UNKNOWN)


def operation(node: fx.Node, module: nn.Module | None) -> Operation:
    """Return the row of what a node calls: ``module``, or its function or method for None."""
    if module is not None:
        return of_module(module)
    if node.op == "call_method":
        return _BY_NAME.get(str(node.target), _UNKNOWN)
    return _BY_FUNCTION.get(node.target, _UNKNOWN)


def action(node: fx.Node, module: nn.Module | None) -> str:
    """Return the word for what a node does to hidden units, given its arguments."""
    if isinstance(module, nn.Flatten):
        return "flatten" if (module.start_dim, module.end_dim) == (1, -1) else "unknown"
    if module is None and _flattens(node):
        return "flatten"
    if node.target is getattr:
        return "number" if node.args[1] in {"shape", "ndim", "dtype", "device"} else "unknown"
    return operation(node, module).action


def arguments_of(layer: nn.Module, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments that build a layer; for ``bias``, whether there is one."""
    given = {name: getattr(layer, name) for name in names}
    return given | ({"bias": given["bias"] is not None} if "bias" in given else {})


def title(node: fx.Node, module: nn.Module | None) -> str:
    """Name a node as the model's author would."""
    if module is not None:
        return f"{type(module).__name__} {str(node.target)!r}"
    return getattr(node.target, "__name__", str(node.target))


def _flattens(node: fx.Node) -> bool:
    """Whether a call joins all dimensions after the batch."""
    given = list(node.args[1:])
    name = operation(node, None).name
    if name == "flatten":
        names = dict(zip(("start_dim", "end_dim"), given, strict=False)) | node.kwargs
        return (names.get("start_dim", 0), names.get("end_dim", -1)) == (1, -1)
    if name in {"view", "reshape"} and not node.kwargs:
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
        and action(source, None) == "number"
    )
