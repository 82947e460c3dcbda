"""Processes that train one network together, with gloo on this machine."""

import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from helpers.own import Aging, TopKAST, example
from helpers.scatter import scattered
from helpers.small import batch, loss, network
from torch import distributed, multiprocessing, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sparseflow as sf
from sparseflow.core.errors import SparseflowError
from sparseflow.core.parallel import local, part_like, whole
from sparseflow.data import Batches
from sparseflow.recipes import make_spec
from sparseflow.runs import Store, execute
from sparseflow.topology import Topology

UPDATES = 20
GLOBAL_BATCH = 24

EACH, HALF = sf.every(1, stop=UPDATES), sf.constant(0.5)
METHODS: dict[str, Callable[[nn.Module], sf.Method]] = {
    "set": lambda m: sf.SET(EACH, HALF),
    "rigl": lambda m: sf.RigL(EACH, HALF),
    "probe": lambda m: sf.RigL(EACH, HALF, sf.probe_gradient(m, loss, my_batch(999))),
    "pruning": lambda m: sf.GradualPruning(0.1, 1, UPDATES, 1),
    "aging": lambda m: Aging(EACH, HALF),
    "top-kast": lambda m: TopKAST(0.4, 0.3, 1),
    "snfs": lambda m: example().SNFS(EACH, HALF),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, foreach=True),
}


class Crew:
    """Ranks that wait for work; starting them takes longer than most of what they do."""

    def __init__(self, count: int) -> None:
        """Start this many."""
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        pipes = [context.Pipe() for _ in range(count)]
        self._ours = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, count, self._folder.name, theirs))
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def __call__(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """Call ``work(*args)`` on every rank; return what each returned.

        An error of sparseflow's is returned as ``{"error": its text}``.
        """
        for pipe in self._ours:
            pipe.send((work, args))
        found = [pipe.recv() if pipe.poll(300) else "no answer" for pipe in self._ours]
        assert not any(isinstance(each, str) for each in found), "\n".join(map(str, found))
        return found

    def close(self) -> None:
        """End all ranks."""
        for pipe in self._ours:
            pipe.send(None)
        for process in self._processes:
            process.join(30)
            process.kill()
        self._folder.cleanup()


Crews = Callable[[int], Crew]


def _serve(rank: int, count: int, folder: str, pipe: Connection) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=180),
    )
    while order := pipe.recv():
        work, args = order
        try:
            pipe.send(work(*args))
        except SparseflowError as error:
            pipe.send({"error": str(error)})
        except Exception:
            pipe.send(traceback.format_exc())
    distributed.destroy_process_group()


def place() -> tuple[int, int]:
    """Rank and number of ranks; a process without a group is rank 0 of 1."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def my_batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's share of the batch of one step."""
    rank, count = place()
    x, y = batch(step, dtype, GLOBAL_BATCH)
    return x.chunk(count)[rank], y.chunk(count)[rank]


def wrapped(model: nn.Module, how: str, **options: Any) -> nn.Module:
    """Wrap a model for training on several ranks."""
    if how == "ddp":
        return DistributedDataParallel(model, **options)
    if how == "fsdp":
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model).set_force_sum_reduction_for_comms(True)  # gloo has no mean
    return model


def prepared(
    how: str,
    method: str,
    make: str = "sgd",
    dtype: torch.dtype = torch.float64,
    *,
    sparse: bool = False,
    **options: Any,
) -> tuple[nn.Module, torch.optim.Optimizer, Topology]:
    """The small network, sparse and ready to train."""
    model: nn.Module = network(dtype)
    full = method == "pruning"
    masks = sf.sparsify(model, density=1.0 if full else 0.4, init=None)
    if sparse:
        model = scattered(model, masks)
    model = wrapped(model, how, **options)
    optimizer = OPTIMIZERS[make](model)
    return model, optimizer, sf.attach(model, optimizer, masks, METHODS[method](model), seed=3)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    topology: Topology,
    steps: range,
    *,
    parts: int = 1,
    sync: bool = True,
    dtype: torch.dtype = torch.float64,
) -> list[str]:
    """Train; return the digest of the masks after every step.

    Args:
        parts: micro-batches of each step.
        sync: average gradients after every micro-batch, or after the last alone.
    """
    trail = []
    for step in steps:
        optimizer.zero_grad()
        x, y = my_batch(step, dtype)
        for part, data in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
            quiet = isinstance(model, DistributedDataParallel) and not sync and part < parts - 1
            with model.no_sync() if quiet else nullcontext():
                (loss(model, data) / parts).backward()
        optimizer.step()
        trail.append(topology.masks.digest())
    return trail


