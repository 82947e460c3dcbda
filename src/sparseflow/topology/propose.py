"""The update that a method would make, on any network and without training it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from sparseflow.core.errors import TopologyError
from sparseflow.core.functional import RowGradient
from sparseflow.core.parallel import Ranks
from sparseflow.core.random import generator
from sparseflow.core.schedules import Moment
from sparseflow.masks import Masks
from sparseflow.masks.masks import check_padding, warn_of_empty
from sparseflow.topology.memory import Memory
from sparseflow.topology.method import Method
from sparseflow.topology.view import Connections, Layers, NotFiniteError
from sparseflow.topology.weights import Weight, by_rows, held, weights_under


@torch.no_grad()
def propose(
    method: Method, model: nn.Module, masks: Mapping[str, Tensor], moment: Moment, *, seed: int = 0
) -> Masks:
    """Masks that a method would give this network now; the network is left alone.

    The same network can so be updated counterfactually by every rule, and by
    random ones many times (Evci et al. 2022, figure 3). Apply the masks with
    ``masks.apply(model)`` to make the update.

    A weight of which the source has no gradient, frozen for instance, keeps its connections.

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
    name = type(method).__name__
    if method.gradients == "all":
        raise TopologyError(f"{name} looks at the gradient of every step, and there are none here")
    if source is not None and not callable(source):
        raise TopologyError(
            f"{name} grows from the training {source}, which is not there: "
            "give it grow_from=sf.probe_gradient(model, loss, batch)"
        )
    gradients = None if source is None else source()
    there = weights if gradients is None else {n: weights[n] for n in weights if n in gradients}
    try:
        layers = look(
            there,
            held(weights, values),
            gradients,
            dict.fromkeys(weights, moment),
            seed,
            Ranks(),
            memory=Memory(),
        )
        return updated(method, weights, layers, values)
    except NotFiniteError as error:
        raise TopologyError(str(error)) from error


def look(
    weights: Mapping[str, Weight],
    masks: Masks,
    gradients: Mapping[str, Tensor | RowGradient] | None,
    moments: Mapping[str, Moment],
    seed: int,
    ranks: Ranks,
    memory: Memory,
) -> Layers:
    """Show weights to a method, each at its moment; nothing is copied before it is asked for."""
    moment = next(iter(moments.values()))
    layers = []
    for name, weight in weights.items():
        rows = None if gradients is None else by_rows(weight, gradients.get(name), ranks)
        entry = masks.entry(name)
        connections = Connections(
            name,
            weight.shape,
            entry.indices(),
            moments[name],
            generator(seed, "update", moment.step, name),
            partial(weight.read, entry),
            weight.is_dense,
            rows,
            memory.state[name],
            memory.dense[name],
            weight.padding,
        )
        layers.append(connections)
    stream = generator(seed, "update", moment.step)
    return Layers(layers, moment, stream, memory.whole)


def updated(method: Method, weights: Mapping[str, Weight], layers: Layers, masks: Masks) -> Masks:
    """Ask the method for the masks of the layers that it sees; others keep theirs.

    Raises:
        NotFiniteError: if a growth gradient is not finite.
        MaskError: if the method returns what are not sorted positions, or connections
            in the row of an embedding that stands for padding.
        TopologyError: if it leaves a layer out, or names one that is not there.
    """
    after = method.update(layers)
    if odd := sorted(set(after) ^ set(layers)):
        raise TopologyError(
            f"{type(method).__name__}.update must return all layers: {', '.join(odd)}"
        )
    for connections in layers.values():
        connections.check_gradient()
    changed = positions({name: weights[name] for name in layers}, after)
    for name, connections in layers.items():
        if connections.padding is not None:
            check_padding(name, changed[name], connections.padding)
    emptied = [n for n, c in layers.items() if len(c.indices) and not changed.counts[n]]
    warn_of_empty(
        [name for name in emptied if not method.empties(name)],
        f"by {type(method).__name__} at step {layers.moment.step}",
        "give it a higher density, or densities by layer",
    )
    return held(weights, Masks({n: (changed if n in layers else masks).entry(n) for n in weights}))


def stored_by(
    method: Method,
    weights: Mapping[str, Weight],
    layers: Layers,
    masks: Masks,
    before: Masks | None,
) -> Masks | None:
    """Where weights live on: what the method says of the layers it sees, and the masks themselves.

    A weight that it does not see keeps what it has. None for a method that stores no more.

    Raises:
        TopologyError: if it leaves a layer out, or names one that is not there.
    """
    answer = method.stored(layers)
    if answer is None:
        return None
    if odd := sorted(set(answer) ^ set(layers)):
        raise TopologyError(
            f"{type(method).__name__}.stored must return all layers and no others: {', '.join(odd)}"
        )
    places = {n: torch.cat([answer[n], masks.indices(n)]).unique() for n in answer}
    if before is not None:
        places = {n: before.indices(n) for n in masks} | places
    return positions(weights, {name: places[name] for name in masks})


def positions(weights: Mapping[str, Weight], found: Mapping[str, Tensor]) -> Masks:
    """Masks of sorted flat positions by name, held as the weights need them."""
    return held(weights, Masks.from_indices({n: (found[n], w.shape) for n, w in weights.items()}))
