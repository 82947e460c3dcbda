"""What types cannot say: values and schedules that make no sense together."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from sparseflow.core.errors import SpecError, unknown
from sparseflow.data import DATA
from sparseflow.masks.allocation import check_density
from sparseflow.models import MODELS, build
from sparseflow.runs.spec import (
    Data,
    ParentWeights,
    PruneMethod,
    RunSpec,
    StaticMethod,
    ancestors,
    check_name,
    parents,
)
from sparseflow.train.optim import OPTIMIZERS

MAX_SEED = 2**63 - 1
POSITIVE = (
    "train.batch",
    "train.keep",
    "train.resume",
    "measure.every",
    "measure.evaluate",
    "data.probe",
    "data.limit",
    "data.image",
    "optimizer.lr",
    "init.scale",
    "method.every",
    "method.power",
)
NOT_NEGATIVE = (
    "train.steps",
    "optimizer.warmup",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "method.start",
)


def check(spec: RunSpec) -> RunSpec:
    """Return the specification if it and its ancestors can be run.

    Raises:
        SpecError: naming the field, its value and what would be right.
        MaskError: if the density is not in [0, 1].
    """
    for run in (*ancestors(spec), spec):
        check_density(run.density)
        _check_names(run)
        _check_data(run)
        _check_numbers(run)
        _check_schedules(run)
        _check_lineage(run)
    return spec


def _check_names(spec: RunSpec) -> None:
    if spec.model.name not in MODELS:
        raise SpecError(unknown("model", spec.model.name, MODELS))
    check_name(spec.recipe)
    _check_size(spec.model.name, spec.model.widths)
    if spec.optimizer.kind not in OPTIMIZERS:
        raise SpecError(unknown("optimizer", spec.optimizer.kind, OPTIMIZERS))
    if spec.optimizer.inner_momentum and spec.optimizer.kind != "sgd":
        raise SpecError(
            f"optimizer.inner_momentum is SGD's; set it to false for {spec.optimizer.kind}"
        )


@cache
def _check_size(name: str, widths: tuple[int, ...]) -> None:
    """Build the model once, without memory for its numbers: a sweep asks thousands of times."""
    try:
        with torch.device("meta"):
            build(name, widths)
    except (RuntimeError, OverflowError, TypeError) as error:  # a TypeError: beyond 64 bits
        raise SpecError(f"model.widths={list(widths)} cannot be built") from error


def _check_data(spec: RunSpec) -> None:
    name = spec.data.name
    if name not in DATA:
        raise SpecError(unknown("data.name", name, DATA))
    wanted = MODELS[spec.model.name].data
    if name != wanted:
        raise SpecError(f"model {spec.model.name} is made for {wanted}, not for data.name={name}")
    if spec.data.augment and not DATA[name].augmented:
        raise SpecError(f"data.augment=true: {name} has no augmentation")
    if spec.data.image != Data().image and not DATA[name].resized:
        raise SpecError(f"data.image={spec.data.image}: the images of {name} have one size")


def _check_numbers(spec: RunSpec) -> None:
    for name in POSITIVE:
        value = _value(spec, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise SpecError(f"{name}={value} must be positive")
    for name in NOT_NEGATIVE:
        value = _value(spec, name)
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise SpecError(f"{name}={value} must not be negative")
    if spec.optimizer.momentum >= 1:
        raise SpecError(f"optimizer.momentum={spec.optimizer.momentum} must be less than 1")
    for name in ("init", "mask", "data"):
        seed = getattr(spec.seeds, name)
        if not 0 <= seed <= MAX_SEED:
            raise SpecError(f"seeds.{name}={seed} is not between 0 and {MAX_SEED}")
    drop = getattr(spec.method, "drop", 0.0)
    if not 0 <= drop <= 1:
        raise SpecError(f"method.drop={drop} is not between 0 and 1")
    smoothing = spec.train.label_smoothing
    if not 0 <= smoothing < 1:
        raise SpecError(f"train.label_smoothing={smoothing} is not in [0, 1)")
    known = DATA[spec.data.name].examples
    examples = min(spec.data.limit or known, known)
    for name, value, times in (
        ("train.batch", spec.train.batch, 1),
        ("data.probe", spec.data.probe, 2),
    ):
        if value * times > examples:
            raise SpecError(f"{name}={value}: {times} of it do not fit {examples} examples")


def _value(spec: RunSpec, path: str) -> Any:
    """Look a field up; None if the kind of part at hand has no such field."""
    part, _, name = path.partition(".")
    return getattr(getattr(spec, part), name, None)


def _check_schedules(spec: RunSpec) -> None:
    steps, method = spec.train.steps, spec.method
    if isinstance(method, PruneMethod):
        if method.stop > steps:
            raise SpecError(
                f"pruning cannot finish: method.stop={method.stop} is later than "
                f"train.steps={steps}; --scale shortens both together, down to one step an update"
            )
        if method.stop <= method.start or (method.stop - method.start) % method.every:
            raise SpecError(
                f"pruning from method.start={method.start} to method.stop={method.stop} is no "
                f"whole number of intervals of method.every={method.every}"
            )
    elif not isinstance(method, StaticMethod):
        if method.stop is not None and method.stop > steps:
            raise SpecError(f"method.stop={method.stop} is later than train.steps={steps}")
        if method.start >= (steps if method.stop is None else method.stop) and steps:
            raise SpecError(f"method.start={method.start} leaves no step for an update")
    late = [m for m in spec.optimizer.milestones if not 0 <= m <= steps]
    if late or spec.optimizer.warmup > steps:
        raise SpecError(
            f"optimizer.milestones {late} or warmup={spec.optimizer.warmup} lie "
            f"outside the train.steps={steps}"
        )
    if spec.optimizer.milestones and spec.optimizer.schedule != "step":
        raise SpecError('optimizer.milestones need optimizer.schedule="step"')


def _check_lineage(spec: RunSpec) -> None:
    for parent in parents(spec):
        for field in ("density", "data", "model"):
            mine, theirs = getattr(spec, field), getattr(parent, field)
            if mine != theirs:
                raise SpecError(
                    f"{field} differs from the parent's ({parent.recipe or 'a run'}): "
                    f"{mine} here, {theirs} there"
                )
    weights = spec.weights
    if isinstance(weights, ParentWeights) and weights.step != "end":
        kept = weights.run.train
        if weights.step < 0 or weights.step > kept.steps or weights.step % kept.keep:
            raise SpecError(
                f"weights.step={weights.step} is no kept checkpoint of the parent, which keeps "
                f"every {kept.keep} steps up to {kept.steps}; set weights.run.train.keep, and "
                "mask.run.train.keep alike where both come from one run"
            )
