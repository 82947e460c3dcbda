"""The page: one HTML file with its figures and their values inside.

It needs no network, and no script to be read: a small one switches methods on and off,
and names what is under the pointer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from sparseflow.core.optional import need
from sparseflow.plotting import formats
from sparseflow.plotting.palette import color_of, declarations, variables
from sparseflow.plotting.vocabulary import look_of, parse_recipe
from sparseflow.recipes import FAMILIES
from sparseflow.report import table
from sparseflow.report.commands import commands
from sparseflow.report.figures import OF_MAIN, expected
from sparseflow.report.findings import DENSE, findings
from sparseflow.report.results import Results
from sparseflow.report.summary import Row, early_window, rows


@dataclass(frozen=True)
class Section:
    """A part of the page that is handed in.

    Attributes:
        template: HTML as Jinja; it also knows ``titles``, those of the figures by
            name, and the filter ``joined``, which keeps numbers and units together.
        values: that it shows.
        style: CSS of its own.
        files: to be written with the page, by name.
        last: whether it closes the page; else it opens it.
    """

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    style: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    last: bool = False


def render(results: Results, drawings: dict[str, str], sections: Sequence[Section] = ()) -> str:
    """Return the page.

    Args:
        results: what was measured.
        drawings: SVG by name, of the figures that could be drawn.
        sections: to open and to close it with.
    """
    environment = _environment()
    safe = need("markupsafe", extra="report").Markup
    possible = expected(results)
    drawn = [figure for name, figure in possible.items() if name in drawings]
    titles = {figure.name: figure.title for figure in drawn}

    def made(section: Section) -> str:
        template = environment.from_string(section.template)
        return safe(template.render(section.values, titles=titles))

    shown, colors = rows(results), variables()
    return environment.from_string(_source("page.html.j2")).render(
        results=results,
        references=results.references,
        headline=_headline(results),
        facts=_facts(results),
        findings=findings(results),
        rows=[
            (row, colors[color_of(row.recipe)], parse_recipe(row.recipe).method) for row in shown
        ],
        methods=_methods(shown),
        referred=any(row.reference for row in shown),
        table=table,
        early_window=early_window(results.runs),
        variants=sum(bool(run.variant) for run in results.runs),
        figures=[
            (
                figure,
                figure.finding(results),
                safe(inline(drawings[figure.name], figure.name)),
                data_link(figure.data(results).csv()),
            )
            for figure in drawn
        ],
        absent=[figure for name, figure in possible.items() if name not in drawings],
        commands=commands(results),
        shows=shown_variant(results),
        of_main=OF_MAIN,
        script=safe(_source("page.js")),
        light=safe(declarations(dark=False)),
        dark=safe(declarations(dark=True)),
        style=safe("\n".join([_source("page.css"), *(section.style for section in sections)])),
        opening=[made(section) for section in sections if not section.last],
        closing=[made(section) for section in sections if section.last],
    )


def _environment() -> Any:
    jinja = need("jinja2", extra="report")
    made = jinja.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja.StrictUndefined
    )
    made.filters["joined"] = formats.joined
    return made


def _source(name: str) -> str:
    return files("sparseflow.report").joinpath(name).read_text(encoding="utf-8")


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
    for color, variable in variables().items():
        svg = svg.replace(color, f"var({variable})")
    return svg.replace("'DejaVu Sans'", "var(--sans)")


def data_link(text: str) -> str:
    """Write a file into a link.

    >>> data_link("a,b c")
    'data:text/csv;charset=utf-8,a,b%20c'
    """
    return "data:text/csv;charset=utf-8," + quote(text, safe=",:;()+/=")


def shown_variant(results: Results) -> str:
    """Say which of several variants the figures of one variant show; empty if there is one."""
    if not results.main or not any(run.variant for run in results.runs):
        return ""
    density, steps = formats.percent(results.density), formats.count(results.steps, "step")
    named = {run.recipe: run.settings for run in results.main if run.settings}
    recipes: dict[str, list[str]] = {}
    for recipe, settings in named.items():
        recipes.setdefault(settings, []).append(recipe)
    told = "; ".join(f"{formats.listing(names)} with {each}" for each, names in recipes.items())
    return (
        f"Shown are the runs at density {density} and of {steps}{told and f', {told}'}. "
        "The other variants are in the table."
    )


def _methods(shown: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Name, label and colour of every method of the table."""
    colors = variables()
    named = {parse_recipe(row.recipe).method: row.recipe for row in shown}
    return [
        (method, look_of(recipe).label, colors[color_of(recipe)])
        for method, recipe in named.items()
    ]


def _headline(results: Results) -> str:
    registered = results.family in FAMILIES
    return FAMILIES[results.family].headline if registered else f"Gradient flow of {results.family}"


def _facts(results: Results) -> list[tuple[str, str]]:
    dead = sum(run.dead for run in results.runs)
    alone = [run for run in results.main if not parse_recipe(run.recipe).group] or results.main
    names = sorted({run.seed for run in alone}, key=lambda s: (len(s), s))
    sparse = {run.density for run in results.runs if parse_recipe(run.recipe).method not in DENSE}
    lengths = sorted({run.steps for run in results.runs})
    facts = [
        ("family", results.family),
        ("sparsity", ", ".join(formats.percent(1 - d) for d in sorted(sparse)[::-1]) or "none"),
        ("training", " or ".join(formats.count(steps, "step") for steps in lengths)),
        ("seeds", formats.seeds(names)),
        ("runs", f"{len(results.runs)}, {dead} of them dead" if dead else f"{len(results.runs)}"),
    ]
    if not results.runs:
        facts = facts[:1]
    if results.at_start:
        facts.append(
            ("measured at initialisation", formats.count(len(results.at_start), "network"))
        )
    if results.evidence:
        facts.append(("measured at checkpoints", formats.count(len(results.evidence), "study")))
    return facts
