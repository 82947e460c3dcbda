"""A small network and its data, and short runs, for many tests."""

import torch
from torch import Tensor, nn

from sparseflow.recipes import make_spec
from sparseflow.runs.spec import RunSpec

SHORT = ["train.steps=12", "train.keep=4", "measure.every=4", "measure.evaluate=12"]
TINY = [*SHORT, "data.probe=64", "data.limit=300"]
PARENT = [f"mask.run.{s}" for s in SHORT] + [
    "mask.run.method.start=2", "mask.run.method.stop=10", "mask.run.method.interval=2",
]  # fmt: skip


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Two layers, always with the same weights."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32, size: int = 12) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one step."""
    stream = torch.Generator().manual_seed(step)
    x = torch.randn(size, 6, generator=stream).to(dtype)
    return x, torch.randn(size, 3, generator=stream).to(dtype)


def loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error."""
    return (model(data[0]) - data[1]).square().mean()


def take(model: nn.Sequential, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step of training, as anyone writes it."""
    optimizer.zero_grad()
    loss(model, batch(step, next(model.parameters()).dtype)).backward()
    optimizer.step()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, list[Tensor]]:
    """Each parameter and its optimiser state of the same shape, copied."""

    def tensors(p: nn.Parameter) -> list[Tensor]:
        slots = sorted(optimizer.state[p].items())
        own = [s for _, s in slots if isinstance(s, Tensor) and s.shape == p.shape]
        return [t.detach().clone() for t in (p, *own)]

    return {name: tensors(p) for name, p in model.named_parameters()}


def assert_same(ours: dict[str, list[Tensor]], theirs: dict[str, list[Tensor]]) -> None:
    """Bit for bit."""
    assert list(ours) == list(theirs)
    for name, tensors in ours.items():
        assert len(tensors) == len(theirs[name])
        for a, b in zip(tensors, theirs[name], strict=True):
            assert torch.equal(a, b), name


def tiny(name: str, *extra: str, seed: int = 0) -> RunSpec:
    """A recipe of 12 steps whose parent prunes in 12 steps."""
    short = name.partition("/")[2].partition(":")[0]
    settings = [*TINY, *extra]
    if short == "prune":
        settings += ["method.start=2", "method.stop=10", "method.interval=2"]
    elif short not in ("dense", "small-dense"):
        settings += PARENT
    if short in ("lottery", "prune-restart"):
        settings += [s.replace("mask.", "weights.", 1) for s in PARENT]
    if short.startswith(("set", "rigl")):
        settings += ["method.when.n=3"]
    return make_spec(name, seed=seed, settings=settings)


def alone(*extra: str, seed: int = 0) -> RunSpec:
    """A SET run of 12 steps without a parent, which may resume every 4 steps."""
    method = ["mask=erk", "method=set", "method.when.n=3", "train.resume=4"]
    return tiny("mlp-mnist/dense", *method, *extra, seed=seed)
