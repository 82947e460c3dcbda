"""What types cannot say: values and schedules that make no sense together."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from sparseflow.core.errors import SpecError, TopologyError, unknown
from sparseflow.core.values import UnknownValue, to_data
from sparseflow.data import DATA
from sparseflow.masks.allocation import check_density
from sparseflow.models import MODELS, build
from sparseflow.runs.hashing import code_of_run
from sparseflow.runs.spec import Data, ParentWeights, RunSpec, ancestors, check_name, parents
from sparseflow.topology import served
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
)
NOT_NEGATIVE = (
    "train.steps",
    "optimizer.warmup",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "measure.updates",
)
RANGES = {
    **dict.fromkeys(POSITIVE, "positive"),
    **dict.fromkeys(NOT_NEGATIVE, "not negative"),
    **dict.fromkeys(("seeds.init", "seeds.mask", "seeds.data"), "0 to 2^63 - 1"),
    "density": "0 to 1",
    "mask.density": "0 to 1",
    "optimizer.momentum": "0 to below 1",
    "train.label_smoothing": "0 to below 1",
}


def range_of(path: str) -> str:
    """Say within what the number at a path must be, as :func:`check` has it; empty if anything."""
    return RANGES.get(path, "")


def check(spec: RunSpec) -> RunSpec:
    """Return the specification if it and its ancestors can be run.

    Raises:
        SpecError: naming the field, its value and what would be right.
        MaskError: if the density is not in [0, 1].
    """
    for run in (*ancestors(spec), spec):
        check_density(run.density)
        check_density(getattr(run.mask, "density", None) or 1.0, "mask.density")
        _check_values(run)
        _check_names(run)
        _check_data(run)
        _check_numbers(run)
        _check_schedules(run)
        _check_lineage(run)
    code_of_run(spec)
    return spec


def _check_values(spec: RunSpec) -> None:
    for name, part in (("method", spec.method), ("init", spec.init)):
        if isinstance(part, UnknownValue):
            raise SpecError(f"{name}={part.kind}: {part.problem}")
        to_data(part)
    if spec.execution == "sparse" and not served(spec.method):
        raise SpecError(
            f"execution=sparse: {type(spec.method).__name__} needs masked dense layers, since it "
            "looks at the dense gradient of every step or keeps weights beyond its mask: "
            "set execution=dense or auto"
        )


def _check_names(spec: RunSpec) -> None:
    MODELS.entry(spec.model.name)
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
    DATA.entry(name)
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
    smoothing = spec.train.label_smoothing
    if not 0 <= smoothing < 1:
        raise SpecError(f"train.label_smoothing={smoothing} is not in [0, 1)")
    available = DATA[spec.data.name].examples
    examples = min(spec.data.limit or available, available)
    for name, value, times in (
        ("train.batch", spec.train.batch, 1),
        ("data.probe", spec.data.probe, 2),
    ):
        if value * times > examples:
            raise SpecError(f"{name}={value}: {times} of it do not fit {examples} examples")


def _value(spec: RunSpec, path: str) -> Any:
    """Look a field up; None if a part of this kind has no such field."""
    part, _, name = path.partition(".")
    return getattr(getattr(spec, part), name, None)


def _check_schedules(spec: RunSpec) -> None:
    steps = spec.train.steps
    try:
        spec.method.check(steps)
    except TopologyError as error:
        raise SpecError(str(error)) from error
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
                f"weights.step={weights.step} is not a kept checkpoint of the parent, which keeps "
                f"every {kept.keep} steps up to {kept.steps}; set weights.run.train.keep, and "
                "mask.run.train.keep alike where both come from one run"
            )
