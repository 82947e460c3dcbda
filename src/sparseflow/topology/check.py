"""What is refused when a topology is attached, and whenever ranks of one training disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sparseflow.core.errors import TopologyError
from sparseflow.core.parallel import Ranks, is_sharded
from sparseflow.core.parameters import named_weights, sparse_weights
from sparseflow.core.wrappers import bare
from sparseflow.masks import Masks
from sparseflow.topology.memory import Memory
from sparseflow.topology.method import Method
from sparseflow.topology.steps import ATTACHED
from sparseflow.topology.weights import SparseValues, Weight


def bare_names(model: nn.Module, masks: Masks) -> Masks:
    """Name masks as the model inside wrappers does, whichever way they are named."""
    inside, inner = named_weights(model), bare(model)
    prefix = next(path for path, module in model.named_modules() if module is inner) + "."
    return Masks({n if n in inside else n.removeprefix(prefix): masks.entry(n) for n in masks})


def check(model: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks, method: Method) -> None:
    """Refuse what cannot be attached.

    Raises:
        TopologyError: see :func:`sparseflow.attach`.
        MaskError: if the masks do not fit the model.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TopologyError(
            "LBFGS keeps its history as flat vectors over all parameters and searches along "
            "dense directions: masks cannot hold. Use a first-order optimiser"
        )
    if isinstance(method, type) or not isinstance(method, Method):
        hint = "make an instance of it" if isinstance(method, type) else "subclass sf.Method"
        raise TopologyError(f"{method!r} is not a method: {hint}")
    if method.growth_gradient == "probe":
        raise TopologyError(
            f"{type(method).__name__} grows from a probe, which only a run has: "
            "give it grow_from=sf.probe_gradient(model, loss, batch)"
        )
    masks.check(model)
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = named_weights(model)
    if meta := [name for name in masks if named[name].is_meta]:
        raise TopologyError(
            f"{', '.join(meta)} on the meta device have no values to keep sparse: move the model "
            'first, model.to_empty(device="cpu")'
        )
    missing = [name for name in masks if id(named[name]) not in owned]
    if missing:
        raise TopologyError(f"the optimiser does not hold the masked {', '.join(missing)}")
    frozen = [name for name in masks if not named[name].requires_grad]
    if frozen:
        raise TopologyError(f"the masked {', '.join(frozen)} are frozen: leave them out")
    taken = [name for name in masks if ATTACHED.holds(named[name])]
    if taken:
        raise TopologyError(f"{', '.join(taken)} are attached already: detach that topology first")
    check_sharding(model, masks)
    check_storage(model, masks, method)


def served(method: Method) -> bool:
    """Say whether truly sparse layers have all that a method asks for."""
    return method.gradients == "updates" and not stores_more(method)


def stores_more(method: Method) -> bool:
    """Say whether a method keeps weights beyond the mask of the forward pass."""
    return type(method).stored is not Method.stored


def check_storage(model: nn.Module, masks: Masks, method: Method) -> None:
    """Refuse a method that needs more of a weight than its layer has.

    Raises:
        TopologyError: naming the layers and what works.
    """
    layers, named = sparse_weights(model), named_weights(model)
    sparse = [name for name in masks if name in layers]
    name = type(method).__name__
    if sparse and method.gradients == "all":
        raise TopologyError(
            f"{name} asks for the dense gradient of every step, which the truly sparse "
            f"{', '.join(sparse)} do not form: use masked dense layers (execution=dense in a run)"
        )
    if not stores_more(method):
        return
    if sparse:
        raise TopologyError(
            f"{name} keeps weights beyond the mask of the forward pass, and the truly sparse "
            f"{', '.join(sparse)} have room for none: use masked dense layers"
        )
    if sharded := [n for n in masks if is_sharded(named[n])]:
        raise TopologyError(
            f"{name} keeps weights beyond the mask of the forward pass, which is not available "
            f"for the sharded {', '.join(sharded)}: train with DistributedDataParallel"
        )


def check_copy(
    optimizer: torch.optim.Optimizer, model: nn.Module, method: Method, memo: Mapping[int, Any]
) -> None:
    """Refuse the copy of a topology that would look after nothing.

    Raises:
        TopologyError: saying how to copy it.
    """
    if id(optimizer) not in memo:
        raise TopologyError(
            "a topology is copied together with what it looks after, the optimiser before it: "
            "copy.deepcopy((model, optimizer, topology)); for its masks alone take topology.masks"
        )
    copied = memo.get(id(model))
    if copied is not None and "_modules" not in vars(copied):  # that copy has only just begun
        raise TopologyError(
            "the model holds its topology, which cannot be copied before the model is: keep it "
            "elsewhere, and copy.deepcopy((model, optimizer, topology))"
        )
    if callable(method.growth_gradient):
        raise TopologyError(
            f"{type(method).__name__} grows from a function of the model that it was made for: "
            "attach a new one to the copies of model and optimiser, and load topology.state_dict()"
        )


