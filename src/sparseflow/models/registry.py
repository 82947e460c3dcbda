"""Architectures by name, and widths that meet a parameter budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from sparseflow.core.errors import SpecError
from sparseflow.core.registry import Registry
from sparseflow.models.mnist import LENET5_WIDTHS, MLP_WIDTHS, lenet5, mlp
from sparseflow.models.resnet import (
    CIFAR_WIDTHS,
    RESNET50_WIDTHS,
    WIDE_WIDTHS,
    cifar_resnet,
    resnet50,
    wide_resnet,
)
from sparseflow.models.vgg import VGG16_WIDTHS, vgg16

Builder = Callable[[Sequence[int]], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """Networks that differ only in their widths.

    Attributes:
        builder: makes the network of given widths.
        widths: the published widths.
        data: name of the data set whose images and classes it fits.
    """

    builder: Builder
    widths: tuple[int, ...]
    data: str


MODELS: Registry[Architecture] = Registry("model", "register one with sf.register_model")


def register_model(
    name: str, *, data: str, widths: Sequence[int] = ()
) -> Callable[[Builder], Builder]:
    """Make a network known by name, for ``model.name`` of a run.

    The decorated function takes the widths and returns the module, with the
    weights that are not masked (biases, norms) as they are to start from.

    Args:
        name: its name.
        data: name of the data set that it is made for.
        widths: its own; a small dense network is made by shrinking them.

    Raises:
        SpecError: if the name is taken.

    Example:
        >>> @register_model("perceptron", data="mnist", widths=(16,))
        ... def perceptron(widths):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(784, *widths), nn.Linear(*widths, 10))
        >>> parameters(build("perceptron"))
        12730
    """

    def add(builder: Builder) -> Builder:
        made_by = builder.func if isinstance(builder, partial) else builder
        MODELS.add(name, Architecture(builder, tuple(widths), data), made_by)
        return builder

    return add


register_model("lenet5", data="mnist", widths=LENET5_WIDTHS)(lenet5)
register_model("mlp", data="mnist", widths=MLP_WIDTHS)(mlp)
for _name, _builder, _widths in (
    ("resnet20", partial(cifar_resnet, blocks=3), CIFAR_WIDTHS),
    ("resnet56", partial(cifar_resnet, blocks=9), CIFAR_WIDTHS),
    ("wrn22-2", partial(wide_resnet, blocks=3), WIDE_WIDTHS),
):
    register_model(_name, data="cifar10", widths=_widths)(_builder)
register_model("resnet50", data="imagenet", widths=RESNET50_WIDTHS)(resnet50)
register_model("vgg16", data="imagenet", widths=VGG16_WIDTHS)(vgg16)


def build(name: str, widths: Sequence[int] = ()) -> nn.Module:
    """Build a model by name, with its published widths or the given ones.

    Raises:
        SpecError: if the name is unknown or the number of widths is wrong.
    """
    default = MODELS[name].widths
    chosen = tuple(widths) or default
    if len(chosen) != len(default) or min(chosen, default=1) < 1:
        raise SpecError(
            f"widths {list(chosen)} do not fit {name}: it takes {len(default)} positive "
            f"numbers such as {list(default)}"
        )
    return MODELS[name].builder(chosen)


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def solve_widths(builder: Builder, widths: Sequence[int], budget: int) -> tuple[int, ...]:
    """Shrink all widths by one factor so that the model has about ``budget`` parameters.

    The factor is bisected; of all widths tried, those with the nearest parameter count
    are returned. None is below 1.

    Raises:
        SpecError: if a model with widths of 1 has more than twice the budget.

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
        with torch.device("meta"):
            count = parameters(builder(shrunk(middle)))
        tried[shrunk(middle)] = count
        low, high = (middle, high) if count < budget else (low, middle)
    best = min(tried, key=lambda w: abs(tried[w] - budget))
    if tried[best] > 2 * budget:
        raise SpecError(f"no widths fit {budget} parameters: widths of 1 need {tried[best]}")
    return best
