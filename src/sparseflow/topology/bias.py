"""The updates of optimisers that count steps, with an age of its own for every connection.

Adam divides its moments by 1 - β^t, since they start at zero. A connection grown at
step T starts with moments of zero too, but β^t counts from the beginning of training:
its first step would be √((1 - β₂^t) / (1 - β₂)) · (1 - β₁) / (1 - β₁^t) learning rates long,
3.2 with the defaults, where a fresh Adam's is 1. Here t is the connection's own age.

An entry of :data:`UPDATES` writes one update out: which state it reads, the numbers
that depend on the age, and the weight after the step. It must be elementwise. To serve
an optimiser of one's own, add its class::

    UPDATES[MyAdam] = UPDATES[torch.optim.Adam]
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch import optim as optimisers

Group = Mapping[str, Any]
Vector = Float[Tensor, " ..."]
Ages = Any
"""Ages in float64, at least 1: an array where the optimiser's counts of steps are on the host,
which is far faster for a few, and a tensor elsewhere. Factors use what both can do."""


@dataclass(frozen=True)
class Update:
    """One step of an elementwise optimiser, for connections of any age.

    Attributes:
        moments: names of the state that it reads, each with one number a weight.
        factors: the numbers that depend on :data:`Ages`, one vector of the same kind each.
        stepped: the weights after a step, from those before it, the moments after it
            (both may be overwritten), the factors and the gradient as the moments saw it.
        gradient: whether it reads the gradient as well.
    """

    moments: Callable[[Group], Sequence[str]]
    factors: Callable[[Ages, Group], Sequence[Any]]
    stepped: Callable[[Vector, Sequence[Vector], Sequence[Vector], Vector | None, Group], Vector]
    gradient: bool = False


def update_of(optimizer: optimisers.Optimizer) -> Update | None:
    """Return how an optimiser makes a step; None if no count of steps enters it.

    Raises:
        KeyError: if it is not known, or if it is of a known class but makes its steps
            in another way.
    """
    kind = type(optimizer)
    for base in kind.__mro__:
        if base in UPDATES:
            if any(_function(kind, f) is not _function(base, f) for f in ("step", "_init_group")):
                break
            return UPDATES[base]
    raise KeyError(kind)


def _function(kind: type, name: str) -> Any:
    """A method as it was written: torch wraps ``step`` once an instance is made."""
    return inspect.unwrap(getattr(kind, name, object))


def _decayed(weight: Vector, group: Group, decoupled: bool) -> Vector:
    decay = group["weight_decay"]
    return weight.mul_(1 - group["lr"] * decay) if decoupled and decay else weight


def _decayed_gradient(gradient: Vector | None, weight: Vector, group: Group) -> Vector:
    """The gradient as the moments see it, with the decay of weights that is not decoupled."""
    assert gradient is not None
    seen = -gradient if group["maximize"] else gradient
    if group["weight_decay"] and not group.get("decoupled_weight_decay", False):
        return seen + group["weight_decay"] * weight
    return seen


def _adam_moments(group: Group) -> Sequence[str]:
    return ("exp_avg", "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq")


def _adam_factors(age: Ages, group: Group) -> Sequence[Any]:
    beta1, beta2 = group["betas"]
    return 1 / (1 - beta1**age), (1 - beta2**age) ** 0.5


def _adam(
    weight: Vector,
    moments: Sequence[Vector],
    factors: Sequence[Vector],
    gradient: Vector | None,
    group: Group,
) -> Vector:
    """Kingma & Ba 2015, algorithm 1; AdamW's decay is decoupled (Loshchilov & Hutter 2019)."""
    del gradient
    (mean, square), (longer, root) = moments, factors
    denominator = square.sqrt_().div_(root).add_(group["eps"])
    weight = _decayed(weight, group, group["decoupled_weight_decay"])
    if isinstance(rate := group["lr"], Tensor):
        return weight.sub_(mean.mul_(longer).div_(denominator).mul_(rate))
    return weight.addcdiv_(mean.mul_(longer), denominator, value=-rate)


def _nadam_factors(age: Ages, group: Group) -> Sequence[Any]:
    beta1, beta2 = group["betas"]
    momentum = _nadam_momentum(age, beta1, group["momentum_decay"])
    coming = _nadam_momentum(age + 1, beta1, group["momentum_decay"])
    products = _nadam_products(float(beta1), float(group["momentum_decay"]))
    place = age.clip(max=len(products)) - 1
    if isinstance(place, Tensor):
        product = products.to(place.device)[place.long()]
    else:
        product = products.numpy()[place.astype(int)]
    return (
        (1 - momentum) / (1 - product),
        coming / (1 - product * coming),
        (1 - beta2**age) ** 0.5,
    )


