"""A model's architecture as plain data, and a module that runs it.

The data name layers, functions and methods that the table of operations and the
registry of layer types allow; no name in a file is ever imported or evaluated.
"""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from sparseflow.core.errors import StoreError, brief, unknown
from sparseflow.core.operations import (
    STORED_FUNCTIONS,
    STORED_METHODS,
    STORED_MODULES,
    arguments_of,
)
from sparseflow.sparse.convert.trace import Tracer, training_flags
from sparseflow.sparse.layers.registry import SPARSE_FORMS


def stored_layers() -> dict[type[nn.Module], tuple[str, ...]]:
    """List the layers that a file may hold, and the names of the arguments that build them."""
    return {dense: form.arguments for dense, form in SPARSE_FORMS.items()} | STORED_MODULES


_INDEX = "operator.getitem"


def _shape(x: Any) -> Any:
    return x.shape


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arithmetic that cannot be made to fill the memory: neither sequences nor endless integers."""

    def apply(a: Any, b: Any) -> Any:
        if isinstance(a, str | list | tuple) or isinstance(b, str | list | tuple):
            raise StoreError(f"{function.__name__} of a sequence")
        result = function(a, b)
        if isinstance(result, int) and abs(result) > _MOST:
            raise StoreError(f"{function.__name__} gives a number of more than 63 bits")
        return result

    return apply


_MOST = 2**63 - 1
_LISTED = STORED_FUNCTIONS | {"shape": _shape}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: _bounded(function) if name.startswith("operator.") and name != _INDEX else function
    for name, function in _LISTED.items()
}
"""Functions that a file may call."""

_FUNCTION_NAMES = {function: name for name, function in _LISTED.items()}
_PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)
_PLAIN = (bool, int, float, type(None))

_SENSELESS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError)


class Program(nn.Module):
    """Runs steps in order; a value lives as long as a later step needs it.

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
        StoreError: if it names anything that is not allowed, or is not well formed.
    """
    try:
        layers = {path: _build_layer(path, *spec) for path, spec in program["layers"].items()}
        steps = [_checked(step, at, layers) for at, step in enumerate(program["steps"])]
        output = program["output"]
        if type(output) is not int or not 0 <= output <= len(steps):
            raise StoreError(f"its output {output!r} is not a value of its steps")
        return Program(layers, steps, output).eval()
    except _SENSELESS as error:
        raise StoreError(f"its description is malformed ({brief(error)})") from error


def _trace(model: nn.Module) -> fx.Graph:
    try:
        with training_flags(model):
            return Tracer().trace(model.eval())
    except Exception as error:  # a model may raise anything under tracing
        raise StoreError(
            f"{type(model).__name__} cannot be stored: its forward cannot be traced "
            f"({brief(error)})"
        ) from error


def _target(node: fx.Node, model: nn.Module) -> tuple[str, str]:
    target = node.target
    if node.op == "call_module":
        module = model.get_submodule(str(target))
        if type(module) not in stored_layers():
            raise StoreError(
                f"{type(module).__name__} {str(target)!r} is not a layer that a file can "
                f"hold: {', '.join(layer.__name__ for layer in stored_layers())}"
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise StoreError(f"{str(target)!r} has forward hooks, which a file cannot hold")
        return "layer", str(target)
    if node.op == "call_method" and target in STORED_METHODS:
        return "method", str(target)
    if target is getattr and node.args[1:] == ("shape",):
        return "function", "shape"
    if node.op == "call_function" and target in _FUNCTION_NAMES:
        return "function", _FUNCTION_NAMES[target]  # type: ignore[index]
    if node.op == "get_attr":
        raise StoreError(f"the tensor {str(target)!r} is used outside a layer that a file can hold")
    called = getattr(target, "__name__", target)
    raise StoreError(f"{called!r} is not a function that a file can hold")


def _layer(path: str, module: nn.Module) -> list[Any]:
    if not _PATH.fullmatch(path):
        raise StoreError(f"the name {path!r} of a layer must consist of letters, digits and _")
    return [type(module).__name__, arguments_of(module, stored_layers()[type(module)])]


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
    named = {layer.__name__: layer for layer in stored_layers()}
    if kind not in named:
        raise StoreError(unknown("layer", str(kind), named))
    layer = named[kind]
    if set(arguments) != set(stored_layers()[layer]):
        raise StoreError(f"{path!r} is a {kind} of {', '.join(sorted(arguments)) or 'nothing'}")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a size of 0: its weight will not fit
        return layer(**arguments)


def _checked(step: Any, at: int, layers: Mapping[str, nn.Module]) -> list[Any]:
    kind, target, arguments, named = step
    listed = {"layer": layers, "function": FUNCTIONS, "method": STORED_METHODS}
    if kind not in listed or target not in listed[kind]:
        raise StoreError(f"step {at} is an unknown {kind} {target!r}")
    if not (isinstance(arguments, list) and isinstance(named, dict)):
        raise StoreError(f"step {at} has no list of arguments")
    late = [v for v in _references([arguments, named]) if type(v) is not int or not 0 <= v <= at]
    if late:
        raise StoreError(f"step {at} uses value {late[0]!r}, which does not exist yet")
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
    """An argument with the values filled in."""
    if isinstance(argument, dict):
        return values[argument["value"]]
    if isinstance(argument, list):
        return [_filled(a, values) for a in argument]
    return argument
