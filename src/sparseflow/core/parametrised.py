"""Weights that a module computes from other parameters: when those may be masked.

``torch.nn.utils.parametrize`` replaces a weight by a function of an *original*,
which is what the optimiser trains. A mask on the original is a mask on the
weight only if the function leaves zeros where they are. Spectral normalisation
does, and so does any elementwise function with f(0) = 0; an orthogonal or a
symmetric parametrisation does not, and weight normalisation divides by the norm
of a neuron, which is zero without active weights.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparseflow.core.errors import MaskError


def originals(module: nn.Module, pattern: str) -> Iterator[nn.Parameter]:
    """Yield the trained parameter behind each parametrised weight.

    Where there are several (weight normalisation's norm and direction) it is
    the one with the weight's shape.
    """
    for local, chain in _chains(module).items():
        if re.fullmatch(pattern, local):
            shape = getattr(module, local).shape
            yield from (p for p in chain.parameters(recurse=False) if p.shape == shape)


def computed(module: nn.Module, pattern: str) -> Iterator[str]:
    """Yield the names of weights that a forward hook computes and stores as plain attributes."""
    for local, value in vars(module).items():
        if isinstance(value, Tensor) and re.fullmatch(pattern, local):
            yield local


@torch.no_grad()
def check_zeros_stay(name: str, module: nn.Module, parameter: nn.Parameter) -> None:
    """Refuse a parametrisation under which zeros of the original are not zeros of the weight.

    Tested on a copy, with all weights of one neuron, all weights of one input and a
    random half of the rest set to zero. A parameter that is the weight itself passes.

    Raises:
        MaskError: naming the parametrisation, and what would be right.
    """
    for local, chain in _chains(module).items():
        keys = [key for key, p in chain.named_parameters(recurse=False) if p is parameter]
        if not keys:
            continue
        trial = copy.deepcopy(module).eval()
        off = _some(parameter.shape).to(parameter.device)
        _chains(trial)[local].get_parameter(keys[0]).abs_().add_(1).masked_fill_(off, 0)
        weight = getattr(trial, local)
        steps = " of ".join(type(step).__name__ for step in reversed(chain))  # type: ignore[arg-type]
        if weight.isfinite().all() and weight.shape == off.shape and not weight[off].any():
            return
        raise MaskError(
            f"the parametrisation {steps} computes {local} from {name}, and does not turn zeros of "
            "one into zeros of the other and finite values elsewhere: a mask would not hold. "
            "Remove it (torch.nn.utils.parametrize.remove_parametrizations) or pass exclude="
        )


def _chains(module: nn.Module) -> dict[str, nn.Module]:
    return dict(getattr(module, "parametrizations", {}))


def _some(shape: torch.Size) -> Bool[Tensor, "*w"]:
    """A random half of the entries, with all of the first row and of the first column."""
    off = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    off[0] = off[:, 0] = True
    return off
