"""A truly sparse layer in plain torch, to test what works on any such layer."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.parameters import SparseWeight, named_weights, replace_data


class ScatterLinear(nn.Module, SparseWeight):
    """A linear layer that holds its non-zeros and makes the dense weight in every pass."""

    def __init__(self, shape: tuple[int, int], indices: Tensor, values: Tensor, bias: Tensor):
        super().__init__()
        self.shape = torch.Size(shape)
        self.record: list[Any] | None = None
        self.values = nn.Parameter(values.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.register_buffer("_places", indices.clone())

    def indices(self) -> Tensor:
        return self._places

    def set_topology(self, indices: Tensor, values: Tensor) -> None:
        self._places = indices.clone()
        replace_data(self.values, values.detach().clone())

    def weight_gradient(self, rows: slice) -> Tensor:
        assert self.record, "nothing was recorded"
        return sum(dy[:, rows].t() @ x for x, dy in self.record)

    def dense(self) -> Tensor:
        zeros = self.values.new_zeros(self.shape.numel())
        return zeros.scatter(0, self._places, self.values).view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.linear(x, self.dense(), self.bias)
        if out.requires_grad:
            out.register_hook(partial(self._remember, x.detach()))
        return out

    def _remember(self, x: Tensor, dy: Tensor) -> None:
        if self.record is not None:
            self.record.append((x, dy))

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: Any) -> None:
        values = state[f"{prefix}values"]
        self.set_topology(state[f"{prefix}_places"], values)
        super()._load_from_state_dict(state, prefix, *rest)


def scattered(model: nn.Sequential, masks: sf.Masks) -> nn.Sequential:
    """The same network with a sparse layer for each mask."""
    parts = []
    for i, module in enumerate(model):
        if f"{i}.weight" in masks:
            indices = masks.indices(f"{i}.weight")
            values = module.weight.flatten()[indices]
            shape = (module.out_features, module.in_features)
            parts.append(ScatterLinear(shape, indices, values, module.bias))
        else:
            parts.append(module)
    return nn.Sequential(*parts)


def connections(
    model: nn.Module, optimizer: torch.optim.Optimizer, masks: sf.Masks
) -> dict[str, dict[str, Tensor]]:
    """Weight, gradient and optimiser state of every active connection, in either execution."""
    found = {}
    for name, parameter in named_weights(model).items():
        state = {k: s for k, s in optimizer.state[parameter].items() if isinstance(s, Tensor)}
        tensors = {"weight": parameter.detach(), "gradient": parameter.grad, **state}
        if name in masks and parameter.ndim > 1:
            where = masks[name]
            tensors = {k: t[where] if t.shape == where.shape else t for k, t in tensors.items()}
        found[name] = {k: t.clone() for k, t in tensors.items()}
    return found
