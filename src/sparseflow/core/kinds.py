"""Which module types hold weights that can be sparse, and how their connections run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from sparseflow.core.errors import MaskError, unknown

Layout = Literal["out_in", "in_out", "lookup"]


@dataclass(frozen=True)
class Kind:
    """What is known of one module type.

    Attributes:
        weights: regular expression of the names of its weights, in full.
        layout: how their connections run.
        default: whether its weights are taken when nobody asks for a type.
    """

    weights: str
    layout: Layout
    default: bool = False


_KINDS: dict[type[nn.Module] | str, Kind] = {
    **dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), Kind("weight", "out_in", True)),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), Kind("weight", "in_out")
    ),
    nn.MultiheadAttention: Kind(r"(in|q|k|v)_proj_weight", "out_in"),
    nn.RNNBase: Kind(r"weight_(ih|hh|hr)_l\d+(_reverse)?", "out_in"),
    nn.RNNCellBase: Kind(r"weight_(ih|hh)", "out_in"),
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), Kind("weight", "lookup")),
    # GPT-2's linear layer: its weight is (in, out).
    "transformers.pytorch_utils.Conv1D": Kind("weight", "in_out", True),
}


def register_layout(
    module: type[nn.Module] | str, layout: str, *, weights: str = "weight", default: bool = True
) -> None:
    """Make the weights of a module type known to :func:`sparseflow.maskable`.

    Subclasses of a known type are known as it is, so that this is for modules
    with weights of their own. The type nearest in the order of inheritance counts.

    Args:
        module: the type, or its full name (``package.module.Type``), so that the
            package need not be imported.
        layout: ``out_in`` for weights (out, in / groups, *kernel), as of a Linear,
            ``in_out`` for (in, out / groups, *kernel), as of a transposed
            convolution; both heed ``module.groups``. ``lookup`` for (rows,
            features), as of an Embedding.
        weights: regular expression that matches the names of its weights in full.
        default: whether they are taken when ``maskable`` is not told a type.

    Raises:
        MaskError: if the layout is unknown or the expression cannot be read.

    Example:
        >>> import torch, sparseflow as sf
        >>> class Transposed(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.kernel = nn.Parameter(torch.ones(3, 2))  # 3 inputs, 2 neurons
        >>> sf.register_layout(Transposed, "in_out", weights="kernel")
        >>> layer = sf.maskable(Transposed())["kernel"]
        >>> layer.neurons(layer.parameter).shape
        torch.Size([2, 3])
    """
    layouts: dict[str, Layout] = {name: name for name in get_args(Layout)}
    if layout not in layouts:
        raise MaskError(unknown("layout", layout, layouts))
    try:
        re.compile(weights)
    except re.error as error:
        raise MaskError(f"weights={weights!r} is no regular expression: {error}") from error
    _KINDS[module] = Kind(weights, layouts[layout], default)


def kind_of(module: type[nn.Module]) -> Kind | None:
    """Return what is known of a module type, or None."""
    for base in module.__mro__:
        kind = _KINDS.get(base) or _KINDS.get(f"{base.__module__}.{base.__qualname__}")
        if kind is not None:
            return kind
    return None


def default_names() -> str:
    """Name the types that are taken when nobody asks for a type."""
    kinds = [
        of if isinstance(of, str) else of.__name__ for of, kind in _KINDS.items() if kind.default
    ]
    return ", ".join(name.rpartition(".")[2] for name in kinds)