# ---- what ranks do in the tests


def trails(cases: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Train every case for 20 updates; digests of the masks after each."""
    found = {}
    for name, case in cases.items():
        how = {k: case[k] for k in ("parts", "sync") if k in case}
        start = {k: v for k, v in case.items() if k not in how}
        found[name] = train(*prepared(**start), range(UPDATES), **how)
    return found


def positions(how: str, method: str) -> dict[str, list[int]]:
    """Active connections after 20 updates in float32."""
    parts = prepared(how, method, dtype=torch.float32)
    train(*parts, range(UPDATES), dtype=torch.float32)
    masks = parts[2].masks
    return {name: masks.indices(name).tolist() for name in masks}


def remembered(how: str, method: str) -> tuple[dict[str, Any], list[str]]:
    """What a method remembers after 20 updates, and the trail of masks."""
    parts = prepared(how, method)
    trail = train(*parts, range(UPDATES))
    return {n: t.tolist() for n, t in parts[2].state_dict()["memory"].items()}, trail


def grown(how: str) -> dict[str, Any]:
    """Births of connections and weights after 20 updates with AdamW."""
    model, optimizer, topology = prepared(how, "rigl", "adamw")
    train(model, optimizer, topology, range(UPDATES))
    born = {n: t for n, t in topology.state_dict()["memory"].items() if n.startswith("born/")}
    weights = [whole(p.detach()) for p in model.parameters()]
    return {
        "born": {n: t.tolist() for n, t in born.items()},
        "weights": {str(i): w.tolist() for i, w in enumerate(weights)},
    }


def other_masks_on(odd: int) -> None:
    """Attach with masks of another seed on one rank."""
    rank, _ = place()
    model = network()
    masks = sf.sparsify(model, density=0.4, seed=int(rank == odd), init=None)
    sf.attach(model, OPTIMIZERS["sgd"](model), masks, sf.Static())


def other_layers_on(odd: int) -> None:
    """Attach with a layer less on one rank."""
    rank, _ = place()
    model = network()
    masks = sf.make_masks(sf.maskable(model, dense_last=rank == odd), 0.4)
    masks.apply(model)
    sf.attach(model, OPTIMIZERS["sgd"](model), masks, sf.Static())


def other_weights_on(odd: int) -> dict[str, Any]:
    """Disturb the weights of one layer on one rank, and update; say what is left."""
    rank, _ = place()
    model, optimizer, topology = prepared("ddp", "set")
    before = topology.masks
    if rank == odd:
        with torch.no_grad():
            weight = next(p for n, p in model.named_parameters() if n.endswith("2.weight"))
            weight.copy_(torch.where(weight != 0, 1 / weight, 0))
    try:
        train(model, optimizer, topology, range(1))
    except SparseflowError as error:
        return {"error": str(error), "kept": topology.masks == before}
    return {}


def not_finite_on(odd: int, method: str) -> list[int]:
    """Make the gradient of inactive weights infinite on one rank at step 1; count updates."""
    rank, _ = place()
    model, optimizer, topology = prepared("ddp", method)
    weight, off = model.module[0].weight, ~topology.masks["0.weight"]
    handle = weight.register_hook(lambda g: g.masked_fill(off, torch.inf) if rank == odd else g)
    counts = []
    for step in range(2):
        train(model, optimizer, topology, range(step, step + 1))
        handle.remove()
        counts.append(topology.updates)
    return counts


def shrinking() -> None:
    """Prune truly sparse layers under DistributedDataParallel."""
    train(*prepared("ddp", "pruning", sparse=True), range(2))


def alone() -> list[bool]:
    """Ranks that train models of their own, each in a group of one."""
    rank, count = place()
    groups = [distributed.new_group([r]) for r in range(count)]
    model = network()
    masks = sf.sparsify(model, density=0.4, seed=rank, init=None)
    topology = sf.attach(
        model, OPTIMIZERS["sgd"](model), masks, METHODS["rigl"](model), process_group=groups[rank]
    )
    for step in range(2 + rank):
        topology._optimizer.zero_grad()
        loss(model, batch(step)).backward()
        topology._optimizer.step()
    return [topology.updates == 2 + rank, topology.masks.nnz == masks.nnz]


def saved_at(step: int, how: str, path: str) -> list[str]:
    """Train, write a sharded checkpoint after ``step`` steps, and go on to the end."""
    model, optimizer, topology = prepared(how, "rigl", "adamw")
    trail = train(model, optimizer, topology, range(step))
    parts = get_state_dict(model, optimizer)
    checkpoint.save(_state(*parts, topology), checkpoint_id=path)
    return trail + train(model, optimizer, topology, range(step, UPDATES))


def resumed_at(step: int, how: str, path: str) -> list[str]:
    """Go on from such a checkpoint, on any number of ranks."""
    model, optimizer, topology = prepared(how, "rigl", "adamw")
    state = _state(*get_state_dict(model, optimizer), topology)
    checkpoint.load(state, checkpoint_id=path)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    topology.load_state_dict(state["topology"])
    return train(model, optimizer, topology, range(step, UPDATES))


def _state(model: Any, optimizer: Any, topology: Topology) -> dict[str, Any]:
    return {"model": model, "optimizer": optimizer, "topology": topology.state_dict()}


def whole_weights(how: str) -> dict[str, Any]:
    """Weights gathered after training, and what every rank keeps of it."""
    model, optimizer, topology = prepared(how, "rigl", "adamw")
    train(model, optimizer, topology, range(4))
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    state = topology.state_dict()
    off = [
        int(local(t)[~part_like(state["masks"][n], p)].count_nonzero())
        for n, p in model.named_parameters()
        if n in state["masks"]
        for t in (p, p.grad, *optimizer.state[p].values())
        if t.shape == p.shape
    ]
    return {
        "off": off,
        "outside": [int(weights[n][~mask].count_nonzero()) for n, mask in topology.masks.items()],
        "shapes": [list(weights[n].shape) for n in topology.masks],
        "masks": sf.Masks(state["masks"]).digest(),
    }


def measured_while_sharded() -> None:
    """Measure a sharded model."""
    model, _, topology = prepared("fsdp", "rigl")
    sf.gradient_flow(model, loss, my_batch(0), topology.masks)


def measured_while_wrapped() -> None:
    """Measure a model in DistributedDataParallel."""
    sf.gradient_flow(wrapped(network(torch.float64), "ddp"), loss, my_batch(0))


def sparsified_while_sharded() -> None:
    """Draw masks for a sharded model."""
    sf.sparsify(wrapped(network(), "fsdp"), density=0.5)


def sharded_values() -> None:
    """Attach to truly sparse layers that are sharded."""
    dense = network()
    masks = sf.sparsify(dense, density=0.5, init=None)
    model = fully_shard(scattered(dense, masks))
    sf.attach(model, OPTIMIZERS["sgd"](model), masks, sf.Static())


# ---- runs

STOPPED = "stopped before the end"


def run_until(step: int, root: str, recipe: str, settings: list[str]) -> list[str]:
    """Run a recipe that is stopped on every rank before this step; resume from every fourth."""
    taken = Batches.__getitem__

    def stopping(batches: Batches, at: int) -> Any:
        if at == step:
            raise SparseflowError(STOPPED)
        return taken(batches, at)

    spec = make_spec(recipe, settings=[*settings, "train.resume=4"])
    with mock.patch.object(Batches, "__getitem__", stopping):
        return [execute(spec, Store(Path(root))).id]
