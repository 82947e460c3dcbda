"""States of dense and truly sparse models side by side: entry for entry at the same positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparseflow.core.errors import MeasureError
from sparseflow.core.parameters import SPARSE_STATE
from sparseflow.core.select import find
from sparseflow.masks.state import NonZeros


def at_union(weights: Sequence[NonZeros]) -> list[Tensor]:
    """Values of weights of one shape at every position that is active in any of them.

    All of them are zero elsewhere: the vectors are as far apart as the dense weights.

    >>> a = NonZeros(torch.tensor([0, 2]), torch.tensor([1.0, 2.0]), torch.Size([4]))
    >>> b = NonZeros(torch.tensor([2, 3]), torch.tensor([5.0, 7.0]), torch.Size([4]))
    >>> [values.tolist() for values in at_union([a, b])]
    [[1.0, 2.0, 0.0], [0.0, 5.0, 7.0]]
    """
    union = torch.cat([weight.indices for weight in weights]).unique()
    vectors = []
    for weight in weights:
        values = weight.values.new_zeros(len(union))
        values[find(weight.indices, union)[0]] = weight.values
        vectors.append(values)
    return vectors


def comparable(
    states: Mapping[str, Mapping[str, Tensor]], shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Bring every weight to one form in all states.

    The ``state_dict()`` of a truly sparse model holds a weight ``fc.weight`` as
    ``fc.values`` with rows and columns. Here it stands under the weight's name:
    dense, if its shape is given or another state holds it dense, else by its
    values at all positions that are active in any of the states.

    Args:
        states: label -> state, of models of one architecture.
        shapes: shapes of weights that are to be dense.

    Raises:
        MeasureError: if a sparse weight does not fit the shape that it has elsewhere.
    """
    full = {label: dict(state) for label, state in states.items()}
    last = SPARSE_STATE[-1]
    ends = {name for state in states.values() for name in state if name.endswith(last)}
    for prefix in sorted(name.removesuffix(last) for name in ends):
        name = f"{prefix}weight"
        held = {
            label: [state.pop(prefix + local) for local in SPARSE_STATE]
            for label, state in full.items()
            if all(prefix + local in state for local in SPARSE_STATE)
        }
        elsewhere = [state[name].shape for state in full.values() if name in state]
        shape = (shapes or {}).get(name, *elsewhere[:1])
        weights = _non_zeros(name, held, None if shape is None else torch.Size(shape))
        values = at_union(weights) if shape is None else [weight.dense() for weight in weights]
        for label, value in zip(held, values, strict=True):
            full[label][name] = value
    return full


def _non_zeros(
    name: str, held: Mapping[str, Sequence[Tensor]], shape: torch.Size | None
) -> list[NonZeros]:
    """The weight of each state by its flat positions."""
    if shape is None:
        # Any width gives comparable positions, as long as it is the same for all.
        width = 1 + max(int(c.max()) if len(c) else 0 for _, _, c in held.values())
        shape = torch.Size([len(next(iter(held.values()))[1]) - 1, width])
    width, weights = shape[1:].numel(), []
    for label, (values, pointers, columns) in held.items():
        rows = torch.arange(len(pointers) - 1, device=pointers.device)
        if len(rows) != shape[0] or (len(columns) and int(columns.max()) >= width):
            raise MeasureError(
                f"{name!r} of {label} has {len(rows)} rows and columns up to "
                f"{int(columns.max()) if len(columns) else 0}; it should have shape {tuple(shape)}"
            )
        indices = rows.repeat_interleave(pointers.diff().long()) * width + columns
        weights.append(NonZeros(indices, values.detach(), shape))
    return weights
