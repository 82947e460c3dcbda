"""What happens to weights and optimiser state that are loaded while a topology is attached."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.errors import TopologyError
from sparseflow.core.parallel import local
from sparseflow.masks import Masks
from sparseflow.topology.steps import Steps
from sparseflow.topology.weights import MaskedWeight, SparseValues, Weight


class Place:
    """Where a model has one of its weights.

    Attributes:
        name: of the weight.
        module: that owns it when the topology is attached.
    """

    def __init__(self, model: nn.Module, weight: Weight) -> None:
        """Look for a weight.

        Raises:
            StopIteration: if the model lacks it.
        """
        self.name, self._model, self._weight = weight.name, model, weight
        path, self.module, self._local = next(
            (path, module, local_name)
            for path, module in model.named_modules()
            for local_name, p in module.named_parameters(recurse=False)
            if p is weight.parameter
        )
        self._path = path.split(".") if path else []

    def check(self) -> None:
        """Refuse to go on without the weight.

        Raises:
            TopologyError: if the model has another parameter or module in its place.
        """
        module: nn.Module | None = self._model
        for part in self._path:
            module = None if module is None else module._modules.get(part)
        held = None if module is None else module._parameters.get(self._local)
        if held is not self._weight.parameter:
            raise TopologyError(
                f"{self.name} is another parameter than the one that was attached: change it in "
                "place, p.data.copy_(...), or detach, make the optimiser again and attach again"
            )


class Loads:
    """Keeps loaded weights and state masked, and what was off the masks until the next step.

    A checkpoint holds the model's state, the optimiser's and the topology's. The first two
    are masked as they are loaded; masks that come with the third bring back what they name.
    """

    def __init__(
        self, weights: Mapping[str, Weight], places: Iterable[Place], steps: Steps
    ) -> None:
        """Take note of the weights; nothing happens before :meth:`hooks`."""
        self._weights, self._places, self._steps = weights, tuple(places), steps
        self._taken: list[tuple[Tensor, Tensor]] = []
        self._unchecked: set[str] = set()

    def hooks(self) -> Iterator[Any]:
        """Listen to what is loaded, until the handles are removed."""
        for place in self._places:
            act = Guard(self._weight_loaded, place.name)
            yield place.module.register_load_state_dict_post_hook(act)
        for optimizer in self._steps.optimizers:
            act = Guard(self._state_loaded)
            yield optimizer.register_load_state_dict_post_hook(act)

    @torch.no_grad()
    def bring_back(self) -> None:
        """Put back what was off the masks, for others to be installed."""
        for tensor, taken in self._taken:
            tensor.add_(taken)
        self.forget()

    def forget(self) -> None:
        """Let go of what was off the masks."""
        self._taken, self._unchecked = [], set()

    def check(self, masks: Masks) -> None:
        """Refuse to go on with connections that no topology goes with.

        Raises:
            TopologyError: if a truly sparse layer has others than its mask.
        """
        for name in sorted(self._unchecked):
            weight = self._weights[name]
            assert isinstance(weight, SparseValues)
            if not torch.equal(weight.indices(), masks.indices(name)):
                raise TopologyError(
                    f"the connections loaded into {name} are not those of its topology: load the "
                    "state of the topology as well, after that of model and optimiser"
                )
        self.forget()

    @torch.no_grad()
    def _weight_loaded(self, name: str) -> None:
        weight = self._weights[name]
        if isinstance(weight, SparseValues):
            self._unchecked.add(name)
        else:
            self._take(weight.parameter.detach(), weight.off_forward)

    @torch.no_grad()
    def _state_loaded(self) -> None:
        for weight in self._weights.values():
            if isinstance(weight, MaskedWeight):
                for optimizer in self._steps.optimizers:
                    for tensor in optimizer.state.get(weight.parameter, {}).values():
                        if isinstance(tensor, Tensor) and tensor.shape == weight.shape:
                            self._take(tensor, weight.off)

    def _take(self, tensor: Tensor, off: Tensor) -> None:
        values = local(tensor)
        taken = torch.where(off, values, 0)
        if bool(taken.any()):
            values.masked_fill_(off, 0)
            self._taken.append((values, taken))


class Guard:
    """A hook that copies of a module do not take along, nor keeps its topology alive."""

    stays_behind = True  # whoever replaces the module may leave it out

    def __init__(self, act: Callable[..., None] | None = None, *arguments: Any) -> None:
        """Call a method, as long as the object it is of lives."""
        self._act = None if act is None else weakref.WeakMethod(act)
        self._arguments = arguments

    def __call__(self, *_: Any) -> None:
        """Act."""
        act = None if self._act is None else self._act()
        if act is not None:
            partial(act, *self._arguments)()

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """The copy of a model has no topology."""
        return Guard()

    def __reduce__(self) -> tuple[type[Guard], tuple[()]]:
        """Nor has one that was pickled."""
        return Guard, ()
