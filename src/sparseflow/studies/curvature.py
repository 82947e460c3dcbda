"""Studies of curvature: the Hessian's spectrum, and what a mask update does to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from msgspec.structs import replace
from torch import Tensor, nn

from sparseflow.core.errors import MeasureError
from sparseflow.core.parameters import maskable
from sparseflow.core.schedules import Moment
from sparseflow.core.values import written
from sparseflow.masks import Masks, churn
from sparseflow.masks.state import State
from sparseflow.measure import flow
from sparseflow.measure.density import spectral_density
from sparseflow.measure.operators import Curvature, hessian
from sparseflow.measure.spectrum import NEGATIVE
from sparseflow.measure.spectrum import Spectrum as Exact
from sparseflow.measure.spectrum import spectrum as exact_spectrum
from sparseflow.runs import Run, Store
from sparseflow.runs.build import (
    Assembly,
    Batch,
    assemble,
    make_method,
    make_model,
    probe_batch,
)
from sparseflow.runs.override import converted
from sparseflow.studies.figures import Number, Spectrum, Trial, Updates, rounded
from sparseflow.studies.load import examples, load_all
from sparseflow.studies.spec import RULES, SpectrumStudy, UpdateStudy
from sparseflow.topology import METHODS, SET, Method, RigL, Topology, View, attach, propose
from sparseflow.train import cross_entropy, fit

EDGES = 1e-3 * np.sinh(np.linspace(-14, 14, 113))
"""Bins of the histograms: fine around zero, from -600 to 600."""

DRAWS = 1000
"""Room for the draws of one run's streams: those of two runs never meet."""


@dataclass(frozen=True)
class RandomUpdate(SET):
    """Drop and grow at random: a control for the rules that choose."""

    def drop_score(self, view: View) -> Float[Tensor, "*w"]:
        """Score active connections at random."""
        return torch.rand(view.mask.shape, generator=view.generator).to(view.mask.device)


def spectrum(study: SpectrumStudy, store: Store) -> Spectrum:
    """Measure the spectrum at a kept checkpoint."""
    (network,), data = load_all(study, store)
    batch = examples(data, study.examples)
    found = _measured(network.model, network.masks, batch, study)
    return replace(found, label=network.label)


def updates(study: UpdateStudy, store: Store) -> Updates:
    """Update one and the same network by every rule.

    The network is the one just before the run's own update at that step. It is
    made again from the run's specification: kept checkpoints are those after
    the update, whose newly grown weights, still zero, any rule would drop.

    Raises:
        MeasureError: if the run makes no update at that step, or grows from its
            training batches, which a counterfactual update does not have.
    """
    run = store.find(study.at.run)
    spec, step = run.spec, study.at.step
    parts, model, masks, moment = _just_before(run, store, step)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    batch = examples(parts.dataset, study.examples)
    probe = probe_batch(parts.dataset, spec.data.probe, 1)
    before, values = _measured_exactly(model, masks, batch)
    threshold = -NEGATIVE * float(values.max())
    after = []
    for rule in RULES:
        method = _rule(rule, run, model, probe)
        for draw in range(study.draws if rule in ("set", "random") else 1):
            stream = DRAWS * spec.seeds.mask + draw
            changed = propose(method, model, masks, moment, seed=stream)
            changed.apply(model)
            found, values = _measured_exactly(model, changed, batch)
            share, count = rounded(churn(masks, changed)), int((values < threshold).sum())
            after.append(Trial(rule, draw, share, count, found))
            model.load_state_dict(state)
    fraction = parts.method.drop(moment)  # type: ignore[attr-defined]
    return Updates(study.at.label, step, rounded(fraction), before, tuple(after))


