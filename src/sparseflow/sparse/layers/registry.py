"""The registry of layer types: which dense layers have a sparse form, and which it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from sparseflow.core.errors import MaskError
from sparseflow.core.layouts import layout_of
from sparseflow.sparse.layers.base import SparseLayer

Form = TypeVar("Form", bound=type[SparseLayer])

SPARSE_FORMS: dict[type[nn.Module], type[SparseLayer]] = {}
"""The registry of layer types: sparse layers by the exact type of the dense ones."""


def sparse_form(dense: type[nn.Module]) -> Callable[[Form], Form]:
    """Register a class of sparse layers as the form of a dense one.

    How the dense weight's axes run is not said again: :func:`sparseflow.register_layout`
    has it.

    Raises:
        MaskError: if the weight of the dense layer is not known as (out, ...).
    """
    layout = layout_of(dense)
    if layout is None or (layout.weights, layout.layout) != ("weight", "out_in"):
        raise MaskError(
            f"{dense.__name__} must have a weight (out, ...), made known with "
            "sf.register_layout(..., 'out_in'), to have a sparse form"
        )

    def register(form: Form) -> Form:
        form.dense_type = dense
        SPARSE_FORMS[dense] = form
        return form

    return register


def has_sparse_layer(model: nn.Module) -> bool:
    """Whether a model, or a part of it, is a sparse layer."""
    return any(isinstance(module, SparseLayer) for module in model.modules())
