"""A small network and its data, for the tests of attach, measurement and training."""

import torch
from torch import Tensor, nn


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
    loss(model, batch(step, model[0].weight.dtype)).backward()
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