def check_closure(method: Method, closure: bool) -> None:
    """Refuse a closure under a method that stores more than its forward pass uses.

    Raises:
        TopologyError: naming the method and what works.
    """
    if closure:
        raise TopologyError(
            f"{type(method).__name__} keeps weights beyond the mask of the forward pass, "
            "and a closure would run the network with them: call step() without one"
        )


def check_sharding(model: nn.Module, masks: Masks) -> None:
    """Refuse what is sharded in any other way than ``fully_shard`` does it by default.

    Raises:
        TopologyError: if a masked weight is truly sparse, or sharded otherwise.
    """
    named, layers = named_weights(model), sparse_weights(model)
    for name in masks:
        if not is_sharded(named[name]):
            continue
        if name in layers:
            raise TopologyError(
                f"{name} is truly sparse and sharded, and its values would not stay where they "
                "are: train truly sparse layers with DistributedDataParallel"
            )
        placements = named[name].placements  # type: ignore[attr-defined]
        if not all(
            p.is_replicate() or (type(p).__name__ == "Shard" and p.dim == 0) for p in placements
        ):
            raise TopologyError(
                f"{name} is sharded as {placements}; masks need what fully_shard makes by "
                "itself, (Shard(dim=0),) or with replicas"
            )


def check_sizes(weights: Mapping[str, Weight], masks: Masks, ranks: Ranks) -> None:
    """Refuse a truly sparse layer that changes its size in a data-parallel job.

    Raises:
        TopologyError: naming the layer and what works.
    """
    if ranks.size == 1:
        return
    for name, weight in weights.items():
        before, after = weight.parameter.numel(), masks.counts[name]
        if isinstance(weight, SparseValues) and before != after:
            raise TopologyError(
                f"{name} would go from {before:,} to {after:,} values, and the buckets of "
                "DistributedDataParallel have a fixed size: prune masked dense layers and convert "
                "them afterwards; SET and RigL keep the number of connections"
            )


def check_agreement(masks: Masks, ranks: Ranks, device: torch.device) -> None:
    """Compare a digest of the masks between ranks; every one of them must call this.

    Raises:
        TopologyError: on all ranks alike, naming layers and ranks.
    """
    if ranks.size == 1 or not ranks.odd({"masks": masks.digest()}, device):
        return
    if odd := ranks.odd({"names": repr([(n, masks.shape(n)) for n in masks])}, device):
        raise TopologyError(
            f"on {_ranks(odd['names'])} the masks are not of the same parameters as on rank 0: "
            "build the same model on every rank"
        )
    layers = {name: Masks({name: masks.entry(name)}).digest() for name in masks}
    where = "; ".join(
        f"{name} on {_ranks(found)}" for name, found in ranks.odd(layers, device).items()
    )
    raise TopologyError(
        f"masks differ from those of rank 0: {where}. Every rank must start from the same masks "
        "(one seed, or one checkpoint) and the same weights; ranks that train models of their own "
        "need a process_group of their own"
    )


def check_memory(memory: Memory, ranks: Ranks, device: torch.device) -> None:
    """Compare what the method remembers between ranks; every one of them must call this.

    Raises:
        TopologyError: on all ranks alike, naming what differs.
    """
    if ranks.size == 1:
        return
    digests = memory.digests()
    if odd := ranks.odd({"names": repr(list(digests))}, device):
        raise TopologyError(
            f"on {_ranks(odd['names'])} the method remembers other things than on rank 0: what a "
            "rank alone knows must not decide what is kept"
        )
    if odd := ranks.odd(digests, device):
        where = "; ".join(f"{name} on {_ranks(ranks_)}" for name, ranks_ in odd.items())
        raise TopologyError(
            f"what the method remembers differs from rank 0: {where}. It may follow from gradients "
            "and weights, which are equal on all ranks, and draw from view.generator"
        )


def _ranks(found: list[int]) -> str:
    return f"rank{'s' * (len(found) > 1)} {', '.join(map(str, found))}"
