"""The page: one HTML file with its figures inside, without scripts and without network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

from sparseflow.core.extra import need
from sparseflow.report import findings as say
from sparseflow.report import text
from sparseflow.report.palette import METHODS, OTHER, VARIABLES, declarations
from sparseflow.report.paper import REFERENCES
from sparseflow.report.results import Results
from sparseflow.report.summary import rows
from sparseflow.report.table import cells, notes, window
from sparseflow.report.vocabulary import kind_of
from sparseflow.runs.spec import Train

LENGTH = Train().steps
"""Steps of the authors' protocol, to which ``--scale`` refers."""

_FAMILIES = {
    "lenet5-mnist": ("Gradient flow in a sparse LeNet5 on MNIST", 0.05),
    "mlp-mnist": ("Gradient flow in a sparse perceptron on MNIST", 0.02),
}
"""Headline and density of each family."""

FEW = 6
"""Recipes up to which the page names each of them in the commands."""


@dataclass(frozen=True)
class Caption:
    """What stands beside a figure.

    Attributes:
        title: headline.
        reading: how to read it.
        seen: what it shows with the runs at hand; may be empty.
        missing: what to run, if there is nothing to draw.
    """

    title: str
    reading: str
    seen: Callable[[Results], str]
    missing: str


def _table(function: Callable[[say.Table], str]) -> Callable[[Results], str]:
    return lambda results: function(say.compared(results))


CAPTIONS: dict[str, Caption] = {
    "accuracy": Caption(
        "Accuracy by method and initialisation",
        "Every seed is a mark: a circle for masked dense initialisation and for methods that "
        "have one only, a square for Liu et al.'s, a diamond for the paper's (+). The bar is the "
        "median of the living runs. Crosses are dead runs, at chance.",
        _table(lambda table: f"{say.dead_or_alive(table)} {say.dynamic(table)}".strip()),
        "the training recipes",
    ),
    "flow": Caption(
        "Gradient norm during training",
        "L2 norm over all active parameters on a fixed probe batch. Thick line: median of the "
        "living seeds (dotted: masked dense, dashed: Liu et al., solid: the paper's, or the "
        "method's own start). Band: their range. × ends a dead run. Grey: the other panels. "
        "Gradual pruning is the dense network until it begins to prune.",
        _table(say.ticket_norm),
        "the training recipes",
    ),
    "flow-kernels": Caption(
        "The same over kernels alone",
        "Norm over weights alone: in a badly initialised sparse network the biases can make up "
        "nearly all of the total. Drawn as above.",
        _table(say.kernels_at_start),
        "the training recipes",
    ),
    "updates": Caption(
        "What a mask update does to the gradient norm",
        "Norm just after an update over the norm just before, minus one; beyond 1 % the scale is "
        "logarithmic. Line and band: median and "
        "middle half of the updates in twelve stretches of training; thin lines: the seeds.",
        _table(say.update_changes),
        "set+, rigl+ or prune",
    ),
    "start-signal": Caption(
        "Signal at initialisation against sparsity",
        "Standard deviation of the output before the softmax, He scale, masks uneven over the "
        "neurons. Line: median over seeds; band: their range.",
        say.signal_at_start,
        "the init-* recipes",
    ),
    "start-norm": Caption(
        "Gradient norm at initialisation against sparsity",
        "The same networks: gradient norm on the probe batch before any training.",
        say.norm_at_start,
        "the init-* recipes",
    ),
}


def render(results: Results, figures: dict[str, str]) -> str:
    """Return the page.

    Args:
        results: what was measured.
        figures: SVG by name, of those that could be drawn.
    """
    environment = need("jinja2", extra="report").Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=need("jinja2", extra="report").StrictUndefined,
    )
    source = files("sparseflow.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    safe = need("markupsafe", extra="report").Markup
    shown = [
        (name, caption, text.joined(caption.seen(results)), safe(inline(figures[name], name)))
        for name, caption in CAPTIONS.items()
        if name in figures
    ]
    absent = [caption for name, caption in CAPTIONS.items() if name not in figures]
    return environment.from_string(source).render(
        results=results,
        headline=_family(results)[0],
        facts=_facts(results),
        findings=[text.joined(sentence) for sentence in say.findings(results)],
        lines=[(cells(row), _color(row.recipe)) for row in rows(results)],
        referred=any(row.reference for row in rows(results)),
        window=window(results),
        notes=notes(results),
        variants=sum(bool(run.variant) for run in results.runs),
        figures=shown,
        absent=absent,
        commands=commands(results),
        light=safe(declarations(dark=False)),
        dark=safe(declarations(dark=True)),
        paper=results.family in REFERENCES,
    )


def inline(svg: str, name: str) -> str:
    """Make a figure part of the page: own names, the page's colours and typeface.

    Args:
        svg: as matplotlib writes it.
        name: of the figure; ids must differ between the figures of a page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg ([^>]*?)\bwidth="[^"]*"', r"<svg \1", svg)
    svg = re.sub(r'^<svg ([^>]*?)\bheight="[^"]*"', r'<svg role="img" \1', svg)
    for before in (' id="', "url(#", 'href="#'):
        svg = svg.replace(before, f"{before}{name}-")
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.replace("'DejaVu Sans'", "var(--sans)")


def commands(results: Results) -> list[str]:
    """Commands that run the same again."""
    recipes = list(dict.fromkeys(run.recipe for run in results.main))
    what = results.family
    if 0 < len(recipes) <= FEW:
        what = " ".join(f"{results.family}/{recipe}" for recipe in recipes)
    numbers = sorted({run.seeds[0] for run in results.main}) or [0]
    several = ",".join(map(str, numbers))
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        several = f"{numbers[0]}-{numbers[-1]}"
    extra = _settings(results) if results.main else ""
    return [
        f"sparseflow sweep {what} --seeds {several} --jobs 2{extra}",
        f"sparseflow report {what} -o report/{extra}",
    ]


def _settings(results: Results) -> str:
    """Options that give the density and length of these runs."""
    said = ""
    if results.steps != LENGTH:
        scale = float(f"{results.steps / LENGTH:.3g}")
        exact = round(LENGTH * scale) == results.steps
        said = f" --scale {scale:g}" if exact else f" --set train.steps={results.steps}"
    return said + f" --set density={results.density:g}" * (results.density != _family(results)[1])


def _family(results: Results) -> tuple[str, float]:
    other = (f"Gradient flow of {results.family}", results.density)
    return _FAMILIES.get(results.family, other)


def _facts(results: Results) -> list[tuple[str, str]]:
    dead = sum(run.dead for run in results.runs)
    names = sorted({run.seed for run in results.main}, key=lambda s: (len(s), s))
    facts = [
        ("family", results.family),
        ("sparsity", text.percent(1 - results.density)),
        ("training", text.count(results.steps, "step")),
        ("seeds", text.seeds(names)),
        ("runs", f"{len(results.runs)}, {dead} of them dead" if dead else f"{len(results.runs)}"),
    ]
    if not results.runs:
        facts = facts[:1]
    if results.at_start:
        facts.append(("measured at initialisation", text.count(len(results.at_start), "network")))
    return facts


def _color(recipe: str) -> str:
    return VARIABLES[METHODS.get(kind_of(recipe).method, OTHER)]
