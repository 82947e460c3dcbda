"""Which weights take part in an update, and the dense gradients that they grow from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparseflow.core.functional import RowGradient
from sparseflow.core.parallel import Ranks
from sparseflow.topology.method import Method
from sparseflow.topology.weights import Weight

Gradients = Mapping[str, Tensor | RowGradient]


class Growth:
    """The gradients of one training, as its steps read them.

    Attributes:
        deferred: whether an update is owed, for a gradient was not finite.
    """

    def __init__(
        self, method: Method, weights: Mapping[str, Weight], ranks: Ranks, device: torch.device
    ) -> None:
        """Look at nothing so far.

        Args:
            method: which names the source of growth.
            weights: by name.
            ranks: the processes that train them.
            device: on which these can exchange tensors.
        """
        self.deferred = False
        self._method, self._weights = method, weights
        self._ranks, self._device = ranks, device
        self._names: list[str] | None = None
        self._gradients: Gradients = {}

    def wanted(self, step: int) -> bool:
        """Say whether a step is one whose dense gradient the method asks for."""
        due = self.deferred or self._method.due(step)
        return due or self._method.gradients == "all"

    def collect(self, step: int) -> None:
        """Collect the dense gradients of the coming passes, if the step after them needs these."""
        on = self._method.growth_gradient == "batch" and self.wanted(step)
        self.forget()
        for weight in self._weights.values():
            weight.passes.collect(on)

    def forget(self) -> None:
        """Know of no step that is about to be taken."""
        self._names, self._gradients = None, {}

    def read(self, step: int, unit: Callable[[], float]) -> None:
        """Look at the gradients that a step is about to read; mask those that are not masked.

        Args:
            step: its number.
            unit: gives what the optimiser multiplies ``.grad`` by before it uses it; asked
                for at updates alone, since a GPU is waited for.

        Raises:
            TopologyError: if the dense form of one is asked for and not known.
        """
        if self.wanted(step):
            self._names = self._present()
            if self._method.growth_gradient == "batch":
                scale = unit()
                found = {name: self._weights[name].gradient(scale) for name in self._names}
                given = {name: gradient is not None for name, gradient in found.items()}
                self._names = self._ranks.anywhere(given, self._device)
                self._gradients = {n: g for n, g in found.items() if g is not None}
        for weight in self._weights.values():
            weight.mask_gradient()

    def part(self) -> tuple[list[str], Gradients | None]:
        """Names of the weights that take part in an update, and what the method asks for.

        That of a batch may be on other ranks alone: their mean is what counts.
        """
        names, source = self._names or [], self._method.growth_gradient
        if source is None or source == "batch":
            return names, None if source is None else self._gradients
        assert callable(source)
        gradients = source()
        return [name for name in names if name in gradients], gradients

    def _present(self) -> list[str]:
        """Weights with a gradient on some rank; all that are trained, if nothing is to grow."""
        present = {}
        for name, weight in self._weights.items():
            p, trained = weight.parameter, weight.parameter.requires_grad
            present[name] = trained and (not self._method.grows or weight.passes.gives(p.grad))
        return self._ranks.anywhere(present, self._device)
