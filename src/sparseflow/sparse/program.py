"""A model's architecture as plain data, and a module that carries it out.

The data name layers, functions and methods that are listed here; nothing is
imported or evaluated by a name that a file holds.
"""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from sparseflow.core.errors import StoreError, brief, unknown

_WINDOW = ("kernel_size", "stride", "padding")
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_CONV = ("in_channels", "out_channels", *_WINDOW, "dilation", "groups", "bias", "padding_mode")

LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.Conv2d: _CONV,
    nn.BatchNorm1d: _NORM,
    nn.BatchNorm2d: _NORM,
    nn.MaxPool2d: (*_WINDOW, "dilation", "ceil_mode"),
    nn.AvgPool2d: (*_WINDOW, "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Dropout: ("p", "inplace"),
    nn.Dropout2d: ("p", "inplace"),
    nn.Identity: (),
    nn.ReLU: ("inplace",),
    nn.ReLU6: ("inplace",),
    nn.LeakyReLU: ("negative_slope", "inplace"),
    nn.ELU: ("alpha", "inplace"),
    nn.SiLU: ("inplace",),
    nn.Hardswish: ("inplace",),
    nn.GELU: ("approximate",),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.Softmax: ("dim",),
    nn.LogSoftmax: ("dim",),
}
"""Layers that a file may hold, and the arguments that make them."""

_BY_NAME = {layer.__name__: layer for layer in LAYERS}

_NAMES: dict[str, tuple[Any, str]] = {
    "functional": (
        functional,
        "relu relu6 leaky_relu elu silu hardswish gelu softmax log_softmax dropout "
        "max_pool2d avg_pool2d adaptive_avg_pool2d",
    ),
    "torch": (torch, "relu sigmoid tanh flatten reshape cat add sub mul mean"),
    "operator": (operator, "add sub mul truediv floordiv getitem"),
}
_ARITHMETIC = {f"operator.{name}" for name in ("add", "sub", "mul", "truediv", "floordiv")}
_METHODS = "relu sigmoid tanh flatten view reshape contiguous size mean add mul"


def _shape(x: Any) -> Any:
    return x.shape


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arithmetic that cannot be made to fill the memory: no sequences, no numbers without end."""

    def apply(a: Any, b: Any) -> Any:
        if isinstance(a, str | list | tuple) or isinstance(b, str | list | tuple):
            raise StoreError(f"{function.__name__} of a sequence")
        found = function(a, b)
        if isinstance(found, int) and abs(found) > _MOST:
            raise StoreError(f"{function.__name__} gives a number of more than 63 bits")
        return found

    return apply


_MOST = 2**63 - 1
_LISTED = {
    f"{home}.{name}": getattr(module, name)
    for home, (module, names) in _NAMES.items()
    for name in names.split()
} | {"shape": _shape}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: _bounded(function) if name in _ARITHMETIC else function
    for name, function in _LISTED.items()
}
"""Functions that a file may call."""

METHODS = frozenset(_METHODS.split())
"""Methods of tensors that a file may call."""

_FUNCTION_NAMES = {function: name for name, function in _LISTED.items()}
_PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)
_PLAIN = (bool, int, float, type(None))


_SENSELESS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError)


class Program(nn.Module):
    """Carries out steps in order; a value lives as long as a later step needs it.

    Layers stand under the paths that they had in the model described.
    """

    def __init__(self, layers: Mapping[str, nn.Module], steps: list[list[Any]], output: int):
        """Take layers by path and checked steps; value 0 is the input, value i + 1 step i's."""
        super().__init__()
        for path, layer in layers.items():
            *parents, last = path.split(".")
            home: nn.Module = self
            for name in parents:
                if name not in home._modules:
                    home.add_module(name, nn.Module())
                home = home.get_submodule(name)
            home.add_module(last, layer)
        self._steps, self._output = steps, output
        needed: dict[int, int] = {output: len(steps)}
        for at in reversed(range(len(steps))):
            for value in _references(steps[at][2:]):
                needed.setdefault(value, at)
        self._spent = [[v for v, last in needed.items() if last == at] for at in range(len(steps))]

    def forward(self, x: Any) -> Any:
        """Apply the model to a tensor, or to what stands for one while it is traced."""
        values: dict[int, Any] = {0: x}
        for at, (kind, target, arguments, named) in enumerate(self._steps):
            given = [_filled(a, values) for a in arguments]
            options = {key: _filled(a, values) for key, a in named.items()}
            if kind == "layer":
                result = self.get_submodule(target)(*given, **options)
            elif kind == "function":
                result = FUNCTIONS[target](*given, **options)
            else:
                result = getattr(given[0], target)(*given[1:], **options)
            values[at + 1] = result
            for value in self._spent[at]:
                del values[value]
        return values[self._output]


def describe(model: nn.Module) -> dict[str, Any]:
    """Describe what a model does in evaluation mode, as JSON-like data.

    Args:
        model: takes one tensor and returns one; its parameters are not looked at.

    Raises:
        StoreError: if it cannot be traced, or has a part that a file cannot hold.
    """
    graph = _trace(model)
    layers, steps, places = {}, [], {}
    output: Any = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if places:
                raise StoreError(f"{type(model).__name__} takes more than one input")
            places[node] = 0
        elif node.op == "output":
            output = places.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        else:
            kind, target = _target(node, model)
            if kind == "layer":
                layers[target] = _layer(target, model.get_submodule(target))
            arguments = node.args[:1] if target == "shape" else node.args
            given = [_plain(a, places, node) for a in arguments]
            named = {key: _plain(a, places, node) for key, a in node.kwargs.items()}
            steps.append([kind, target, given, named])
            places[node] = len(steps)
    if output is None:
        raise StoreError(f"{type(model).__name__} does not return one tensor")
    return {"layers": layers, "steps": steps, "output": output}


