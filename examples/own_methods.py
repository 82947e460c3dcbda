"""Two published methods outside the package: load them with ``--use own_methods.py``."""

from dataclasses import dataclass, replace

import torch

import sparseflow as sf


def shared(total: int, weights: list[float], room: list[int]) -> list[int]:
    """Whole numbers in proportion to the weights, none above its room, that add up to the total."""
    counts = [0] * len(room)
    while left := total - sum(counts):
        free = [i for i, most in enumerate(room) if counts[i] < most]
        whole = sum(weights[i] for i in free)
        shares = [weights[i] / whole if whole else 1 / len(free) for i in free]
        for i, share in zip(free, shares, strict=True):
            counts[i] += min(int(left * share), room[i] - counts[i])
        if left == total - sum(counts):  # fewer left than layers: one to the heaviest with room
            counts[max(zip(shares, free, strict=True), key=lambda pair: pair[0])[1]] += 1
    return counts


@sf.register_method("snfs", label="SNFS")
@dataclass(frozen=True)
class SNFS(sf.SET):
    """Sparse networks from scratch (Dettmers & Zettlemoyer 2019, algorithm 1).

    Layers drop their smallest weights; as many are grown where momentum is largest, shared out
    between layers by the mean momentum magnitude of their active weights.
    """

    gradients = "all"
    growth_gradient = "batch"
    smoothing: float = 0.9

    def observe(self, layers: sf.Layers) -> None:
        for layer in layers.values():
            before = layer.dense.get("momentum", torch.zeros_like(layer.gradient))
            layer.dense["momentum"] = torch.lerp(layer.gradient, before, self.smoothing)

    def grow_score(self, view: sf.View) -> torch.Tensor:
        return view.state("momentum").abs()

    def update(self, layers: sf.Layers) -> dict[str, torch.Tensor]:
        active = [len(layer.indices) for layer in layers.values()]
        drop = [self.dropped(layers.moment, n) for n in active]
        score = [self.grow_score(layer.active) for layer in layers.values()]
        mean = [each.mean().nan_to_num().item() for each in score]  # without a connection: 0
        room = [c.size - n + d for c, n, d in zip(layers.values(), active, drop, strict=True)]
        each = zip(layers, drop, shared(sum(drop), mean, room), strict=True)
        return {name: self.regrown(layers[name], less, more) for name, less, more in each}


@sf.register_method("granet", label="GraNet", mask={"kind": "erk", "density": 0.5})
@dataclass(frozen=True)
class GraNet(sf.RigL):
    """Gradual pruning with zero-cost neuroregeneration (Liu et al. 2021, algorithm 1).

    At each update the network is pruned globally by magnitude to a cubic schedule, then every
    layer drops a fraction of its smallest weights and grows as many of the largest gradients.
    """

    density: sf.Cubic = sf.cubic(initial=0.5)
    until: float = 0.5  # share of the training in which it is pruned

    def bound(self, task: sf.topology.Task) -> "GraNet":
        early = replace(task, last_update=round(self.until * task.steps))
        return replace(super().bound(task), density=self.density.bound(early))

    def update(self, layers: sf.Layers) -> dict[str, torch.Tensor]:
        values = torch.cat([layer.values.abs() for layer in layers.values()])
        budget = round(self.density(layers.moment.step) * sum(c.size for c in layers.values()))
        largest = torch.zeros_like(values, dtype=torch.bool)
        largest[values.sort(descending=True, stable=True).indices[:budget]] = True
        after, parts = {}, largest.split([len(layer.indices) for layer in layers.values()])
        for (name, layer), part in zip(layers.items(), parts, strict=True):
            again = self.dropped(layers.moment, int(part.sum()))
            after[name] = self.regrown(layer, int((~part).sum()) + again, again)
        return after
