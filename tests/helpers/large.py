"""Prints the largest tensor that work on a 3,000 × 3,000 layer at 99.9 % makes.

Apart from the tests, whose checks of annotations look into masks.
"""

import sys

import torch
from helpers.scatter import ScatterLinear
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sparseflow as sf
from sparseflow.masks import entries
from sparseflow.topology import view

SIZE, LIMIT = 3000, 1 << 18


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation returned."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(found) if isinstance(t, Tensor)]
        self.entries = max([self.entries, *sizes])
        return found


class Cheap(ScatterLinear):
    """Multiplies by the non-zeros alone."""

    def forward(self, x):
        rows, columns = self.indices() // SIZE, self.indices() % SIZE
        out = torch.zeros(len(x), SIZE).index_add(1, rows, x[:, columns] * self.values)
        if out.requires_grad:
            out.register_hook(lambda dy: self._remember(x, dy))
        return out


def loss(model, x):
    return (model(x) - 1).square().mean()


def work(layer, masks, method, x):
    """Attach, train for a step that updates, and do whatever is done with masks."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    topology = sf.attach(layer, optimizer, masks, method)
    loss(layer, x).backward()
    optimizer.step()
    after = topology.masks
    assert topology.updates == 1
    topology.load_state_dict(topology.state_dict())
    assert 0 < sf.churn(masks, after) <= 0.5
    assert after != masks
    assert len(after.digest()) == 64
    assert str(after.nnz) in repr(after).replace(",", "")
    assert round(after.densities["weight"] * SIZE**2) == after.nnz
    sf.gradient_flow(layer, loss, x, after)
    sf.step_decrease(layer, loss, x, after, lr=0.1)
    if method.growth_gradient != "batch":
        sf.propose(method, layer, after, sf.Moment(1))
    some = sf.Masks.from_indices({"weight": (after.indices("weight")[::2], (SIZE, SIZE))})
    some.apply(layer)
    assert torch.equal(layer.indices(), some.indices("weight"))


def main():
    view.BLOCK = entries.BLOCK = LIMIT
    torch.manual_seed(0)
    torch.set_num_threads(1)
    indices = torch.randperm(SIZE**2)[: SIZE**2 // 1000].sort().values
    masks = sf.Masks.from_indices({"weight": (indices, (SIZE, SIZE))})
    x, now, half = torch.randn(4, SIZE), sf.every(1), sf.constant(0.5)
    for way in ("set", "rigl", "probe", "pruning"):
        layer = Cheap((SIZE, SIZE), indices, torch.randn(len(indices)), torch.zeros(SIZE))
        method = {
            "set": sf.SET(now, half),
            "rigl": sf.RigL(now, half),
            "probe": sf.RigL(now, half, sf.probe_gradient(layer, loss, x)),
            "pruning": sf.GradualPruning(0.0005, 0, 1, 1),
        }[way]
        with Largest() as largest:
            work(layer, masks, method, x)
        print(largest.entries)


if __name__ == "__main__":
    sys.exit(main())
