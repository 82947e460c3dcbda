"""Loss, gradient norm and Hessian spectrum before and after a mask update by each rule."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np

from sparseflow.masks import churn
from sparseflow.measure.spectrum import NEGATIVE
from sparseflow.measure.statistics import Estimate, mean_interval
from sparseflow.plotting.drawing import Axes, Drawing, eigenvalues, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.formats import change, count, estimate, finite, minus, signed
from sparseflow.plotting.marks import mark, mark_all
from sparseflow.plotting.palette import INK, MUTED, color_of
from sparseflow.plotting.table import Table
from sparseflow.plotting.vocabulary import RULES, parse_label
from sparseflow.runs import Store
from sparseflow.runs.build import probe_batch
from sparseflow.studies.evidence import Evidence, of
from sparseflow.studies.load import examples
from sparseflow.studies.replay import TRIED, just_before, rule_of
from sparseflow.studies.spectrum import Spectrum, measured_exactly
from sparseflow.studies.study import Place, Point, Record, Study, Tagged, label_of, register_study
from sparseflow.studies.values import Number, rounded
from sparseflow.topology import propose

DRAWS = 1000
"""Room for the draws of one run's streams: those of two runs never meet."""


class Trial(msgspec.Struct, frozen=True):
    """One network after one mask update.

    Attributes:
        rule: that made it, one of :data:`sparseflow.studies.replay.TRIED`.
        draw: number of the draw; 0 for rules that draw nothing.
        churn: share of the active weights that changed.
        negative: number of eigenvalues below -10⁻³ times the largest one *before* the
            update; the spectrum's own share has the moving threshold.
        spectrum: with loss and gradient norm, just after the update.
    """

    rule: str
    draw: int
    churn: Number
    negative: int
    spectrum: Spectrum


class Updates(Record, Tagged, frozen=True, tag="update"):
    """One network before an update, and after it by each rule.

    Attributes:
        label: the network.
        step: of its training.
        fraction: of active weights dropped.
        before: the network itself.
        after: every trial.
    """

    label: str
    step: int
    fraction: Number
    before: Spectrum
    after: tuple[Trial, ...]

    def tables(self) -> list[Table]:
        """The network, then a row for each trial."""
        rows = [{"rule": "before", "churn": 0.0, **_values(self.before)}]
        rows += [{"rule": t.rule, "churn": t.churn, **_values(t.spectrum)} for t in self.after]
        return [Table.of(f"one update of {self.label} by each rule", rows)]


def _values(record: Spectrum) -> dict[str, Any]:
    return {
        "loss": record.loss,
        "norm": record.norm,
        "largest": record.largest,
        "smallest": record.smallest,
        "negative": round((record.negative or 0) * record.parameters),
    }


class UpdateStudy(Study, Tagged, frozen=True, tag="update"):
    """Update one and the same network by every rule.

    The network is the one just before the run's own update at that step.

    Attributes:
        at: one and the same network for all rules.
        draws: updates tried by each rule that draws at random.
        examples: of the training set, from its start.
    """

    at: Point
    draws: int = 3
    examples: int = 1000

    @classmethod
    def of(cls, places: Sequence[Place], **options: Any) -> UpdateStudy:
        """Take one place; its step is one of an update, kept or not."""
        ((run, step),) = places
        short = run.spec.recipe.rpartition("/")[2]
        name = label_of(short, run.spec.seeds.data, str(step))
        return cls(Point(run.id, step, name), **options)

    @property
    def checkpoints(self) -> tuple[Point, ...]:
        """The one."""
        return (self.at,)

    def measure(self, store: Store) -> Updates:
        """Remake the network, and update it by every rule."""
        run, step = store.find(self.at.run), self.at.step
        parts, model, masks, moment = just_before(run, store, step)
        state = {n: t.clone() for n, t in model.state_dict().items()}
        batch = examples(parts.dataset, self.examples)
        probe = probe_batch(parts.dataset, run.spec.data.probe, 1)
        before, values = measured_exactly(model, masks, batch)
        threshold = -NEGATIVE * float(values.max())
        after = []
        for rule in TRIED:
            method = rule_of(rule, run, model, probe)
            for draw in range(self.draws if rule in ("set", "random") else 1):
                stream = DRAWS * run.spec.seeds.mask + draw
                changed = propose(method, model, masks, moment, seed=stream)
                changed.apply(model)
                record, values = measured_exactly(model, changed, batch)
                share, negative = rounded(churn(masks, changed)), int((values < threshold).sum())
                after.append(Trial(rule, draw, share, negative, record))
                model.load_state_dict(state)
        fraction = parts.method.drop(moment)  # type: ignore[attr-defined]
        return Updates(self.at.label, step, rounded(fraction), before, tuple(after))


