"""Hessian spectrum of the training loss at one checkpoint."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from sparseflow.data import Batch
from sparseflow.masks import Masks
from sparseflow.measure.density import spectral_density
from sparseflow.measure.flow import gradient_flow
from sparseflow.measure.operators import Curvature, hessian
from sparseflow.measure.spectrum import spectrum
from sparseflow.plotting.drawing import Drawing, eigenvalues, mpl, style
from sparseflow.plotting.figure import Figure
from sparseflow.plotting.formats import count, finite, minus, percent, short
from sparseflow.plotting.marks import mark
from sparseflow.plotting.palette import INK, MUTED, color_of
from sparseflow.plotting.table import Table
from sparseflow.plotting.vocabulary import parse_label, parse_recipe
from sparseflow.runs import Store
from sparseflow.studies.evidence import Evidence, of
from sparseflow.studies.load import examples, load_all
from sparseflow.studies.study import Point, Record, Study, Tagged, points_at, register_study
from sparseflow.studies.values import Number, Row, rounded, row
from sparseflow.train import cross_entropy

EDGES = 1e-3 * np.sinh(np.linspace(-14, 14, 113))
"""Bins of the histograms: fine around zero, from -600 to 600."""


class Spectrum(Record, Tagged, frozen=True, tag="spectrum"):
    """Hessian spectrum over the active parameters.

    Attributes:
        label: the network, see :func:`sparseflow.studies.label_of`; empty in a trial.
        parameters: active parameters, the number of eigenvalues.
        examples: that the loss is over.
        loss: mean training loss on them.
        norm: L2 norm of its gradient over the active parameters.
        largest: largest eigenvalue.
        smallest: smallest eigenvalue.
        negative: share of eigenvalues below -10⁻³ times the largest.
        low: lower end of its interval; equal to it if exact.
        high: upper end.
        exact: whether every eigenvalue was computed.
        edges: of the histogram's bins, increasing, even in the arsinh of λ.
        counts: (expected) number of eigenvalues in each bin.
    """

    label: str
    parameters: int
    examples: int
    loss: Number
    norm: Number
    largest: Number
    smallest: Number
    negative: Number
    low: Number
    high: Number
    exact: bool
    edges: Row
    counts: Row

    @property
    def histogram(self) -> tuple[Row, Row]:
        """Edges and counts."""
        return self.edges, self.counts

    @property
    def method(self) -> str:
        """How it was made, and over how many images."""
        return f"{'Exact' if self.exact else 'Lanczos'}, {count(self.examples, 'image')}"

    def tables(self) -> list[Table]:
        """Everything but the histogram."""
        values = {
            "checkpoint": self.label,
            "active parameters": self.parameters,
            "examples": self.examples,
            "loss": self.loss,
            "gradient norm": self.norm,
            "largest eigenvalue": self.largest,
            "smallest eigenvalue": self.smallest,
            "share of negative eigenvalues": self.negative,
            "… its interval": f"{self.low:.4g} – {self.high:.4g}",
            "computed": "every eigenvalue" if self.exact else "density by Lanczos quadrature",
        }
        return [Table.listing("Hessian spectrum", values)]


class SpectrumStudy(Study, Tagged, frozen=True, tag="spectrum"):
    """Hessian spectrum of the training loss at one checkpoint.

    Attributes:
        at: the checkpoint.
        examples: of the training set, from its start.
        exact: the full spectrum, or its density by Lanczos quadrature.
        steps: of Lanczos.
        probes: random vectors of the density.
    """

    at: Point
    examples: int = 1000
    exact: bool = True
    steps: int = 80
    probes: int = 4

    @classmethod
    def of(cls, places: Any, *, exact: bool = False, **options: Any) -> SpectrumStudy:
        """Take one place; its spectral density unless ``exact``."""
        (at,) = points_at(places)
        return cls(at, exact=exact, **options)

    @property
    def checkpoints(self) -> tuple[Point, ...]:
        """The one."""
        return (self.at,)

    def measure(self, store: Store) -> Spectrum:
        """Measure the spectrum at a kept checkpoint."""
        (network,), data = load_all(self, store)
        batch = examples(data, self.examples)
        if self.exact:
            record, _ = measured_exactly(network.model, network.masks, batch)
        else:
            operator = hessian(network.model, cross_entropy, batch, network.masks)
            common = _common(network.model, network.masks, batch, operator)
            record = Spectrum(**common, **self._density(operator))
        return replace(record, label=network.label)

    def _density(self, operator: Curvature) -> dict[str, Any]:
        density = spectral_density(operator, self.steps, self.probes)
        share = density.negative_share
        nodes = torch.cat([probe.nodes for probe in density.probes])
        weights = torch.cat([probe.weights for probe in density.probes])
        return {
            "exact": False,
            "largest": rounded(density.largest),
            "smallest": rounded(density.smallest),
            "negative": rounded(share.value),
            "low": rounded(share.low),
            "high": rounded(share.high),
            "counts": _counts(nodes, weights * (operator.shape[0] / len(density.probes))),
        }


def measured_exactly(model: nn.Module, masks: Masks, batch: Batch) -> tuple[Spectrum, Tensor]:
    """Return the record, without a label, and the eigenvalues themselves."""
    operator = hessian(model, cross_entropy, batch, masks)
    exact = spectrum(operator)
    share = rounded(exact.negative_share)
    record = Spectrum(
        **_common(model, masks, batch, operator),
        exact=True,
        largest=rounded(exact.largest),
        smallest=rounded(exact.smallest),
        negative=share,
        low=share,
        high=share,
        counts=_counts(exact.values, torch.ones_like(exact.values)),
    )
    return record, exact.values


def _common(model: nn.Module, masks: Masks, batch: Batch, operator: Curvature) -> dict[str, Any]:
    flow = gradient_flow(model, cross_entropy, batch, masks)
    return {
        "label": "",
        "parameters": operator.shape[0],
        "examples": len(batch[1]),
        "loss": rounded(flow.loss),
        "norm": rounded(flow.total),
        "edges": row(EDGES),
    }


def _counts(values: Tensor, weights: Tensor) -> Row:
    """Weight in each bin; what lies beyond the bins counts in the last one."""
    clipped = np.clip(values.cpu().numpy(), EDGES[0], EDGES[-1])
    counts, _ = np.histogram(clipped, EDGES, weights=weights.cpu().numpy())
    return row(counts)


def at_start(results: Evidence) -> dict[str, list[Spectrum]]:
    """Spectra at initialisation by recipe, in the order of the table."""
    table: dict[str, list[Spectrum]] = {}
    for record in of(results, Spectrum):
        place = parse_label(record.label)
        if place.when == "start" and record.largest is not None and record.smallest is not None:
            table.setdefault(place.recipe, []).append(record)
    return dict(sorted(table.items(), key=lambda item: parse_recipe(item[0]).order))


def curvature_at_start(results: Evidence) -> str:
    """Largest and smallest eigenvalue by recipe, with those that others measured."""
    said = []
    for recipe, records in at_start(results).items():
        large = statistics.median(finite(s.largest for s in records))
        small = statistics.median(finite(s.smallest for s in records))
        text = f"{recipe} {short(large)} and {minus(short(small))}"
        theirs = results.references.curvature.get(recipe)
        if theirs:
            smallest = minus(f"{theirs.smallest:g}")
            text += f" ({results.references.name} {theirs.largest:g} and {smallest})"
        said.append(text)
    return f"Largest and smallest eigenvalue (median): {'; '.join(said)}." if said else ""


def _draw_start(results: Evidence) -> Drawing | None:
    """Draw each seed as a dot, and what others measured as triangles."""
    groups, others = at_start(results), results.references
    if not groups:
        return None
    with style.styled():
        figure = mpl.figure.Figure(figsize=(style.WIDTH, 1.2 + 0.3 * len(groups)))
        for axes, name, sign in zip(
            figure.subplots(1, 2, sharey=True), ("largest", "smallest"), (1, -1), strict=True
        ):
            values = {r: [getattr(s, name) for s in records] for r, records in groups.items()}
            theirs = {r: getattr(pair, name) for r, pair in others.curvature.items()}
            axes.set_title(f"{name.capitalize()} eigenvalue")
            eigenvalues.draw_extremes(axes, values, theirs, sign)
        handles = [
            mpl.lines.Line2D([], [], linestyle="", marker=m, color=c, markersize=5)
            for m, c in (("o", MUTED), ("^", INK))
        ]
        names = ["a seed", others.name]
        shown = 2 if any(recipe in others.curvature for recipe in groups) else 1
        figure.legend(handles[:shown], names[:shown], loc="outside upper left", ncols=2)
        return figure


def trained(results: Evidence) -> list[list[Spectrum]]:
    """Spectra of trained networks, those of one network together."""
    groups: dict[str, list[Spectrum]] = {}
    for record in of(results, Spectrum):
        if parse_label(record.label).when not in ("start", ""):
            groups.setdefault(record.label, []).append(record)
    return list(groups.values())


def trained_spectra(results: Evidence) -> str:
    """Extreme and negative eigenvalues, exactly and by quadrature."""
    said = []
    for s in next(iter(trained(results)), []):
        negative, low, high = (
            percent(math.nan if v is None else round(v, 3)) for v in (s.negative, s.low, s.high)
        )
        within = "" if s.exact else f" (between {low} and {high})"
        said.append(
            f"{s.method}: eigenvalues from {minus(short(s.smallest))} to {short(s.largest)}, "
            f"{negative} negative{within}"
        )
    return f"{'; '.join(said)}." if said else ""


def _draw_trained(results: Evidence) -> Drawing | None:
    """Draw the spectrum of a trained network: exact, and by Lanczos quadrature."""
    groups = trained(results)
    if not groups:
        return None
    shown = sorted(groups[0], key=lambda s: (not s.exact, s.examples))
    recipe = parse_label(shown[0].label).recipe
    with style.styled():
        figure = mpl.figure.Figure(figsize=(style.WIDTH, 2.7 + 0.2 * len(shown)))
        axes = figure.subplots()
        handles: list[Any] = []
        colors = iter([color_of(name) for name in ("rigl", "prune", "lottery")] * len(shown))
        for s in shown:
            if s.exact:
                drawn = eigenvalues.fill(axes, s.histogram)
                handles.append(mpl.patches.Patch(facecolor=MUTED, alpha=0.45))
            else:
                dashes = "-" if len(handles) < 2 else (0, (3, 1.2))
                look = {"color": next(colors), "linewidth": 1.4, "linestyle": dashes}
                drawn = eigenvalues.outline(axes, s.histogram, **look)
                handles.append(mpl.lines.Line2D([], [], **look))
            mark(drawn, recipe, f"{recipe}: {s.method}")
        eigenvalues.scale([axes], [s.histogram for s in groups[0]])
        axes.set_title(f"{shown[0].label}, {shown[0].parameters:,} active parameters")
        axes.set_ylabel("eigenvalues in a bin")
        axes.set_xlabel("eigenvalue (logarithmic away from 0)")
        figure.legend(handles, [s.method for s in shown], loc="outside upper left")
        return figure


def _data_start(results: Evidence) -> Table:
    rows = [
        {"checkpoint": s.label, "largest": s.largest, "smallest": s.smallest}
        for records in at_start(results).values()
        for s in records
    ]
    return Table.of("curvature at initialisation", rows)


def _data_trained(results: Evidence) -> Table:
    rows = [
        {"checkpoint": s.label, "spectrum": s.method, "from": a, "to": b, "eigenvalues": n}
        for s in next(iter(trained(results)), [])
        for a, b, n in zip(s.edges, s.edges[1:], s.counts, strict=False)
    ]
    return Table.of("spectrum of a trained network", rows)


AT_START = Figure(
    "curvature-start",
    "Curvature at initialisation",
    "Largest and smallest eigenvalue of the Hessian over the active parameters, on the "
    "first training images, before any training. Dots: seeds. Triangles: what "
    "others measured. Both scales are logarithmic.",
    "spectra at initialisation",
    _draw_start,
    _data_start,
    curvature_at_start,
    evidence=True,
)

TRAINED = Figure(
    "spectrum",
    "The whole spectrum of a trained sparse network",
    "Every eigenvalue computed (grey), and Lanczos quadrature (lines), which takes a "
    "fraction of the time. The shaded side is negative; the bins are logarithmic away "
    "from zero, and so are the counts.",
    "spectra of a trained network",
    _draw_trained,
    _data_trained,
    trained_spectra,
    evidence=True,
)

register_study(
    SpectrumStudy,
    Spectrum,
    probe="hessian",
    takes=(1, 1),
    options=("examples", "exact"),
    order=1,
    figures=(AT_START, TRAINED),
)
