"""Initialisation of sparse layers: masked dense, layer-scaled, per-neuron fan-in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor, nn

from sparseflow.core.errors import MaskError, SpecError, unknown
from sparseflow.core.parameters import Layer, maskable, sparse_weights
from sparseflow.core.random import generator
from sparseflow.core.registry import Registry
from sparseflow.core.values import USE, Value, registering
from sparseflow.masks import Masks, make_masks
from sparseflow.masks.masks import check_padding

Counted = Literal["dense", "layer", "neuron"]
Fan = Literal["in", "out", "avg"]
Distribution = Literal["normal", "uniform"]


class Initialisation(Value):
    """Base of all initialisations: frozen dataclasses that draw the weights of a layer.

    Example:
        >>> @dataclass(frozen=True)
        ... class Constant(Initialisation):
        ...     value: float = 0.5
        ...     def draw(self, layer, mask, stream):
        ...         return torch.full(layer.shape, self.value)
        >>> net = nn.Linear(4, 2)
        >>> _ = sparsify(net, 0.5, init=Constant())
        >>> sorted(net.weight.unique().tolist())
        [0.0, 0.5]
    """

    def draw(
        self, layer: Layer, mask: Bool[Tensor, "*w"], stream: torch.Generator
    ) -> Inexact[Tensor, "*w"]:
        """Draw the weights of one layer; inactive ones are set to zero afterwards.

        Args:
            layer: the layer; ``layer.fan_in(mask)`` and ``fan_out`` count connections.
            mask: its active connections.
            stream: the random stream of this layer, on the CPU.
        """
        raise NotImplementedError


INITS: Registry[type[Initialisation]] = Registry("initialisation", USE)

C = TypeVar("C", bound=Initialisation)


@dataclass(frozen=True)
class InitMark:
    """How recipes and reports know an initialisation.

    Attributes:
        suffix: of the recipes that start from it.
        name: in results, and in the recipes that only measure at initialisation.
        label: what reports call it.
        color: in light and in dark pictures.
        dashes: of its curves, as matplotlib takes them.
        marker: of its points, likewise.
    """

    suffix: str
    name: str
    label: str
    color: tuple[str, str] = ("#7a5195", "#b98be0")
    dashes: str | tuple[int, tuple[float, ...]] = (0, (4.5, 1.4, 1.2, 1.4))
    marker: str = "v"


MASKED_DENSE, FAN_IN = "masked-dense", "fan-in"
_MARKS = {
    "dense": InitMark(
        "", MASKED_DENSE, "masked dense", ("#6f6c65", "#aaa69c"), (0, (1.2, 1.3)), "o",
    ),
    "layer": InitMark(
        "-liu", "liu", "layer-scaled (Liu et al.)", ("#0091d5", "#45b5f0"), (0, (4.5, 1.6)), "s",
    ),
    "neuron": InitMark(
        "+", FAN_IN, "per-neuron fan-in (paper's, +)", ("#d45f01", "#ff8a45"), "-", "D",
    ),
}  # fmt: skip


def marks() -> dict[str, InitMark]:
    """Marks of all initialisations by the names under which they are registered.

    >>> [mark.suffix for mark in marks().values()]
    ['', '-liu', '+']
    """
    return {entry.name: entry.facts["marks"][entry.name] for entry in INITS.entries()}


def register_init(name: str, *, label: str = "") -> Callable[[type[C]], type[C]]:
    """Make an initialisation known by name: ``--set init=NAME``, and recipes such as ``rigl-NAME``.

    Args:
        name: of the initialisation.
        label: what reports call it; by default its name.

    Raises:
        SpecError: if the name is taken, or the class is not an :class:`Initialisation`.

    Example:
        >>> @register_init("tiny")
        ... @dataclass(frozen=True)
        ... class Tiny(Initialisation):
        ...     scale: float = 1e-3
        ...     def draw(self, layer, mask, stream):
        ...         return self.scale * torch.randn(layer.shape, generator=stream)
        >>> net = nn.Linear(4, 2)
        >>> _ = sparsify(net, 0.5, init="tiny")
        >>> bool(net.weight.abs().max() < 0.01)
        True
    """
    if name in NAMED:
        raise SpecError(f"initialisation {name!r} is one of sparseflow's: choose another name")
    return registering(INITS, name, marks={name: InitMark(f"-{name}", name, label or name)})


@registering(INITS, *_MARKS, marks=_MARKS)
@dataclass(frozen=True)
class Init(Initialisation):
    """How active weights are drawn: zero mean, variance ``scale / fan``.

    Attributes:
        kind: what ``fan`` counts. ``dense``: all connections, as if there were
            no mask (masked dense). ``layer``: all connections times the layer's
            density (Liu et al. 2019: dense initialisation over the root of the
            density). ``neuron``: the active connections of the neuron itself
            (Evci et al. 2022: the paper's).
        fan: ``in``, ``out`` or the average of both; kernel positions count.
        distribution: ``normal`` (not truncated) or ``uniform``.
        scale: 2 for He, 1 for LeCun (and, with ``avg``, Glorot).

    Example:
        >>> GLOROT == Init("dense", "avg", "uniform", 1.0)
        True
    """

    kind: Counted = "neuron"
    fan: Fan = "in"
    distribution: Distribution = "normal"
    scale: float = 2.0

    def __post_init__(self) -> None:
        """Check the fields."""
        for field, allowed in (("kind", Counted), ("fan", Fan), ("distribution", Distribution)):
            if getattr(self, field) not in get_args(allowed):
                text = unknown(f"initialisation {field}", getattr(self, field), get_args(allowed))
                raise MaskError(text)
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise MaskError(f"initialisation scale={self.scale} must be positive and finite")

    def draw(
        self, layer: Layer, mask: Bool[Tensor, "*w"], stream: torch.Generator
    ) -> Inexact[Tensor, "*w"]:
        """Standard numbers, the same for every mask, times each weight's standard deviation."""
        standard = _standard(layer.values(), self.distribution, stream).to(layer.parameter.device)
        return standard.mul_(deviation(layer, mask, self).to(standard.device))


GLOROT = Init("dense", "avg", "uniform", 1.0)
NAMED: dict[str, Init] = {
    "dense": Init("dense"),
    "liu": Init("layer"),
    "fan_in": Init("neuron", "in"),
    "fan_out": Init("neuron", "out"),
    "fan_avg": Init("neuron", "avg"),
}


def find_init(init: str | Initialisation) -> Initialisation:
    """Return the initialisation of a name (He scale 2, normal), or the object itself.

    Raises:
        MaskError: if the name is unknown, or that of a class that needs arguments.
    """
    if isinstance(init, Initialisation):
        return init
    if init in NAMED:
        return NAMED[init]
    if init not in INITS:
        raise MaskError(unknown("initialisation", init, [*NAMED, *INITS]))
    try:
        return INITS[init]()
    except TypeError as error:
        raise MaskError(f"initialisation {init!r} needs arguments: {error}") from error


def deviation(layer: Layer, mask: Bool[Tensor, "*w"], init: Init) -> Float[Tensor, "*w"]:
    """Standard deviation of each weight: the root of ``scale / fan``, never the variance.

    Entries whose fan is 0 belong to no active connection and get 0.
    """
    counted = mask if init.kind == "neuron" else torch.ones_like(mask)
    if init.fan == "in":
        fan = layer.fan_in(counted).float()
    elif init.fan == "out":
        fan = layer.fan_out(counted).float()
    else:
        fan = (layer.fan_in(counted) + layer.fan_out(counted)) / 2
    if init.kind == "layer":
        # On the CPU: a GPU multiplies by 1/n where a CPU divides, and may round otherwise.
        fan = fan * mask.cpu().float().mean()
    return torch.where(fan > 0, init.scale / fan, 0.0).sqrt()


@torch.no_grad()
def initialise(
    layers: Mapping[str, Layer],
    masks: Masks,
    init: str | Initialisation = "fan_in",
    *,
    seed: int = 0,
    stream: tuple[str | int, ...] = ("init",),
) -> None:
    """Draw the weights of every masked layer in place; inactive ones become zero.

    The draw for one position does not depend on the mask, so two masks with one
    seed share their random numbers. Biases are left alone.

    Args:
        layers: from :func:`sparseflow.maskable`.
        masks: masks of (some of) these layers.
        init: an :class:`Init`, or ``dense``, ``liu``, ``fan_in``, ``fan_out``,
            ``fan_avg`` (all He: normal, scale 2).
        seed: of the stream ``(*stream, layer name)``.
        stream: name of the random stream.

    Warns:
        UserWarning: with the number of neurons that have no active input; they
            put out their bias alone.

    Raises:
        MaskError: if a mask names no layer, does not fit it, or has connections in the
            row of an embedding that stands for padding.

    Example:
        >>> net = nn.Linear(64, 32)
        >>> masks = make_masks(maskable(net), 0.25)
        >>> initialise(maskable(net), masks, "fan_in", seed=1)
        >>> int((net.weight != 0).sum()) == masks.nnz
        True
    """
    rule = find_init(init)
    dead = 0
    for name, mask in masks.items():
        if name not in layers or mask.shape != layers[name].shape:
            raise MaskError(f"mask {name!r} of shape {tuple(mask.shape)} fits no layer")
        layer, weight = layers[name], layers[name].values()
        check_padding(name, mask, layer.padding)
        draw = rule.draw(layer, mask, generator(seed, *stream, name))
        weight.copy_(draw.to(weight.device).mul(mask.to(weight.device)))
        dead += int((~layer.neurons(mask).any(1)).sum())
    if dead:
        warnings.warn(
            f"{dead} neurons have no active input: their weights are zero and they put out "
            "their bias alone",
            stacklevel=3,
        )


def _standard(weight: Tensor, distribution: str, stream: torch.Generator) -> Tensor:
    """Draws of mean 0 and E|x|² = 1; complex ones have half of it in either part."""
    if weight.is_complex():
        parts = [_standard(weight.real, distribution, stream) for _ in range(2)]
        return torch.complex(*parts) / math.sqrt(2.0)
    if distribution == "normal":
        return torch.empty(weight.shape).normal_(generator=stream)
    bound = math.sqrt(3.0)
    return torch.empty(weight.shape).uniform_(-bound, bound, generator=stream)


def sparsify(
    model: nn.Module,
    density: float | Mapping[str, float],
    *,
    allocation: str = "erk",
    pattern: str = "random",
    init: str | Initialisation | None = "auto",
    seed: int = 0,
    layers: Mapping[str, Layer] | None = None,
) -> Masks:
    """Make a model sparse in place: choose masks, draw the active weights, zero the rest.

    Args:
        model: any module, on any device.
        density: share of weights to keep, over all maskable layers or one each.
        allocation: ``uniform``, ``er``, ``erk`` or ``magnitude``.
        pattern: ``random``, ``magnitude``, ``uneven`` or ``constant_fan_in``.
        init: see :func:`initialise`; None keeps the model's own weights. ``auto`` keeps
            them if ``pattern`` chooses by magnitude, else draws by ``fan_in``.
        seed: of the masks and of the weights.
        layers: from :func:`sparseflow.maskable`, to choose what becomes sparse.

    Raises:
        MaskError: on an impossible density, an unknown name, a model
            without a weight to make sparse, or one with truly sparse layers:
            convert a model after it was made sparse.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> sparsify(net, density=0.25, seed=1).nnz == round(0.25 * (64 * 32 + 32 * 4))
        True
    """
    if done := sparse_weights(model):
        raise MaskError(
            f"{type(model).__name__} has truly sparse layers already ({', '.join(done)}): "
            "make the dense model sparse, then convert it"
        )
    chosen = maskable(model) if layers is None else layers
    masks = make_masks(chosen, density, allocation=allocation, pattern=pattern, seed=seed)
    if init == "auto":
        init = None if pattern == "magnitude" else "fan_in"
    if init is None:
        masks.apply(model)
    else:
        initialise(chosen, masks, init, seed=seed)
    return masks