@dataclass(frozen=True)
class Effect:
    """What one rule's update does to one network, averaged over its draws.

    Attributes:
        seed: of the network's run.
        step: of its training.
        negatives: change of the number of negative eigenvalues, by the threshold before.
        norm: gradient norm after over before, minus 1 (geometric mean of the draws).
    """

    seed: str
    step: int
    negatives: float
    norm: float


def effects(results: Evidence) -> dict[str, list[Effect]]:
    """Effects of each rule on every network."""
    table: dict[str, list[Effect]] = {}
    for update in of(results, Updates):
        for rule in RULES:
            effect = _effect(update, rule)
            if effect is not None:
                table.setdefault(rule, []).append(effect)
    return table


def over_seeds(effects: list[Effect], field: str) -> Estimate:
    """Mean over seeds, of the mean over each seed's steps; of the norm, a geometric one."""
    ratio = field == "norm"
    seeds = sorted({effect.seed for effect in effects})

    def value(effect: Effect) -> float:
        return math.log1p(effect.norm) if ratio else effect.negatives

    mean = mean_interval(
        statistics.fmean(value(e) for e in effects if e.seed == seed) for seed in seeds
    )
    if not ratio:
        return mean
    low, high = math.expm1(mean.low), math.expm1(mean.high)
    return Estimate(math.expm1(mean.value), low, high, mean.n, mean.level)


def _effect(update: Updates, rule: str) -> Effect | None:
    before = update.before
    after = [trial for trial in update.after if trial.rule == rule]
    norms = [norm for norm in finite(t.spectrum.norm for t in after) if norm > 0]
    if before.negative is None or not before.norm or not norms:
        return None
    more = statistics.fmean(t.negative for t in after) - before.negative * before.parameters
    rise = statistics.geometric_mean(norms) / before.norm - 1
    return Effect(parse_label(update.label).seed, update.step, more, rise)


def update_effects(results: Evidence) -> str:
    """What each rule adds to the negative eigenvalues and to the gradient norm."""
    said = []
    for rule, each in effects(results).items():
        more = estimate(over_seeds(each, "negatives"), signed)
        rise = estimate(over_seeds(each, "norm"), change)
        said.append(f"{RULES[rule]} {more} negative eigenvalues, gradient norm {rise}")
    if not said:
        return ""
    updates = of(results, Updates)
    seeds = {parse_label(update.label).seed for update in updates}
    return (
        f"Mean change at one update of {count(len(updates), 'network')} of "
        f"{count(len(seeds), 'run')}: {'; '.join(said)}."
    )


