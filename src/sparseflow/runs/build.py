"""From a specification to live objects: model, masks, method, optimiser, batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparseflow import models
from sparseflow.core.errors import DataError
from sparseflow.core.functional import Loss
from sparseflow.core.parallel import Ranks
from sparseflow.core.parameters import Layer, maskable
from sparseflow.core.random import generator
from sparseflow.data import DATA, Batch, Batches, Dataset
from sparseflow.init import initialise
from sparseflow.masks import Masks, full_masks, make_masks, shuffle_masks
from sparseflow.measure import signal
from sparseflow.runs.execution import Resolved, check_device, resolve
from sparseflow.runs.spec import (
    FullMask,
    ParentMask,
    ParentWeights,
    RunSpec,
    ShuffledMask,
    generation,
)
from sparseflow.runs.store import Store
from sparseflow.sparse import to_sparse
from sparseflow.topology import Method, Task
from sparseflow.train import (
    constant_rate,
    cosine_rate,
    cross_entropy,
    make_optimizer,
    set_rate,
    step_rate,
    with_warmup,
)

NOISE = 500
"""Examples of N(0, 1) noise for the signal at initialisation (the paper's figure 1)."""


@dataclass(frozen=True, eq=False)
class Assembly:
    """Everything that a run trains and measures with.

    Attributes:
        execution: whether the model's masked layers are masked dense or truly sparse.
        beginning: what was measured of the network at initialisation.
        prepare: called before each step, with the number of steps taken.
        probe: the batch that gradients are measured on.
    """

    execution: Resolved
    model: nn.Module
    beginning: Mapping[str, Any]
    masks: Masks
    method: Method
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    prepare: Callable[[int], None]
    loss: Loss
    batches: Batches
    dataset: Dataset
    probe: Batch


def assemble(
    spec: RunSpec, store: Store, device: str = "cpu", execution: Resolved | None = None
) -> Assembly:
    """Build a run as it stands before its first step.

    Args:
        spec: the run.
        store: where its parents are.
        device: where to train.
        execution: of a run that goes on; None is what :func:`resolve` chooses.

    Raises:
        SpecError: if the device is not available here, or sparse execution is asked
            for on another one than the CPU.
        SparseUnavailable: if the compiled core that it needs is missing.
        StoreError: if a parent's checkpoint is missing.
        DataError: if the data set is missing or damaged.
    """
    check_device(device)
    dataset = load_data(spec).to(device)
    probes = [probe_batch(dataset, spec.data.probe, i) for i in (0, 1)]
    model = make_model(spec).to(device)
    layers = maskable(model)
    masks = _masks(spec, layers, store).to(device)
    _set_weights(spec, model, layers, masks, store)
    reseed = _reseeding(spec, model)
    reseed(0)
    beginning = at_beginning(model, layers, masks, probes[0][0], spec.seeds.data)
    execution = execution or resolve(spec, masks, device)
    if execution == "sparse":
        # Small layers too: a border between the two executions would cost more than they do.
        model = to_sparse(model, masks, dataset.train[: spec.train.batch][0], force=True)
    o = spec.optimizer
    optimizer = make_optimizer(
        o.kind,
        model,
        o.lr,
        momentum=o.momentum,
        weight_decay=o.weight_decay,
        fused=execution == "sparse",
    )
    rate, inner = make_rate(spec), o.momentum if o.inner_momentum else None

    def prepare(step: int) -> None:
        reseed(step)
        set_rate(optimizer, rate, step, inner_momentum=inner)

    return Assembly(
        execution=execution,
        model=model,
        beginning=beginning,
        masks=masks,
        method=make_method(spec, model, probes[1], layers),
        optimizer=optimizer,
        rate=rate,
        prepare=prepare,
        loss=make_loss(spec),
        batches=Batches(
            dataset.train,
            spec.train.batch,
            spec.seeds.data,
            ("order", generation(spec)),
            augment=spec.data.augment,
        ),
        dataset=dataset,
        probe=probes[0],
    )


def _reseeding(spec: RunSpec, model: nn.Module) -> Callable[[int], None]:
    """Make what the network itself draws a function of the step alone, as is all else."""
    if not any(isinstance(module, nn.Dropout) for module in model.modules()):
        return lambda step: None
    rank = Ranks.of().rank
    stream = ("dropout", generation(spec), *([rank] if rank else []))  # shares drop units apart
    return lambda step: torch.manual_seed(  # type: ignore[return-value]
        generator(spec.seeds.data, *stream, step).initial_seed()
    )


def at_beginning(
    model: nn.Module, layers: Mapping[str, Layer], masks: Masks, images: Tensor, seed: int
) -> dict[str, Any]:
    """Measure how signals propagate through a masked dense network.

    Args:
        model: the network.
        layers: its maskable layers.
        masks: their masks.
        images: real inputs.
        seed: of the noise that is put in as well.
    """
    stream = generator(seed, "noise")
    noise = torch.randn(NOISE, *images.shape[1:], generator=stream).to(images.device)
    dead = sum(int((~layers[n].neurons(m).any(1)).sum()) for n, m in masks.items())
    return {
        "images": asdict(signal(model, images, layers)),
        "noise": asdict(signal(model, noise, layers)),
        "neurons_without_input": dead,
        "active": masks.counts,
    }


def load_data(spec: RunSpec) -> Dataset:
    """Load the data set of a run, or the first ``data.limit`` examples of each of its parts.

    Raises:
        DataError: if it is missing or damaged, or has fewer examples than a batch.
    """
    dataset = DATA[spec.data.name].load(spec.data.limit, spec.data.image)
    if len(dataset.train) < max(spec.train.batch, 2 * spec.data.probe):
        raise DataError(
            f"{spec.data.name} has {len(dataset.train):,} training examples here: too few for "
            f"train.batch={spec.train.batch}, or twice data.probe={spec.data.probe}"
        )
    return dataset


def make_model(spec: RunSpec) -> nn.Module:
    """Build the model, its widths shrunk to the sparse one's parameters if asked."""
    m = spec.model
    if not m.shrink:
        return models.build(m.name, m.widths)
    dense = models.build(m.name, m.widths)
    kernels = sum(layer.size for layer in maskable(dense).values())
    budget = round(spec.density * kernels) + models.parameters(dense) - kernels
    architecture = models.MODELS[m.name]
    widths = models.solve_widths(architecture.builder, m.widths or architecture.widths, budget)
    return models.build(m.name, widths)


def _masks(spec: RunSpec, layers: Mapping[str, Layer], store: Store) -> Masks:
    source = spec.mask
    if isinstance(source, FullMask):
        return full_masks(layers)
    if isinstance(source, ParentMask | ShuffledMask):
        _, masks = store.run(source.run).checkpoint(source.run.train.steps)
        return masks if isinstance(source, ParentMask) else shuffle_masks(masks, spec.seeds.mask)
    return make_masks(
        layers,
        spec.density if source.density is None else source.density,
        allocation=str(type(source).__struct_config__.tag),
        pattern=source.pattern,
        seed=spec.seeds.mask,
    )


def _set_weights(
    spec: RunSpec, model: nn.Module, layers: Mapping[str, Layer], masks: Masks, store: Store
) -> None:
    source = spec.weights
    if isinstance(source, ParentWeights):
        step = source.run.train.steps if source.step == "end" else source.step
        weights, _ = store.run(source.run).checkpoint(step)
        model.load_state_dict(weights)
        masks.apply(model)
        return
    with warnings.catch_warnings():  # the run's result counts these neurons
        warnings.filterwarnings("ignore", message=".* no active input")
        stream = ("init", generation(spec))
        initialise(layers, masks, spec.init, seed=spec.seeds.init, stream=stream)


def make_method(
    spec: RunSpec, model: nn.Module, probe: Batch, layers: Mapping[str, Layer]
) -> Method:
    """Let the method know the run that it serves in; ``probe`` is what it may grow from."""
    steps = spec.train.steps
    task = Task(model, make_loss(spec), probe, spec.density, layers, steps, steps)
    return spec.method.bound(task)


def make_loss(spec: RunSpec) -> Loss:
    """Build the training loss, without weight decay."""
    smoothing = spec.train.label_smoothing
    return partial(cross_entropy, label_smoothing=smoothing) if smoothing else cross_entropy


def make_rate(spec: RunSpec) -> Callable[[int], float]:
    """Build the learning rate by step."""
    o = spec.optimizer
    if o.schedule == "cosine":
        rate = cosine_rate(o.lr, max(spec.train.steps, 1))
    else:
        rate = step_rate(o.lr, o.milestones) if o.schedule == "step" else constant_rate(o.lr)
    return with_warmup(rate, o.warmup)


def probe_batch(dataset: Dataset, size: int, index: int) -> Batch:
    """Cut the fixed probe batch ``index`` from the start of the training set."""
    return dataset.train[index * size : (index + 1) * size]
