"""The update that a method would make, on any network and without training it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparseflow.core.errors import TopologyError
from sparseflow.core.functional import RowGradient
from sparseflow.core.parallel import Ranks
from sparseflow.core.random import generator
from sparseflow.core.schedules import Moment
from sparseflow.masks import Masks
from sparseflow.topology.methods import Method
from sparseflow.topology.view import Connections, NotFiniteError
from sparseflow.topology.weights import Weight, by_rows, held, weights_under


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
    values = Masks(masks)
    weights = weights_under(model, values)
    source = method.growth_gradient
    if source == "batch":
        raise TopologyError(
            f"{type(method).__name__} grows from the training batch, and there is none: "
            "give it grow_from=sf.probe_gradient(model, loss, batch)"
        )
    gradients = None if source is None else source()
    try:
        return updated(method, weights, held(weights, values), gradients, moment, seed, Ranks())
    except NotFiniteError as error:
        raise TopologyError(str(error)) from error


def updated(
    method: Method,
    weights: Mapping[str, Weight],
    masks: Masks,
    gradients: Mapping[str, Tensor | RowGradient] | None,
    moment: Moment,
    seed: int,
    ranks: Ranks,
) -> Masks:
    """Ask the method for the mask of every layer.

    Raises:
        NotFiniteError: if a growth gradient is not finite.
        MaskError: if the method returns what are no sorted positions.
    """
    after = {}
    for name, weight in weights.items():
        rows = None if gradients is None else by_rows(weight, gradients.get(name), ranks)
        connections = Connections(
            name,
            weight.shape,
            moment=moment,
            generator=generator(seed, "update", moment.step, name),
            rows_gradient=rows,
            **weight.connections(masks.entry(name)),
        )
        indices = method.update(connections)
        connections.check_gradient()
        after[name] = (indices, weight.shape)
    return held(weights, Masks.from_indices(after))
