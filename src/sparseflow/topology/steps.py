"""When a step is taken, whichever way an optimiser takes it.

``step()``, with or without a closure; the ``second_step()`` of sharpness-aware optimisers; the
``step()`` of an optimiser inside another, of its own accord or called by the outer one: each is
one step. One that a ``GradScaler`` lets a fused optimiser skip is none.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import cache, wraps
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from sparseflow.core.errors import TopologyError
from sparseflow.core.schedules import Moment


def stack(optimizer: Optimizer) -> list[Optimizer]:
    """An optimiser and those inside it that hold some of its parameters, outermost first."""
    held, optimizers = _ids(optimizer), [optimizer]
    for each in optimizers:  # grows meanwhile
        for value in vars(each).values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                known = any(inner is other for other in optimizers)
                if isinstance(inner, Optimizer) and not known and held & _ids(inner):
                    optimizers.append(inner)
    return optimizers


def _ids(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


class Steps:
    """The steps of one optimiser, and what is called around each.

    Attributes:
        optimizers: the optimiser and those inside it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        begin: Callable[[bool], None],
        read: Callable[[], None],
        end: Callable[[bool], None],
    ) -> None:
        """Take note of the optimiser; nothing is called before :meth:`hooks`.

        Args:
            optimizer: the outermost one.
            begin: called before a step, with whether it has a closure.
            read: called whenever ``.grad`` is what the step is about to read.
            end: called after a step, with whether it was taken.
        """
        self.optimizers = stack(optimizer)
        self._begin, self._read, self._end = begin, read, end
        self._running: tuple[Optimizer, str] | None = None

    def hooks(self) -> Iterator[Any]:
        """Listen to every way of taking a step, until the handles are removed."""
        for optimizer in self.optimizers:
            yield optimizer.register_step_pre_hook(self._before_step)
            yield optimizer.register_step_post_hook(self._after_step)
            if callable(getattr(optimizer, "second_step", None)):
                yield _SecondStep(optimizer, self)

    def states(self, parameter: nn.Parameter) -> list[MutableMapping[str, Any]]:
        """What the optimiser, and each inside it, keeps for one parameter."""
        held = (optimizer.state for optimizer in self.optimizers)
        return [state[parameter] for state in held if parameter in state]

    @property
    def running(self) -> bool:
        """Say whether a step is being taken."""
        return self._running is not None

    @property
    def unit(self) -> float:
        """What the optimiser multiplies ``.grad`` by before it uses it."""
        scale = getattr(self.optimizers[0], "grad_scale", None)
        return 1.0 if scale is None else 1 / float(scale)

    def enter(self, optimizer: Optimizer, way: str, closure: bool = False) -> None:
        """Begin a step, unless it is part of another; ``.grad`` is settled without a closure."""
        try:
            if self._running in (None, (optimizer, way)):  # the same again: it has failed before
                self._running = optimizer, way
                self._begin(closure)
            if not closure:
                self._read()
        except BaseException:
            self._running = None
            raise

    def leave(self, optimizer: Optimizer, way: str, failed: bool = False) -> None:
        """End a step, unless it is part of another."""
        if self._running != (optimizer, way):
            return
        self._running = None
        if not failed:
            # Set by GradScaler for the time of the step, where the optimiser itself skips it.
            verdicts = [getattr(each, "found_inf", None) for each in self.optimizers]
            self._end(not any(bool(v) for v in verdicts if v is not None))

    def _before_step(
        self, optimizer: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # The arguments are those of the unbound step: the optimiser itself comes first.
        closure = arguments[1] if len(arguments) > 1 else named.get("closure")
        self.enter(optimizer, "step", closure is not None)
        if closure is None:
            return None
        if len(arguments) > 1:
            return (arguments[0], self._reading(closure), *arguments[2:]), named
        return arguments, {**named, "closure": self._reading(closure)}

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.leave(optimizer, "step")

    def _reading(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        """The closure, after which ``.grad`` is what the step reads."""

        @wraps(closure)
        def read_after(*arguments: Any, **named: Any) -> Any:
            value = closure(*arguments, **named)
            self._read()
            return value

        return read_after


class _SecondStep:
    """The hook on ``second_step``, which torch knows nothing of: a method on the instance."""

    def __init__(self, optimizer: Any, steps: Steps) -> None:
        taken = optimizer.second_step

        @wraps(taken)
        def second_step(*arguments: Any, **named: Any) -> Any:
            steps.enter(optimizer, "second_step")
            failed = True
            try:
                result = taken(*arguments, **named)
                failed = False
            finally:
                steps.leave(optimizer, "second_step", failed)
            return result

        self._optimizer = optimizer
        optimizer.second_step = second_step

    def remove(self) -> None:
        """Give the optimiser its own method back."""
        vars(self._optimizer).pop("second_step", None)


class Rates:
    """Learning rates of weights, each that of its own parameter group.

    Attributes:
        initial: the rate of each weight at the start, by name.
    """

    def __init__(self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        """Read the rates at the start, ``initial_lr`` where a scheduler has set it."""
        self._optimizer, self._parameters = optimizer, dict(parameters)
        self.initial: dict[str, float] = {
            name: float(group.get("initial_lr", group["lr"]))
            for name, group in self._groups().items()
        }

    def moments(self, step: int) -> dict[str, Moment]:
        """A step, with the rate of each weight now over that at the start; NaN if that was 0."""
        moments = {}
        for name, group in self._groups().items():
            initial = self.initial[name]
            moments[name] = Moment(step, float(group["lr"]) / initial if initial else math.nan)
        return moments

    def restore(self, initial: float | Mapping[str, float]) -> None:
        """Take the rates at the start from a state; of older ones one for all.

        Raises:
            TopologyError: if one is missing.
        """
        if isinstance(initial, Mapping):
            if odd := sorted(set(initial) ^ set(self._parameters)):
                raise TopologyError(f"topology state and learning rates differ in: {odd[0]}")
            self.initial = {name: float(rate) for name, rate in initial.items()}
        else:
            self.initial = dict.fromkeys(self._parameters, float(initial))

    def _groups(self) -> dict[str, dict[str, Any]]:
        groups = {id(p): group for group in self._optimizer.param_groups for p in group["params"]}
        return {name: groups[id(p)] for name, p in self._parameters.items()}


class Attached:
    """Which parameters are attached, and to the steps of which optimiser."""

    def __init__(self) -> None:
        """Know of none."""
        self._steps: dict[int, tuple[weakref.ref[nn.Parameter], str, weakref.ref[Steps]]] = {}

    def add(self, parameters: Iterable[nn.Parameter], steps: Steps) -> None:
        """Take note of parameters; no other optimiser shall step them from now on."""
        kind = type(steps.optimizers[0]).__name__
        for p in parameters:
            key = id(p)
            gone = weakref.ref(p, lambda _, key=key: self._steps.pop(key, None))
            self._steps[key] = gone, kind, weakref.ref(steps)
        _listen()

    def remove(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let them go."""
        for p in parameters:
            self._steps.pop(id(p), None)

    def holds(self, parameter: nn.Parameter) -> bool:
        """Say whether a parameter is attached."""
        return id(parameter) in self._steps

    def refuse_others(self, optimizer: Optimizer, *_: Any) -> None:
        """Refuse the step of an optimiser that other parameters are attached to.

        Raises:
            TopologyError: naming both optimisers.
        """
        if not self._steps:
            return
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) not in self._steps:
                    continue
                kind, steps = self._steps[id(p)][1:]
                if not _belongs(optimizer, steps()):
                    raise TopologyError(
                        f"{type(optimizer).__name__} steps a weight of shape {tuple(p.shape)} "
                        f"whose topology is attached to another optimiser, {kind}: step that one, "
                        "or detach the topology and attach it to this one"
                    )


def _belongs(optimizer: Optimizer, steps: Steps | None) -> bool:
    """Say whether a step is one of these, or part of one, or has one as its part."""
    if steps is None:
        return False
    if steps.running or any(optimizer is each for each in steps.optimizers):
        return True
    return any(inner is steps.optimizers[0] for inner in stack(optimizer))


ATTACHED = Attached()


@cache
def _listen() -> None:
    """Look at the steps of all optimisers from now on."""
    register_optimizer_step_pre_hook(ATTACHED.refuse_others)
