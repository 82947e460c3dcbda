"""Hessian spectra: before and after a mask update by each rule, and of trained networks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from sparseflow.measure.statistics import Estimate
from sparseflow.report.figures.style import WIDTH, styled
from sparseflow.report.palette import GRID, INK, METHODS, MUTED, OTHER
from sparseflow.report.results import Results, Spectrum, Updates
from sparseflow.report.seen import Effect, effects, over_seeds, spectrum_name, trained
from sparseflow.report.text import change, minus
from sparseflow.report.vocabulary import RULES, place_of

LEAST = 0.3
"""Expected number of eigenvalues in a bin under which it is drawn as empty."""

_CHANGES = (-1.0, -0.1, 0.0, 0.1, 1.0, 10.0, 100.0)


def spectra_figure(results: Results) -> Figure | None:
    """Draw the spectrum of one network before and after an update, and the change over all.

    Returns:
        None if no update was tried.
    """
    found = effects(results)
    shown = _example(results.updates)
    if shown is None or not found:
        return None
    rules = [rule for rule in RULES if rule in found]
    with styled():
        figure = Figure(figsize=(WIDTH, 1.0 + 1.02 * len(rules) + 2 * (0.55 + 0.2 * len(rules))))
        heights = [0.6 + 1.02 * len(rules), 2 * (0.6 + 0.2 * len(rules))]
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        panels = upper.subplots(len(rules), sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, rule in zip(panels, rules, strict=True):
            _draw_rule(axes, shown, rule)
        _eigenvalues(list(panels), [shown.before, *(trial.spectrum for trial in shown.after)])
        upper.supylabel("eigenvalues in a bin", fontsize=9.5)
        panels[-1].set_xlabel("eigenvalue (logarithmic away from 0)")
        place = place_of(shown.label)
        name = f"{place.recipe}, seed {place.seed}, step {shown.step:,}"
        grey = [Patch(facecolor=MUTED, alpha=0.45), Line2D([], [], color=INK, linewidth=1.3)]
        upper.legend(
            grey, [f"before the update ({name})", "after it"], loc="outside upper left", ncols=2
        )
        first, second = lower.subplots(2)
        _changes(first, found, rules, "negatives")
        _changes(second, found, rules, "norm")
        return figure


def spectrum_figure(results: Results) -> Figure | None:
    """Draw the spectrum of a trained network: exact, and by Lanczos quadrature.

    Returns:
        None if no trained network's spectrum was measured.
    """
    groups = trained(results)
    if not groups:
        return None
    shown = groups[0]
    with styled():
        figure = Figure(figsize=(WIDTH, 2.7 + 0.2 * len(shown)))
        axes = figure.subplots()
        handles: list[Patch | Line2D] = []
        colors = iter((METHODS["rigl"], METHODS["prune"], METHODS["lottery"]) * len(shown))
        for spectrum in sorted(shown, key=lambda s: (not s.exact, s.examples)):
            if spectrum.exact:
                _filled(axes, spectrum)
                handles.append(Patch(facecolor=MUTED, alpha=0.45))
            else:
                color = next(colors)
                dashes = "-" if len(handles) < 2 else (0, (3, 1.2))
                edges, counts = _histogram(spectrum)
                axes.stairs(counts, edges, color=color, linewidth=1.4, linestyle=dashes)
                handles.append(Line2D([], [], color=color, linewidth=1.4, linestyle=dashes))
        names = [spectrum_name(s) for s in sorted(shown, key=lambda s: (not s.exact, s.examples))]
        _counts_axis(axes)
        _eigenvalues([axes], shown)
        axes.set_title(f"{shown[0].label}, {shown[0].parameters:,} active parameters")
        axes.set_ylabel("eigenvalues in a bin")
        axes.set_xlabel("eigenvalue (logarithmic away from 0)")
        figure.legend(handles, names, loc="outside upper left")
        return figure


def _example(updates: Sequence[Updates]) -> Updates | None:
    """The network in the middle, by step and seed."""
    known = sorted((u for u in updates if u.after), key=lambda u: (u.step, u.label))
    return known[(len(known) - 1) // 2] if known else None


def _draw_rule(axes: Axes, shown: Updates, rule: str) -> None:
    trials = [trial for trial in shown.after if trial.rule == rule]
    _filled(axes, shown.before)
    for number, trial in enumerate(trials):
        edges, counts = _histogram(trial.spectrum)
        width, alpha = (0.6, 0.6) if number else (1.3, 1.0)
        axes.stairs(counts, edges, color=_color(rule), linewidth=width, alpha=alpha)
    _counts_axis(axes)
    text = RULES[rule]
    if trials and shown.before.negative is not None:
        had = shown.before.negative * shown.before.parameters
        mean = statistics.fmean(trial.negative for trial in trials)
        text += f": {had:,.0f} → {mean:,.0f} negative"
    axes.set_title(text, color=_color(rule))


def _filled(axes: Axes, spectrum: Spectrum) -> None:
    edges, counts = _histogram(spectrum)
    axes.stairs(counts, edges, fill=True, color=MUTED, alpha=0.45, linewidth=0, zorder=1)


def _histogram(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    edges, counts = (np.array(c, dtype=float) for c in (spectrum.edges, spectrum.counts))
    return edges, np.where(np.nan_to_num(counts) < LEAST, LEAST, counts)


def _counts_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylim(bottom=LEAST)
    axes.yaxis.set_major_locator(FixedLocator([1, 10, 100, 1000, 10_000]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _eigenvalues(panels: Sequence[Axes], spectra: Sequence[Spectrum]) -> None:
    """Scale as the bins are: even in the arsinh, so each bin is as wide as the next."""
    edges = np.array(spectra[0].edges, dtype=float)
    linear = _linear_width(edges)
    low, high = _reach(spectra)
    powers = [10.0**p for p in range(-6, 7, 2) if 10.0**p > 2 * linear]
    ticks = [0.0, *powers, *(-p for p in powers)]
    for axes in panels:
        axes.set_xscale("asinh", linear_width=linear)
        axes.set_xlim(low, high)
        axes.axvspan(low, 0, color=GRID, alpha=0.45, linewidth=0, zorder=0)
        axes.axvline(0, color=INK, linewidth=0.8, zorder=3)
        axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: minus(f"{v:g}")))
        axes.grid(visible=False, axis="x")


def _linear_width(edges: np.ndarray) -> float:
    """Recover s from edges s · sinh(u), even in u: far out each is exp(Δu) times the last."""
    last = np.sort(np.abs(edges))[-1]
    before = edges[-2] if edges[-1] == last else -edges[1]
    step = np.log(last / before) if before > 0 else 1.0
    widths = np.diff(edges)
    return float(widths.min() / (2 * np.sinh(step / 2)))


def _reach(spectra: Sequence[Spectrum]) -> tuple[float, float]:
    """Ends of the bins that hold anything, with the zero inside."""
    low, high = 0.0, 0.0
    for spectrum in spectra:
        edges, counts = (np.array(c, dtype=float) for c in (spectrum.edges, spectrum.counts))
        filled = np.flatnonzero(counts >= LEAST)
        if len(filled):
            low = min(low, float(edges[max(filled[0] - 1, 0)]))
            high = max(high, float(edges[min(filled[-1] + 2, len(edges) - 1)]))
    return low, high


def _changes(axes: Axes, found: dict[str, list[Effect]], rules: list[str], field: str) -> None:
    for place, rule in enumerate(rules):
        values = [getattr(effect, field) for effect in found[rule]]
        offsets = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(
            values, place + offsets, s=13, color=_color(rule), alpha=0.6, linewidths=0, zorder=3
        )
        _bar(axes, over_seeds(found[rule], field), place, _color(rule))
    axes.set_yticks(range(len(rules)), [RULES[rule] for rule in rules])
    axes.set_ylim(len(rules) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
    if field == "norm":
        axes.set_title("Change of the gradient norm at one update")
        values = [getattr(effect, field) for rule in rules for effect in found[rule]]
        axes.set_xscale("symlog", linthresh=0.1, linscale=0.8)
        low, high = min(*values, -0.02), max(*values, 0.02)
        axes.set_xlim(low - 0.1 * abs(low), high + 0.15 * abs(high))
        axes.xaxis.set_major_locator(FixedLocator(_CHANGES))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: change(v)))
    else:
        axes.set_title("Change of the number of negative eigenvalues")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: minus(f"{v:+.0f}") if v else "0"))


def _bar(axes: Axes, mean: Estimate, place: int, color: str) -> None:
    if np.isfinite(mean.low):
        axes.plot([mean.low, mean.high], [place] * 2, color=color, linewidth=6, alpha=0.25)
    axes.plot([mean.value] * 2, [place - 0.36, place + 0.36], color=color, linewidth=2, zorder=4)


def _color(rule: str) -> str:
    return METHODS.get(rule, OTHER)