def _nadam_momentum(age: Ages, beta1: float, decay: float) -> Any:
    return beta1 * (1 - 0.5 * 0.96 ** (age * decay))


@lru_cache(maxsize=64)
def _nadam_products(beta1: float, decay: float) -> Vector:
    """Products of the momenta of ages 1, 2, ...: until they are too small to matter."""
    last = 1 + math.ceil(math.log(1e-18) / math.log(beta1)) if beta1 > 0 else 1
    ages = torch.arange(1, last + 1, dtype=torch.float64)
    return _nadam_momentum(ages, beta1, decay).cumprod(0)


def _nadam(
    weight: Vector,
    moments: Sequence[Vector],
    factors: Sequence[Vector],
    gradient: Vector | None,
    group: Group,
) -> Vector:
    """Dozat 2016, as PyTorch has it."""
    (mean, square), (of_gradient, of_mean, root) = moments, factors
    gradient = _decayed_gradient(gradient, weight, group)
    denominator = square.sqrt_().div_(root).add_(group["eps"])
    change = (of_gradient * gradient).add_(mean.mul_(of_mean)).div_(denominator)
    decoupled = group["decoupled_weight_decay"]
    return _decayed(weight, group, decoupled).sub_(change.mul_(group["lr"]))


def _radam_factors(age: Ages, group: Group) -> Sequence[Any]:
    """Of the step without and with rectification; one of the two is zero."""
    beta1, beta2 = group["betas"]
    longer, rest = 1 / (1 - beta1**age), 1 - beta2**age
    last = 2 / (1 - beta2) - 1
    length = last - 2 * age * beta2**age / rest
    rectified = length > 5
    if last <= 5:  # it never is
        return longer, 0 * longer
    above = length.clip(min=5)  # no root of a negative number where it is not used
    ratio = (above - 4) * (above - 2) * last / ((last - 4) * (last - 2) * above)
    return longer * ~rectified, longer * (ratio * rest) ** 0.5 * rectified


def _radam(
    weight: Vector,
    moments: Sequence[Vector],
    factors: Sequence[Vector],
    gradient: Vector | None,
    group: Group,
) -> Vector:
    """Liu et al. 2020, algorithm 2."""
    del gradient
    (mean, square), (plain, rectified) = moments, factors
    change = mean.mul_((rectified / square.sqrt_().add_(group["eps"])).add_(plain))
    decoupled = group["decoupled_weight_decay"]
    return _decayed(weight, group, decoupled).sub_(change.mul_(group["lr"]))


def _adamax(
    weight: Vector,
    moments: Sequence[Vector],
    factors: Sequence[Vector],
    gradient: Vector | None,
    group: Group,
) -> Vector:
    """Kingma & Ba 2015, algorithm 2."""
    del gradient
    (mean, largest), (longer,) = moments, factors
    return weight.sub_(mean.mul_(longer).div_(largest).mul_(group["lr"]))


def _adagrad(
    weight: Vector,
    moments: Sequence[Vector],
    factors: Sequence[Vector],
    gradient: Vector | None,
    group: Group,
) -> Vector:
    """Duchi et al. 2011, with PyTorch's decay of the learning rate."""
    (total,), (slower,) = moments, factors
    change = _decayed_gradient(gradient, weight, group) / total.sqrt_().add_(group["eps"])
    return weight.sub_(change.mul_(slower).mul_(group["lr"]))


_ADAM = Update(_adam_moments, _adam_factors, _adam)

UPDATES: dict[type, Update | None] = {
    optimisers.Adam: _ADAM,
    optimisers.AdamW: _ADAM,
    optimisers.NAdam: Update(_adam_moments, _nadam_factors, _nadam, gradient=True),
    optimisers.RAdam: Update(_adam_moments, _radam_factors, _radam),
    optimisers.Adamax: Update(
        lambda group: ("exp_avg", "exp_inf"),
        lambda age, group: _adam_factors(age, group)[:1],
        _adamax,
    ),
    optimisers.Adagrad: Update(
        lambda group: ("sum",),
        lambda age, group: (1 / (1 + (age - 1) * group["lr_decay"]),),
        _adagrad,
        gradient=True,
    ),
    # No count of steps enters the updates of these, or none that a connection has a share in.
    optimisers.SGD: None,
    optimisers.RMSprop: None,
    optimisers.Rprop: None,
    optimisers.Adadelta: None,
    optimisers.Adafactor: None,
    optimisers.Muon: None,
}
"""Updates by class; subclasses count if they do not override ``step``."""
