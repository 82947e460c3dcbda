"""Attach masks and a method to any optimiser."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from sparseflow.masks import Masks
from sparseflow.topology.method import Method
from sparseflow.topology.topology import Around, Topology


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    masks: Masks | Mapping[str, Tensor],
    method: Method,
    *,
    seed: int = 0,
    around: Around | None = None,
    process_group: ProcessGroup | None = None,
    fresh_steps: bool = True,
) -> Topology:
    """Keep a model sparse under any optimiser, and change its masks as a method says.

    From now on, after every ``optimizer.step()``: inactive weights, and every
    optimiser-state tensor of the weight's shape, are exactly zero; on the steps
    that the method names, masks have changed. Newly grown connections start at
    zero with clean state; one dropped and grown at once keeps both. Clean means
    zero, also where an optimiser's fresh state is another value (Rprop's step
    sizes, Adagrad's initial accumulator). Adafactor's factored state has no
    place per weight and stays as it is.

    Grown connections take their steps as under a fresh optimiser: where it counts
    steps (Adam, AdamW, NAdam, RAdam, Adamax, Adagrad with ``lr_decay``), each
    connection's bias correction goes by its own age. Under the optimiser's own
    count they would move by √((1 - β₂^t) / (1 - β₂)) · (1 - β₁) / (1 - β₁^t) learning
    rates on their first step, 2.5 at t = 1,000 with Adam's defaults, a cause of the
    jump of the loss after an update (SMET, arXiv 2606.00888).

    The training loop does not change: accumulation, clipping, parameter groups, closures,
    ``GradScaler`` and sharpness-aware optimisers work as before; a step that is skipped is
    none. Growth sees the dense gradient of what the step reads, scaled as ``.grad`` was,
    whether backward passes or you have set it; where that is not known, the step is refused.
    A weight without a gradient, frozen or of an expert that was idle, keeps its connections
    at that update. A non-finite growth gradient defers it to the next step. ``method.due``
    may be asked about one step more than once.

    In a data-parallel job every rank attaches alike, and all have the same masks
    at every step: growth follows the mean gradient over ranks, and a digest of
    the masks is compared here, at each update and when a state is loaded. Names
    are those of the bare model, also where it is inside a
    ``DistributedDataParallel``. Parameters sharded by ``fully_shard`` keep
    their shards; masks are whole on every rank.

    Args:
        model: the model whose parameters the masks name.
        optimizer: any first-order optimiser that holds these parameters.
        masks: from :func:`sparseflow.sparsify` or your own bool tensors.
        method: :class:`Static`, :class:`SET`, :class:`RigL`, ...
        seed: of random growth, stream ("update", step, parameter name).
        around: a context-manager factory entered around every mask update, for
            measurements just before and just after it.
        process_group: the ranks that train this model together; by default those
            of its ``DistributedDataParallel``, else all that there are. Ranks that
            train models of their own give a group of one.
        fresh_steps: count the steps of grown connections from their growth. With
            ``False`` they go by the optimiser's count.

    Returns:
        The :class:`Topology`; ``.masks`` are the current masks.

    Raises:
        TopologyError: for LBFGS, an object that is not a method, or parameters
            that are frozen, attached already (to any optimiser) or not held by this one;
            for an optimiser whose state is nested or of low precision, out of the reach of
            masks, or that counts steps in a way that is not known (see ``fresh_steps``);
            in a CUDA graph's capture if the method changes masks; on all ranks if their
            masks differ, now or at an update.
        MaskError: if the masks do not fit the model.

    Example:
        >>> import sparseflow as sf
        >>> net = nn.Linear(10, 10)
        >>> masks = sf.sparsify(net, density=0.2, pattern="constant_fan_in")
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> topology = attach(net, optimizer, masks, sf.RigL(sf.every(1)))
        >>> net(torch.ones(4, 10)).square().mean().backward()
        >>> optimizer.step()
        >>> topology.updates, topology.masks.nnz, int(net.weight.count_nonzero()) <= 20
        (1, 20, True)
    """
    return Topology(
        model, optimizer, Masks(masks), method, seed, around, process_group, fresh_steps
    )
