"""Which module types hold weights that can be sparse, and how the axes of these run."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from sparseflow.core.errors import MaskError, unknown
from sparseflow.core.parametrised import originals

Layout = Literal["out_in", "in_out", "lookup"]


@dataclass(frozen=True)
class WeightLayout:
    """The weights of one module type.

    Attributes:
        weights: regular expression of the names of its weights, in full.
        layout: how their axes run.
        default: whether its weights are taken when nobody asks for a type.
    """

    weights: str
    layout: Layout
    default: bool = False


_LAYOUTS: dict[type[nn.Module] | str, WeightLayout] = {
    **dict.fromkeys(
        (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), WeightLayout("weight", "out_in", default=True)
    ),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        WeightLayout("weight", "in_out"),
    ),
    nn.MultiheadAttention: WeightLayout(r"(in|q|k|v)_proj_weight", "out_in"),
    nn.RNNBase: WeightLayout(r"weight_(ih|hh|hr)_l\d+(_reverse)?", "out_in"),
    nn.RNNCellBase: WeightLayout(r"weight_(ih|hh)", "out_in"),
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), WeightLayout("weight", "lookup")),
    # GPT-2's linear layer: its weight is (in, out).
    "transformers.pytorch_utils.Conv1D": WeightLayout("weight", "in_out", True),
}


def register_layout(
    module: type[nn.Module] | str, layout: str, *, weights: str = "weight", default: bool = True
) -> None:
    """Make the weights of a module type known to :func:`sparseflow.maskable`.

    A subclass of a known type is treated as that type, so this is for modules
    with weights of their own. The nearest type in the order of inheritance counts.

    Args:
        module: the type, or its full name (``package.module.Type``), so that the
            package need not be imported.
        layout: ``out_in`` for weights (out, in / groups, *kernel), as of a Linear,
            ``in_out`` for (in, out / groups, *kernel), as of a transposed
            convolution; both take ``module.groups`` into account. ``lookup`` for (rows,
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
        raise MaskError(f"weights={weights!r} must be a regular expression: {error}") from error
    _LAYOUTS[module] = WeightLayout(weights, layouts[layout], default)


def layout_of(module: type[nn.Module]) -> WeightLayout | None:
    """Return the layout of a module type's weights, or None if it has none that is known."""
    for base in module.__mro__:
        layout = _LAYOUTS.get(base) or _LAYOUTS.get(f"{base.__module__}.{base.__qualname__}")
        if layout is not None:
            return layout
    return None


def padding_rows(model: nn.Module) -> dict[int, int]:
    """Rows of embeddings that stand for padding, by the id of the weight.

    They have no gradient and stay zero. A weight that is tied to another module's has one
    there, and is left out.
    """
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    rows: dict[int, int] = {}
    for module in model.modules():
        layout, row = layout_of(type(module)), getattr(module, "padding_idx", None)
        if layout is not None and layout.layout == "lookup" and row is not None:
            own = module.named_parameters(recurse=False)
            weights = [p for local, p in own if re.fullmatch(layout.weights, local)]
            weights += originals(module, layout.weights)
            rows |= {id(p): row for p in weights if owners[id(p)] == 1}
    return rows


def default_names() -> str:
    """Name the types that are taken when nobody asks for a type."""
    names = [
        module if isinstance(module, str) else module.__name__
        for module, layout in _LAYOUTS.items()
        if layout.default
    ]
    return ", ".join(name.rpartition(".")[2] for name in names)
