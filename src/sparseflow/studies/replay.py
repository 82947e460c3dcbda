"""A run trained again up to a mask update, to try other updates on the network before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from msgspec.structs import replace
from torch import Tensor, nn

from sparseflow.core.errors import MeasureError
from sparseflow.core.expressions import written
from sparseflow.core.parameters import maskable
from sparseflow.core.schedules import Moment
from sparseflow.masks import Masks
from sparseflow.masks.state import State
from sparseflow.runs import Run, Store
from sparseflow.runs.build import Assembly, Batch, assemble, make_method, make_model
from sparseflow.runs.override import converted
from sparseflow.topology import METHODS, SET, Method, RigL, Topology, View, attach
from sparseflow.train import fit

TRIED = ("rigl", "set", "rigl-inverted", "random")
"""Rules that an update is tried by: ``random`` drops and grows at random, a control."""


@dataclass(frozen=True)
class RandomUpdate(SET):
    """Drop and grow at random: a control for the rules that choose."""

    def drop_score(self, view: View) -> Float[Tensor, "*w"]:
        """Score active connections at random."""
        return torch.rand(view.mask.shape, generator=view.generator).to(view.mask.device)


def rule_of(rule: str, run: Run, model: nn.Module, probe: Batch) -> Method:
    """Build a rule with the run's own drop fraction.

    Raises:
        MeasureError: if the run grows from its training batches, which a
            counterfactual update does not have.
    """
    spec, method = run.spec, run.spec.method
    if method.growth_gradient == "batch":
        raise MeasureError(
            f"{run.label} grows from its training batches (method.grow_from=batch), which an "
            "update tried out does not have: choose a run that grows from a probe"
        )
    kind = RandomUpdate if rule == "random" else METHODS[rule]
    if method.growth_gradient is None:  # a run of SET: the rules that need a gradient take a probe
        method = RigL(method.when, method.drop, "probe")  # type: ignore[attr-defined]
    changed = replace(spec, method=converted(method, kind, rule))
    return make_method(changed, model, probe, maskable(model))


def just_before(run: Run, store: Store, step: int) -> tuple[Assembly, nn.Module, Masks, Moment]:
    """Train a run again, as it was executed, up to its update at a step; stop in its middle.

    Kept checkpoints are those after an update, whose newly grown weights, still
    zero, any rule would drop.

    Returns:
        What it trained with, and just before the update its network, dense and
        in evaluation mode, the masks and the moment.

    Raises:
        MeasureError: if the run makes no update at that step.
    """
    run.check_code()
    parts = assemble(run.spec, store, execution=run.execution)
    model = make_model(run.spec).eval()
    before: list[tuple[Masks, Moment]] = []

    @contextmanager
    def around(topology: Topology) -> Iterator[None]:
        if topology.step == step:
            state, masks = State.of(parts.model, topology.masks).dense()
            model.load_state_dict(state)
            before.append((masks, topology.moment))
        yield

    seed = run.spec.seeds.mask
    topology = attach(
        parts.model, parts.optimizer, parts.masks, parts.method, seed=seed, around=around
    )
    within = 0 < step <= run.spec.train.steps
    if not isinstance(parts.method, SET) or not parts.method.due(step) or not within:
        raise MeasureError(
            f"{run.label} makes no dynamic mask update at step {step}: choose a run of SET or "
            f"RigL and a step among its updates ({written(run.spec.method)}, up to step "
            f"{run.spec.train.steps:,})"
        )
    fit(
        parts.model,
        parts.loss,
        parts.batches,
        parts.optimizer,
        steps=step,
        set_rate=parts.prepare,
    )
    topology.detach()
    return parts, model, *before[-1]