def build(program: Any) -> Program:
    """Build the module that a description describes, its numbers on the meta device.

    Raises:
        StoreError: if it names anything that is not listed here, or makes no sense.
    """
    try:
        layers = {path: _build_layer(path, *spec) for path, spec in program["layers"].items()}
        steps = [_checked(step, at, layers) for at, step in enumerate(program["steps"])]
        output = program["output"]
        if type(output) is not int or not 0 <= output <= len(steps):
            raise StoreError(f"its output {output!r} is no value of its steps")
        return Program(layers, steps, output).eval()
    except _SENSELESS as error:
        raise StoreError(f"its description makes no sense ({brief(error)})") from error


def _trace(model: nn.Module) -> fx.Graph:
    flags = [(module, module.training) for module in model.modules()]
    try:
        return fx.Tracer().trace(model.eval())
    except Exception as error:  # a model may raise anything under tracing
        raise StoreError(
            f"{type(model).__name__} cannot be stored: its forward cannot be traced "
            f"({brief(error)})"
        ) from error
    finally:
        for module, flag in flags:
            module.training = flag


def _target(node: fx.Node, model: nn.Module) -> tuple[str, str]:
    target = node.target
    if node.op == "call_module":
        module = model.get_submodule(str(target))
        if type(module) not in LAYERS:
            raise StoreError(
                f"{type(module).__name__} {str(target)!r} is none of the layers that a file can "
                f"hold: {', '.join(_BY_NAME)}"
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise StoreError(f"{str(target)!r} has forward hooks, which a file cannot hold")
        return "layer", str(target)
    if node.op == "call_method" and target in METHODS:
        return "method", str(target)
    if target is getattr and node.args[1:] == ("shape",):
        return "function", "shape"
    if node.op == "call_function" and target in _FUNCTION_NAMES:
        return "function", _FUNCTION_NAMES[target]  # type: ignore[index]
    if node.op == "get_attr":
        raise StoreError(f"the tensor {str(target)!r} is used outside a layer that a file can hold")
    called = getattr(target, "__name__", target)
    raise StoreError(f"{called!r} is none of the functions that a file can hold")


def _layer(path: str, module: nn.Module) -> list[Any]:
    found: dict[str, Any] = {}
    for name in LAYERS[type(module)]:
        value = getattr(module, name)
        found[name] = value is not None if name == "bias" else value
    if not _PATH.fullmatch(path):
        raise StoreError(f"the name {path!r} of a layer has other signs than letters and digits")
    return [type(module).__name__, found]


def _plain(argument: Any, places: Mapping[fx.Node, int], node: fx.Node) -> Any:
    """An argument as JSON-like data; an earlier value is ``{"value": place}``."""
    if isinstance(argument, fx.Node):
        return {"value": places[argument]}
    if isinstance(argument, list | tuple):
        if node.target is operator.getitem:
            raise StoreError(f"the index {argument} cannot be stored: only a whole number can")
        return [_plain(a, places, node) for a in argument]
    if type(argument) in _PLAIN:
        return argument
    called = getattr(node.target, "__name__", node.target)
    raise StoreError(f"{called!r} is called with {argument!r}, which a file cannot hold")


def _build_layer(path: str, kind: str, arguments: dict[str, Any]) -> nn.Module:
    if not _PATH.fullmatch(path):
        raise StoreError(f"it names a layer {path!r}")
    if kind not in _BY_NAME:
        raise StoreError(unknown("layer", str(kind), _BY_NAME))
    layer = _BY_NAME[kind]
    if set(arguments) != set(LAYERS[layer]):
        raise StoreError(f"{path!r} is a {kind} of {', '.join(sorted(arguments)) or 'nothing'}")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a size of 0: its weight will not fit
        return layer(**arguments)


def _checked(step: Any, at: int, layers: Mapping[str, nn.Module]) -> list[Any]:
    kind, target, arguments, named = step
    listed = {"layer": layers, "function": FUNCTIONS, "method": METHODS}
    if kind not in listed or target not in listed[kind]:
        raise StoreError(f"step {at} is an unknown {kind} {target!r}")
    if not (isinstance(arguments, list) and isinstance(named, dict)):
        raise StoreError(f"step {at} has no list of arguments")
    late = [v for v in _references([arguments, named]) if type(v) is not int or not 0 <= v <= at]
    if late:
        raise StoreError(f"step {at} uses value {late[0]!r}, which is not there yet")
    return [kind, target, arguments, named]


def _references(argument: Any) -> list[Any]:
    """Places of the values within an argument."""
    if isinstance(argument, dict) and set(argument) == {"value"}:
        return [argument["value"]]
    parts = argument.values() if isinstance(argument, dict) else argument
    return (
        [v for part in parts for v in _references(part)]
        if isinstance(argument, dict | list)
        else []
    )


def _filled(argument: Any, values: Mapping[int, Any]) -> Any:
    """An argument with the values in their places."""
    if isinstance(argument, dict):
        return values[argument["value"]]
    if isinstance(argument, list):
        return [_filled(a, values) for a in argument]
    return argument