def _draw(results: Evidence) -> Drawing | None:
    """Draw the spectrum of one network before and after an update, and the change over all."""
    table = effects(results)
    shown = _example(of(results, Updates))
    if shown is None or not table:
        return None
    rules = [rule for rule in RULES if rule in table]
    with style.styled():
        heights = [0.6 + 1.02 * len(rules), 2 * (0.6 + 0.2 * len(rules))]
        tall = 1.0 + 1.02 * len(rules) + 2 * (0.55 + 0.2 * len(rules))
        figure = mpl.figure.Figure(figsize=(style.WIDTH, tall))
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        panels = upper.subplots(len(rules), sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, rule in zip(panels, rules, strict=True):
            _draw_rule(axes, shown, rule)
        spectra = [shown.before, *(trial.spectrum for trial in shown.after)]
        eigenvalues.scale(list(panels), [spectrum.histogram for spectrum in spectra])
        upper.supylabel("eigenvalues in a bin", fontsize=9.5)
        panels[-1].set_xlabel("eigenvalue (logarithmic away from 0)")
        place = parse_label(shown.label)
        name = f"{place.recipe}, seed {place.seed}, step {shown.step:,}"
        marks = [
            mpl.patches.Patch(facecolor=MUTED, alpha=0.45),
            mpl.lines.Line2D([], [], color=INK, linewidth=1.3),
        ]
        names = [f"before the update ({name})", "after it"]
        upper.legend(marks, names, loc="outside upper left", ncols=2)
        first, second = lower.subplots(2)
        _draw_changes(first, table, rules, "negatives")
        _draw_changes(second, table, rules, "norm")
        return figure


def _example(updates: Sequence[Updates]) -> Updates | None:
    """The network in the middle, by step and seed."""
    tried = sorted((u for u in updates if u.after), key=lambda u: (u.step, u.label))
    return tried[(len(tried) - 1) // 2] if tried else None


def _draw_rule(axes: Axes, shown: Updates, rule: str) -> None:
    trials = [trial for trial in shown.after if trial.rule == rule]
    mark(eigenvalues.fill(axes, shown.before.histogram), rule, f"{RULES[rule]}: before the update")
    for number, trial in enumerate(trials):
        width, alpha = (0.6, 0.6) if number else (1.3, 1.0)
        look = {"color": color_of(rule), "linewidth": width, "alpha": alpha}
        drawn = eigenvalues.outline(axes, trial.spectrum.histogram, **look)
        mark(drawn, rule, f"{RULES[rule]}: after the update")
    text = RULES[rule]
    if trials and shown.before.negative is not None:
        had = shown.before.negative * shown.before.parameters
        mean = statistics.fmean(trial.negative for trial in trials)
        text += f": {had:,.0f} → {mean:,.0f} negative"
    mark(axes.set_title(text, color=color_of(rule)), rule)


def _draw_changes(axes: Axes, table: dict[str, list[Effect]], rules: list[str], field: str) -> None:
    every: list[float] = []
    for place, rule in enumerate(rules):
        values = [getattr(effect, field) for effect in table[rule]]
        every += values
        offsets = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(1)
        dots = axes.scatter(
            values, place + offsets, s=13, color=color_of(rule), alpha=0.6, linewidths=0, zorder=3
        )
        mark(dots, rule, f"{RULES[rule]}: one network")
        mean = over_seeds(table[rule], field)
        text = estimate(mean, change if field == "norm" else signed)
        _draw_mean(axes, rule, place, mean, text)
    axes.set_yticks(range(len(rules)), [RULES[rule] for rule in rules])
    for rule, label in zip(rules, axes.get_yticklabels(), strict=True):
        mark(label, rule)
    axes.set_ylim(len(rules) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
    if field == "norm":
        axes.set_title("Change of the gradient norm at one update")
        axes.set_xscale("symlog", linthresh=0.1, linscale=0.8)
        low, high = min(*every, -0.02), max(*every, 0.02)
        axes.set_xlim(low - 0.1 * abs(low), high + 0.15 * abs(high))
        style.fixed_ticks(axes.xaxis, (-1.0, -0.1, 0.0, 0.1, 1.0, 10.0, 100.0), change)
    else:
        axes.set_title("Change of the number of negative eigenvalues")
        shown = mpl.ticker.FuncFormatter(lambda v, _: minus(f"{v:+.0f}") if v else "0")
        axes.xaxis.set_major_formatter(shown)


def _draw_mean(axes: Axes, rule: str, place: int, mean: Estimate, text: str) -> None:
    color, across = color_of(rule), [place - 0.36, place + 0.36]
    lines = axes.plot([mean.value] * 2, across, color=color, linewidth=2, zorder=4)
    if np.isfinite(mean.low):
        lines += axes.plot([mean.low, mean.high], [place] * 2, color=color, linewidth=6, alpha=0.25)
    mark_all(lines, rule, f"{RULES[rule]}: {text}")


def _data(results: Evidence) -> Table:
    rows = [
        {"rule": rule, **asdict(effect)}
        for rule, each in effects(results).items()
        for effect in each
    ]
    return Table.of("effects of one mask update", rows)


SPECTRA = Figure(
    "spectra",
    "The Hessian's spectrum around one mask update",
    "One and the same network is updated by each rule. Grey: eigenvalues before the "
    "update; line: after it (thin: more draws of a random rule). The shaded side is "
    "negative; the bins are logarithmic away from zero, and so are the counts. Below, over "
    "all networks: a dot is a network (draws averaged), the bar the mean over seeds, the "
    "band its 95 % interval. Negative: under −10⁻³ times the largest eigenvalue before the "
    "update.",
    "mask updates tried by several rules",
    _draw,
    _data,
    update_effects,
    evidence=True,
)

register_study(
    UpdateStudy,
    Updates,
    probe="update",
    takes=(1, 1),
    options=("examples",),
    order=2,
    version=2,
    figures=(SPECTRA,),
)