def _just_before(run: Run, store: Store, step: int) -> tuple[Assembly, nn.Module, Masks, Moment]:
    """Train a run again, as it was executed, up to its update at a step; stop in its middle.

    Returns:
        What it trained with, and just before the update its network, dense and
        in evaluation mode, the masks and the moment.
    """
    parts = assemble(run.spec, store, execution=run.execution)
    model = make_model(run.spec).eval()
    seen: list[tuple[Masks, Moment]] = []

    @contextmanager
    def around(topology: Topology) -> Iterator[None]:
        if topology.step == step:
            state, masks = State.of(parts.model, topology.masks).dense()
            model.load_state_dict(state)
            seen.append((masks, topology.moment))
        yield

    seed = run.spec.seeds.mask
    topology = attach(
        parts.model, parts.optimizer, parts.masks, parts.method, seed=seed, around=around
    )
    within = 0 < step <= run.spec.train.steps
    if not isinstance(parts.method, SET) or not parts.method.due(step) or not within:
        raise MeasureError(
            f"{run.label} makes no dynamic mask update at step {step}: choose a run of SET or "
            f"RigL and a step among its updates ({written(run.spec.method)}, up "
            f"to {run.spec.train.steps:,})"
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
    return parts, model, *seen[-1]


def _rule(rule: str, run: Run, model: nn.Module, probe: Batch) -> Method:
    """Build a rule with the run's own drop fraction."""
    spec, method = run.spec, run.spec.method
    if method.growth_gradient == "batch":
        raise MeasureError(
            f"{run.label} grows from its training batches (method.grow_from=batch), which an "
            "update tried out does not have: choose a run that grows from a probe"
        )
    kind = RandomUpdate if rule == "random" else METHODS[rule]
    if issubclass(kind, RigL) and method.growth_gradient is None:
        method = RigL(method.when, method.drop, "probe")  # type: ignore[attr-defined]
    changed = replace(spec, method=converted(method, kind, rule))
    return make_method(changed, model, probe, maskable(model))


def _measured(model: nn.Module, masks: Masks, batch: Batch, study: SpectrumStudy) -> Spectrum:
    if study.exact:
        return _measured_exactly(model, masks, batch)[0]
    operator = hessian(model, cross_entropy, batch, masks)
    return Spectrum(**_common(model, masks, batch, operator), **_density(operator, study))


def _measured_exactly(model: nn.Module, masks: Masks, batch: Batch) -> tuple[Spectrum, Tensor]:
    """Return the record, and the eigenvalues themselves."""
    operator = hessian(model, cross_entropy, batch, masks)
    found = exact_spectrum(operator)
    common = _common(model, masks, batch, operator)
    return Spectrum(**common, **_exact(found)), found.values


def _common(model: nn.Module, masks: Masks, batch: Batch, operator: Curvature) -> dict[str, Any]:
    seen = flow.gradient_flow(model, cross_entropy, batch, masks)
    return {
        "label": "",
        "parameters": operator.shape[0],
        "examples": len(batch[1]),
        "loss": rounded(seen.loss),
        "norm": rounded(seen.total),
        "edges": tuple(rounded(float(edge)) for edge in EDGES),
    }


def _exact(found: Exact) -> dict[str, Any]:
    share = rounded(found.negative_share)
    return {
        "exact": True,
        "largest": rounded(found.largest),
        "smallest": rounded(found.smallest),
        "negative": share,
        "low": share,
        "high": share,
        "counts": _counts(found.values, torch.ones_like(found.values)),
    }


def _density(operator: Curvature, study: SpectrumStudy) -> dict[str, Any]:
    found = spectral_density(operator, study.steps, study.probes)
    share = found.negative_share
    nodes = torch.cat([probe.nodes for probe in found.probes])
    weights = torch.cat([probe.weights for probe in found.probes])
    return {
        "exact": False,
        "largest": rounded(found.largest),
        "smallest": rounded(found.smallest),
        "negative": rounded(share.value),
        "low": rounded(share.low),
        "high": rounded(share.high),
        "counts": _counts(nodes, weights * (operator.shape[0] / len(found.probes))),
    }


def _counts(values: Tensor, weights: Tensor) -> tuple[Number, ...]:
    """Weight in each bin; what lies beyond the bins counts in the last one."""
    clipped = np.clip(values.cpu().numpy(), EDGES[0], EDGES[-1])
    counts, _ = np.histogram(clipped, EDGES, weights=weights.cpu().numpy())
    return tuple(rounded(float(count)) for count in counts)
