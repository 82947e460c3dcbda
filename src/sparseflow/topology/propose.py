"""The update that a method would make, on any network and without training it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparseflow.core.errors import TopologyError
from sparseflow.core.random import generator
from sparseflow.core.schedules import Moment
from sparseflow.masks import Masks
from sparseflow.topology.methods import Method, View


@torch.no_grad()
def propose(
    method: Method, model: nn.Module, masks: Mapping[str, Tensor], moment: Moment, *, seed: int = 0
) -> Masks:
    """Masks that a method would give this network now; the network is left alone.

    The same network can so be updated counterfactually by every rule, and by
    random ones many times (Evci et al. 2022, figure 3). Apply the masks with
    ``masks.apply(model)`` to make the update.

    Args:
        method: any method; one that grows by gradient must bring its own
            source, such as :func:`sparseflow.probe_gradient`, since there is no
            training batch here.
        model: the network.
        masks: its masks now.
        moment: step and learning-rate ratio that the drop fraction follows.
        seed: of random growth; the same draws as :func:`sparseflow.attach`
            makes at ``moment.step``.

    Raises:
        TopologyError: for a method that grows from the training batch, or a
            growth gradient that is not finite.
        MaskError: if the masks do not fit the model.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Linear(10, 10)
        >>> masks = sf.sparsify(net, density=0.2, pattern="constant_fan_in")
        >>> after = propose(sf.SET(), net, masks, sf.Moment(100, 1.0))
        >>> after.nnz == masks.nnz, after == masks
        (True, False)
    """
    values = masks if isinstance(masks, Masks) else Masks(masks)
    values.check(model)
    source = method.growth_gradient
    if source == "batch":
        raise TopologyError(
            f"{type(method).__name__} grows from the training batch, and there is none: "
            "give it grow_from=sf.probe_gradient(model, loss, batch)"
        )
    named = dict(model.named_parameters())
    parameters = {name: named[name] for name in values}
    gradients = None if source is None else with_zeros(source(), parameters)
    bad = [n for n, g in (gradients or {}).items() if not bool(torch.isfinite(g).all())]
    if bad:
        raise TopologyError(f"the growth gradient of {', '.join(bad)} is not finite")
    return updated(method, parameters, values, gradients, moment, seed)


def updated(
    method: Method,
    parameters: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor] | None,
    moment: Moment,
    seed: int,
) -> Masks:
    """Ask the method for the mask of every layer."""
    after = {}
    for name, parameter in parameters.items():
        stream = generator(seed, "update", moment.step, name)
        grad = None if gradients is None else gradients[name]
        view = View(name, parameter.detach(), masks[name], grad, moment, stream)
        after[name] = method.update(view)
    return Masks(after)


def with_zeros(
    gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of these parameters, zero where the loss does not depend on one."""
    return {n: gradients.get(n, torch.zeros_like(p)) for n, p in parameters.items()}
