"""The verb that converts a masked dense model where that makes it faster."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow.core.errors import MaskError
from sparseflow.sparse.convert.conversion import Conversion
from sparseflow.sparse.plan.predict import worthwhile


def to_sparse(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    example_input: Any,
    *,
    force: bool = False,
) -> nn.Module:
    """Convert the masked layers of a model to truly sparse ones.

    Linear and convolution layers with a mask are replaced by layers that
    hold and compute with the non-zeros alone. The model is traced, and from the
    first sparse layer to the last activations stay in a blocked layout (16
    examples innermost); operations without a blocked form run as they are, with
    a change of layout at their border. Parameters that have no mask, and
    biases, are copied. The model given is left alone.

    Args:
        model: a dense float32 model on the CPU.
        masks: masks by parameter name; inactive weights are taken as zero.
        example_input: one input, or a tuple of positional ones; only shapes
            count. Speed is predicted for its batch size.
        force: convert layers even where they would be slower, as predicted for a
            training step, or for a forward pass if the model is in evaluation
            mode; else these stay dense, with a warning.

    Returns:
        A new model with the same inputs and outputs. Its sparse layers stand
        under the old names, with ``values`` in place of ``weight``.

    Raises:
        MaskError: if the masks do not match the model, nothing can be converted,
            or every layer would be slower.
        SparseUnavailable: if the compiled core is missing.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> masks = sf.sparsify(net, density=0.2)
        >>> x = torch.randn(32, 64)
        >>> small = to_sparse(net, masks, x, force=True)
        >>> bool(torch.allclose(small(x), net(x), atol=1e-5))
        True
        >>> [name for name, _ in small.named_parameters()][:2]
        ['0.values', '0.bias']
    """
    conversion = Conversion(model, masks, example_input)
    chosen, reasons = conversion.names, conversion.obstacles
    if not force and chosen:
        chosen, losses = worthwhile(conversion)
        reasons = reasons | losses
    if not chosen:
        why = "; ".join(f"{n}: {r}" for n, r in reasons.items()) or "there are no masks"
        raise MaskError(f"{type(conversion.model).__name__} has no layer to convert ({why})")
    if reasons:
        listed = "; ".join(f"{n} ({r})" for n, r in reasons.items())
        warnings.warn(f"left masked dense: {listed}", stacklevel=2)
    converted = conversion.build(conversion.parts(chosen))
    with torch.no_grad():
        for name, parameter in converted.named_parameters():
            if name in reasons:
                mask = conversion.masks[name].to(parameter.device)
                parameter.masked_fill_(~mask, 0)
    return converted
