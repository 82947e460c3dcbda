"""Methods written as a user writes them, and a clean slate for what a test registers."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.core import code
from sparseflow.core.values import PARTS
from sparseflow.data import DATA
from sparseflow.models import MODELS
from sparseflow.recipes import FAMILIES
from sparseflow.studies import STUDIES
from sparseflow.topology import Topology

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_methods.py"


def example() -> ModuleType:
    """SNFS and GraNet, as ``--use`` loads them."""
    sf.use(EXAMPLE)
    return sys.modules[EXAMPLE.stem]


@contextmanager
def clean_slate() -> Iterator[None]:
    """Forget at the end what was registered and loaded meanwhile."""
    registries = (sf.METHODS, sf.INITS, PARTS, MODELS, DATA, FAMILIES, STUDIES)
    before = [dict(registry._entries) for registry in registries]
    used, modules = dict(code._USED), dict(sys.modules)
    try:
        yield
    finally:
        for registry, entries in zip(registries, before, strict=True):
            registry._entries.clear()
            registry._entries.update(entries)
        for name in set(code._USED) - set(used):
            sys.modules.pop(name, None)
        sys.modules.update({n: modules[n] for n in used if n in modules})
        code._USED.clear()
        code._USED.update(used)


@dataclass(frozen=True)
class Aging(sf.RigL):
    """RigL that spares the young: a weight counts less the more updates it has lived through."""

    def observe(self, layers: sf.Layers) -> None:
        for layer in layers.values():
            age = layer.state.get("age", torch.zeros_like(layer.values))
            layer.state["age"] = age + 1
        count = layers.state.get("updates", torch.zeros((), dtype=torch.int64))
        layers.state["updates"] = count + 1

    def drop_score(self, view: sf.View) -> Tensor:
        return view.weight.abs() / view.state("age")


@dataclass(frozen=True)
class TopKAST(sf.Method):
    """Forward with the largest weights, and train some more (Jayakumar et al. 2020)."""

    density: float = 0.3
    beyond: float = 0.3
    interval: int = 2

    def due(self, step: int) -> bool:
        return step % self.interval == 0

    def update_layer(self, connections: sf.Connections) -> Tensor:
        return _largest(connections, self.density)

    def stored(self, layers: sf.Layers) -> Mapping[str, Tensor]:
        return {name: _largest(each, self.density + self.beyond) for name, each in layers.items()}


def _largest(connections: sf.Connections, density: float) -> Tensor:
    sizes = torch.cat([view.weight.abs().flatten() for view in connections.blocks()])
    order = sizes.sort(descending=True, stable=True).indices
    return order[: round(density * connections.size)].sort().values


def driven(
    method: sf.Method, weights: dict[str, list[float]], active: dict[str, list[int]], width: int = 4
) -> tuple[nn.Module, torch.optim.Optimizer, Topology]:
    """Layers with given weights and connections, under an optimiser that moves nothing."""
    model = nn.ModuleDict(
        {n: nn.Linear(width, len(w) // width, bias=False) for n, w in weights.items()}
    )
    shapes = {n: torch.Size([len(w) // width, width]) for n, w in weights.items()}
    with torch.no_grad():
        for name, values in weights.items():
            model[name].weight.copy_(torch.tensor(values).view(shapes[name]))
    masks = sf.Masks.from_indices(
        {f"{n}.weight": (torch.tensor(a), shapes[n]) for n, a in active.items()}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return model, optimizer, sf.attach(model, optimizer, masks, method)


def push(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradients: dict[str, list[float]]
) -> None:
    """One step whose dense gradients are these."""
    optimizer.zero_grad()
    total = sum((model[n].weight.view(-1) * torch.tensor(g)).sum() for n, g in gradients.items())
    total.backward()
    optimizer.step()
