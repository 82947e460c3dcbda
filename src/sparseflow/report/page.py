"""The page: one HTML file with its figures inside, without scripts and without network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from sparseflow.core.optional import need
from sparseflow.measure.statistics import Verdict
from sparseflow.report import findings as say
from sparseflow.report import text
from sparseflow.report.captions import CAPTIONS
from sparseflow.report.claims import NOTE, Claim
from sparseflow.report.palette import METHODS, OTHER, VARIABLES, declarations
from sparseflow.report.published import HEADS, published_lines, published_notes
from sparseflow.report.results import Results
from sparseflow.report.summary import rows
from sparseflow.report.table import cells, notes, window
from sparseflow.report.vocabulary import kind_of
from sparseflow.runs.spec import Train


class _Family(NamedTuple):
    """Headline, density and length of training, to which ``--scale`` refers."""

    headline: str
    density: float
    steps: int


_FAMILIES = {
    "lenet5-mnist": _Family("Gradient flow in a sparse LeNet5 on MNIST", 0.05, Train().steps),
    "mlp-mnist": _Family("Gradient flow in a sparse perceptron on MNIST", 0.02, Train().steps),
    "resnet20-cifar10": _Family("Gradient flow in a sparse ResNet-20 on CIFAR-10", 0.1, 64_000),
    "resnet50-imagenet": _Family("Gradient flow in a sparse ResNet-50 on ImageNet", 0.2, 32_000),
    "vgg16-imagenet": _Family("Gradient flow in a sparse VGG-16 on ImageNet", 0.2, 32_000),
}

VERDICTS: dict[Verdict, tuple[str, str]] = {
    "holds": ("holds", "✓"),
    "does not hold": ("fails", "✕"),
    "not settled": ("open", "?"),
}
"""Class and sign of each verdict."""

FEW = 6
"""Recipes up to which the page names each of them in the commands."""


def render(results: Results, figures: dict[str, str], claims: Sequence[Claim] = ()) -> str:
    """Return the page; with claims it opens with them.

    Args:
        results: what was measured.
        figures: SVG by name, of those that could be drawn.
        claims: judged by these results.
    """
    environment = need("jinja2", extra="report").Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=need("jinja2", extra="report").StrictUndefined,
    )
    source = files("sparseflow.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    safe = need("markupsafe", extra="report").Markup
    captions = {n: c for n, c in CAPTIONS.items() if results.evidence or not c.evidence}
    shown = [
        (name, caption, text.joined(caption.seen(results)), safe(inline(figures[name], name)))
        for name, caption in captions.items()
        if name in figures
    ]
    absent = [caption for name, caption in captions.items() if name not in figures]
    return environment.from_string(source).render(
        results=results,
        headline=_family(results).headline,
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
        **_claimed(results, claims, figures),
    )


def _claimed(results: Results, claims: Sequence[Claim], figures: dict[str, str]) -> dict[str, Any]:
    """What the parts that rest on evidence show."""
    counts = Counter(claim.verdict for claim in claims)
    published = published_lines(results)
    return {
        "claims": claims,
        "joined": text.joined,
        "counts": [(verdict, counts[verdict]) for verdict in VERDICTS],
        "looks": VERDICTS,
        "titles": {name: CAPTIONS[name].title for name in figures if name in CAPTIONS},
        "judging": NOTE,
        "published": [(line, _color(line.group or "prune")) for line in published],
        "published_heads": list(HEADS.values()),
        "published_notes": published_notes(results) if published else "",
    }


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
    if results.evidence:
        return [f"sparseflow reproduce {results.family} -o report/{_settings(results)}"]
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
    said, whole = "", _family(results)
    if results.steps != whole.steps:
        scale = float(f"{results.steps / whole.steps:.3g}")
        exact = round(whole.steps * scale) == results.steps
        said = f" --scale {scale:g}" if exact else f" --set train.steps={results.steps}"
    return said + f" --set density={results.density:g}" * (results.density != whole.density)


def _family(results: Results) -> _Family:
    other = _Family(f"Gradient flow of {results.family}", results.density, results.steps)
    return _FAMILIES.get(results.family, other)


def _facts(results: Results) -> list[tuple[str, str]]:
    dead = sum(run.dead for run in results.runs)
    alone = [run for run in results.main if not kind_of(run.recipe).group] or results.main
    names = sorted({run.seed for run in alone}, key=lambda s: (len(s), s))
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
    if results.evidence:
        facts.append(("measured at checkpoints", text.count(len(results.evidence), "study")))
    return facts


def _color(recipe: str) -> str:
    return VARIABLES[METHODS.get(kind_of(recipe).method, OTHER)]
