"""What an optimiser keeps: refused where masks, or the ages of connections, cannot reach it."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adafactor, Optimizer

from sparseflow.core.errors import TopologyError, brief
from sparseflow.core.parallel import is_sharded, local
from sparseflow.topology.bias import Update, update_of
from sparseflow.topology.method import Method
from sparseflow.topology.steps import stack
from sparseflow.topology.weights import SparseValues, Weight

OLD_WAY = "attach(..., fresh_steps=False) lets grown connections take steps of any length"


class Slots:
    """What an optimiser, and those inside it, keep of the weights."""

    def __init__(self, optimizers: Sequence[Optimizer], weights: Mapping[str, Weight]) -> None:
        """Take note of the optimisers, the outermost first; nothing is looked at yet."""
        self._optimizers, self._weights = optimizers, weights
        self._unseen = [(name, each) for name in weights for each in optimizers]

    def served(self, method: Method, *, fresh_steps: bool) -> tuple[Optimizer, Update | None]:
        """Return which optimiser makes steps of what kind by age; None if age does not matter.

        An optimiser that is not known is tried: it makes two steps of stand-ins of the
        weights, which show what it keeps of them and whether it counts.

        Raises:
            TopologyError: if it keeps what masks cannot reach; if it counts steps in a
                way that is not known, and connections may be grown.
        """
        asked = fresh_steps and method.grows
        updates: dict[int, Update | None] = {}
        for number, each in enumerate(self._optimizers):
            with suppress(KeyError):
                updates[number] = update_of(each)
        if len(updates) < len(self._optimizers):
            _try(self._optimizers, self._weights, known=set(updates), asked=asked)
        self.check()
        counting = [(self._optimizers[n], u) for n, u in updates.items() if u is not None]
        if not asked:
            counting = []
        if len(counting) > 1:
            raise TopologyError(
                f"{type(self._optimizers[0]).__name__} holds {len(counting)} optimisers that count "
                f"steps: attach one topology to each, with the masks of its weights; {OLD_WAY}"
            )
        self._check_adafactor(asked=asked)
        return counting[0] if counting else (self._optimizers[0], None)

    def check(self) -> None:
        """Look at state that is new.

        Raises:
            TopologyError: if masks cannot reach it.
        """
        if not self._unseen:
            return
        seen = []
        for name, optimizer in self._unseen:
            if slots := optimizer.state.get(self._weights[name].parameter):
                check_slots(name, optimizer, slots)
                seen.append((name, optimizer))
        self._unseen = [each for each in self._unseen if each not in seen]

    def _check_adafactor(self, *, asked: bool) -> None:
        values = [name for name, w in self._weights.items() if isinstance(w, SparseValues)]
        if asked and values and any(isinstance(each, Adafactor) for each in self._optimizers):
            raise TopologyError(
                f"Adafactor counts steps for all values of the truly sparse {', '.join(values)} "
                f"together: use masked dense layers, whose state it factors; {OLD_WAY}"
            )


def check_slots(name: str, optimizer: Optimizer, slots: Mapping[str, Any]) -> None:
    """Refuse state of a weight that masks cannot reach.

    Raises:
        TopologyError: naming the optimiser, the weight and the key.
    """
    for key, value in slots.items():
        where = f"{type(optimizer).__name__} keeps {key!r} of {name}"
        if not isinstance(value, Tensor):
            if _holds_tensors(value):
                raise TopologyError(
                    f"{where} inside a {type(value).__name__}, where masks cannot reach: use an "
                    "optimiser whose state is one tensor a name"
                )
        elif value.numel() > 1 and not is_sharded(value):
            plain = type(value) in (Tensor, nn.Parameter)
            if not plain or (value.dtype.itemsize == 1 and value.dtype != torch.bool):
                kind = str(value.dtype) if plain else type(value).__name__
                raise TopologyError(
                    f"{where} in low precision ({kind}), whose entries cannot be set "
                    "to zero one by one: use an optimiser whose state is float32 or bfloat16"
                )


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 1
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_tensors, value))
    return any(isinstance(each, Tensor) for each in getattr(value, "__dict__", {}).values())


def _try(
    optimizers: Sequence[Optimizer], weights: Mapping[str, Weight], known: set[int], *, asked: bool
) -> None:
    """Let a copy of the outermost optimiser make two steps, and look at what has changed."""
    kind = type(optimizers[0]).__name__
    try:
        try:
            double, stand_ins, before = _trial(optimizers, weights)
        except Exception:  # some optimisers want a gradient of every parameter
            double, stand_ins, before = _trial(optimizers, weights, whole=True)
    except Exception as error:  # whatever someone's optimiser raises
        if asked:
            raise TopologyError(
                f"{kind} is not known, and a trial step of it failed ({brief(error)}), so whether "
                f"it counts steps cannot be seen: {OLD_WAY}"
            ) from error
        return
    for each in stack(double):
        for parameter, name in stand_ins.items():
            check_slots(name, each, each.state.get(parameter, {}))
    grew = [(key, value - before.get(key, 0)) for key, value in _numbers(double)]
    counters = [
        what for (what, number, _), by in grew if number not in known and by >= 1 and by == int(by)
    ]
    if asked and counters:
        raise TopologyError(
            f"{kind} counts steps ({counters[0]}), and how they enter its updates is not known, "
            "so grown connections cannot step as under a fresh one: add the class to "
            f"sparseflow.topology.UPDATES; {OLD_WAY}"
        )


def _trial(
    optimizers: Sequence[Optimizer], weights: Mapping[str, Weight], *, whole: bool = False
) -> tuple[Optimizer, dict[nn.Parameter, str], dict[tuple[str, int, int], float]]:
    """Let a copy make two steps.

    Returns:
        The copy; its masked parameters, with their names; its numbers after the first step.
    """
    with _quietly(weights):
        double, stand_ins = _stand_in(optimizers, weights, whole=whole)
        _step(double, list(stand_ins))
        before = dict(_numbers(double))
        _step(double, list(stand_ins))
    return double, {p: name for p, name in stand_ins.items() if name}, before


def _stand_in(
    optimizers: Sequence[Optimizer], weights: Mapping[str, Weight], *, whole: bool
) -> tuple[Optimizer, dict[nn.Parameter, str]]:
    """Copy an optimiser without its state, with a parameter of its own for each form of weight.

    All it refers to is copied, optimisers inside it too: nothing that is trained is stepped.

    Args:
        optimizers: the outermost first.
        weights: those that are masked.
        whole: whether every other parameter has one too, without a name.
    """
    names = {id(weight.parameter): name for name, weight in weights.items()}
    memo: dict[int, Any] = {}
    stand_ins: dict[nn.Parameter, str] = {}
    forms = set()
    for optimizer in optimizers:
        memo[id(optimizer.state)] = defaultdict(dict)
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if id(parameter) in memo:
                continue
            value, form = local(parameter.detach()), (parameter.shape, parameter.dtype)
            other = nn.Parameter(value.new_empty(0))  # without a gradient: it is passed over
            masked = id(parameter) in names and form not in forms
            if masked:
                forms.add(form)
            if masked or whole:
                other = nn.Parameter(torch.randn_like(value))
                stand_ins[other] = names.get(id(parameter), "")
            memo[id(parameter)] = other
    double = object.__new__(type(optimizers[0]))
    for key, value in vars(optimizers[0]).items():
        if key.endswith("_hooks"):
            vars(double)[key] = OrderedDict()
        elif key not in ("step", "second_step"):  # set on the optimiser itself, by schedulers say
            vars(double)[key] = copy.deepcopy(value, memo)
    return double, stand_ins


def _step(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    def closure() -> Tensor:
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return torch.zeros(())

    closure()
    takes_closure = len(inspect.signature(optimizer.step).parameters) > 0
    optimizer.step(*[closure] * takes_closure)  # type: ignore[arg-type]


def _numbers(optimizer: Optimizer) -> Iterator[tuple[tuple[str, int, int], float]]:
    """Single numbers of an optimiser, of its groups and of its state, by where they are."""
    for number, each in enumerate(stack(optimizer)):
        places = {"attribute": [vars(each)], "group": each.param_groups}
        for what, mappings in (places | {"state": each.state.values()}).items():
            for index, mapping in enumerate(mappings):
                for key, value in mapping.items():
                    single = isinstance(value, Tensor) and value.numel() == 1
                    if single or (isinstance(value, int | float) and not isinstance(value, bool)):
                        yield (f"{what} {key!r}", number, index), float(value)


@contextmanager
def _quietly(weights: Mapping[str, Weight]) -> Iterator[None]:
    """Leave random streams as they are, warn of nothing, and compile nothing for two steps."""
    devices = {weight.parameter.device for weight in weights.values()}
    cuda = [device for device in devices if device.type == "cuda"]
    with (
        torch.random.fork_rng(cuda),
        warnings.catch_warnings(),
        torch.compiler.set_stance("force_eager"),
    ):
        warnings.simplefilter("ignore")
        yield
