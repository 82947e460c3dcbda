"""Models and states in the forms that measurements take, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparseflow.core.errors import MeasureError
from sparseflow.core.parameters import sparse_weights
from sparseflow.core.wrappers import bare
from sparseflow.masks import Masks
from sparseflow.masks.positions import comparable
from sparseflow.sparse import to_dense

State = Mapping[str, Tensor]


def real(tensor: Tensor) -> Tensor:
    """A tensor's numbers in float64; complex ones by real and imaginary part along a last axis."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def dense_form(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module, Masks]:
    """The dense form of a truly sparse model, with its topology among the masks.

    A dense model is returned as it is, without its wrappers.

    Raises:
        MaskError: if the masks do not fit the model.
    """
    values = masks if isinstance(masks, Masks) else Masks(masks or {})
    values.check(model)
    layers = sparse_weights(model)
    if not layers:
        return bare(model), values
    topology = Masks.from_indices(
        {name: (layer.indices(), layer.shape) for name, layer in layers.items()}
    )
    entries = {name: topology.entry(name) for name in topology}
    return to_dense(bare(model)), Masks(entries | {name: values.entry(name) for name in values})


def fitted(model: nn.Module, states: Mapping[str, State]) -> tuple[nn.Module, dict[str, State]]:
    """Model and labelled states in dense form: every parameter there, nothing unknown.

    Raises:
        MeasureError: naming the state, the tensor and both shapes.
    """
    if sparse_weights(model):
        model, _ = dense_form(model)
    parameters = dict(model.named_parameters())
    dense = comparable(states, {name: p.shape for name, p in parameters.items()})
    expected = {**parameters, **dict(model.named_buffers()), **model.state_dict()}
    kind = type(model).__name__
    for label, state in dense.items():
        for name in parameters:
            if name not in state:
                raise MeasureError(f"{label} has no {name!r}, a parameter of {kind}")
        for name, tensor in state.items():
            if name not in expected:
                raise MeasureError(f"{label} has {name!r}, which {kind} does not have")
            if tensor.shape != expected[name].shape:
                raise MeasureError(
                    f"{name!r} has shape {tuple(tensor.shape)} in {label} and "
                    f"{tuple(expected[name].shape)} in {kind}"
                )
    return model, {**dense}


def check_same(states: Mapping[str, State]) -> None:
    """Compare names and shapes of labelled states with those of the first.

    Raises:
        MeasureError: naming the first tensor that differs, both shapes and labels.
    """
    (label, first), *others = states.items()
    for other, state in others:
        if set(first) != set(state):
            odd = ", ".join(sorted(set(first) ^ set(state)))
            raise MeasureError(f"the names in {label} and {other} differ in: {odd}")
        for name, tensor in first.items():
            if tensor.shape != state[name].shape:
                raise MeasureError(
                    f"{label} and {other} hold tensors of different shapes under one name: "
                    f"{name!r} is {tuple(tensor.shape)} and {tuple(state[name].shape)}"
                )


def check_finite(states: Mapping[str, State], names: Iterable[str]) -> None:
    """Refuse NaN and infinite weights.

    Raises:
        MeasureError: naming the state and the first tensor that holds one.
    """
    for name in names:
        for label, state in states.items():
            bad = state[name].detach()[~state[name].isfinite()]
            if len(bad):
                raise MeasureError(
                    f"{name!r} of {label} holds weights that are not finite: {len(bad)} of "
                    f"{state[name].numel()}, the first {float(bad[0])}"
                )
