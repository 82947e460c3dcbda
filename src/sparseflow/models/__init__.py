"""Plain modules by name, with widths that can be shrunk to a parameter budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from sparseflow.core.errors import SpecError, unknown

Builder = Callable[[Sequence[int]], nn.Module]

LENET5_WIDTHS = (6, 16, 120, 84)
MLP_WIDTHS = (300, 100)


def lenet5(widths: Sequence[int] = LENET5_WIDTHS) -> nn.Sequential:
    """LeNet5 of the paper: two valid 5×5 convolutions, ReLU, max-pool, three dense layers.

    Input (n, 1, 28, 28), output (n, 10). Biases start at zero; kernels are left
    as PyTorch draws them, to be initialised by :func:`sparseflow.initialise`.
    """
    first, second, third, fourth = widths
    return _zero_biases(
        nn.Sequential(
            nn.Conv2d(1, first, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * 16, third),
            nn.ReLU(),
            nn.Linear(third, fourth),
            nn.ReLU(),
            nn.Linear(fourth, 10),
        )
    )


def mlp(widths: Sequence[int] = MLP_WIDTHS) -> nn.Sequential:
    """LeNet-300-100 of the paper: dense layers with ReLU on flattened 28×28 images."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise([784, *widths]):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return _zero_biases(nn.Sequential(*layers, nn.Linear(widths[-1], 10)))


def _zero_biases(model: nn.Sequential) -> nn.Sequential:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model


MODELS: dict[str, tuple[Builder, tuple[int, ...]]] = {
    "lenet5": (lenet5, LENET5_WIDTHS),
    "mlp": (mlp, MLP_WIDTHS),
}


def build(name: str, widths: Sequence[int] = ()) -> nn.Module:
    """Build a model by name, with its own widths or the given ones.

    Raises:
        SpecError: if the name is unknown or the number of widths is wrong.
    """
    if name not in MODELS:
        raise SpecError(unknown("model", name, MODELS))
    builder, default = MODELS[name]
    chosen = tuple(widths) or default
    if len(chosen) != len(default) or min(chosen) < 1:
        raise SpecError(
            f"widths {list(chosen)} do not fit {name}: it wants {len(default)} positive "
            f"numbers such as {list(default)}"
        )
    return builder(chosen)


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def solve_widths(builder: Builder, widths: Sequence[int], budget: int) -> tuple[int, ...]:
    """Shrink all widths by one factor so that the model has about ``budget`` parameters.

    The factor is bisected; the widths of the nearest parameter count win, and
    none goes below 1.

    Raises:
        SpecError: if even widths of 1 are over twice the budget.

    Example:
        >>> solve_widths(mlp, MLP_WIDTHS, 5_734)
        (7, 2)
    """

    def shrunk(factor: float) -> tuple[int, ...]:
        return tuple(max(1, round(factor * w)) for w in widths)

    low, high = 0.0, 1.0
    tried: dict[tuple[int, ...], int] = {}
    for _ in range(40):
        middle = (low + high) / 2
        count = parameters(builder(shrunk(middle)))
        tried[shrunk(middle)] = count
        low, high = (middle, high) if count < budget else (low, middle)
    best = min(tried, key=lambda w: abs(tried[w] - budget))
    if tried[best] > 2 * budget:
        raise SpecError(f"no widths fit {budget} parameters: widths of 1 need {tried[best]}")
    return best
