"""The page: one HTML file with its figures inside, without scripts and without network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from sparseflow.core.optional import need
from sparseflow.plotting import formats
from sparseflow.plotting.palette import color_of, declarations, variables
from sparseflow.plotting.vocabulary import kind_of
from sparseflow.recipes import FAMILIES
from sparseflow.report import table
from sparseflow.report.commands import commands
from sparseflow.report.figures import expected
from sparseflow.report.findings import findings
from sparseflow.report.results import Results
from sparseflow.report.summary import early_window, rows


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
        rows=[(row, colors[color_of(row.recipe)]) for row in shown],
        referred=any(row.reference for row in shown),
        table=table,
        early_window=early_window(results.runs),
        variants=sum(bool(run.variant) for run in results.runs),
        figures=[
            (figure, figure.finding(results), safe(inline(drawings[figure.name], figure.name)))
            for figure in drawn
        ],
        absent=[figure for name, figure in possible.items() if name not in drawings],
        commands=commands(results),
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


def _headline(results: Results) -> str:
    known = results.family in FAMILIES
    return FAMILIES[results.family].headline if known else f"Gradient flow of {results.family}"


def _facts(results: Results) -> list[tuple[str, str]]:
    dead = sum(run.dead for run in results.runs)
    alone = [run for run in results.main if not kind_of(run.recipe).group] or results.main
    names = sorted({run.seed for run in alone}, key=lambda s: (len(s), s))
    facts = [
        ("family", results.family),
        ("sparsity", formats.percent(1 - results.density)),
        ("training", formats.count(results.steps, "step")),
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
