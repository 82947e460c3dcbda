"""What a page needs to know of a drawing: whose each mark is, what it says, and the scales.

Matplotlib can name the group of an artist, and nothing more. So a mark's name is what
belongs in its attributes, which :func:`revealed` puts there.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any

from sparseflow.plotting.vocabulary import parse_recipe

_MARK = re.compile(r"""<g id=(["'])mark:(.*?)\1>""")
_AXES = re.compile(r"""<g id=(["'])axes:(.*?)\1>""")


def mark(artist: Any, recipe: str | Sequence[str], says: str = "") -> None:
    """Say of an artist whose runs it shows, and what hovering it tells.

    What shows runs of several recipes is there while all of their methods are.
    """
    recipes = [recipe] if isinstance(recipe, str) else list(dict.fromkeys(recipe))
    artist.set_gid("mark:" + json.dumps([recipes, says], ensure_ascii=False))


def mark_all(artists: Any, recipe: str | Sequence[str], says: str = "") -> None:
    """Say the same of several artists."""
    for artist in artists:
        mark(artist, recipe, says)


def mark_axes(axes: Any) -> None:
    """Note the scales of axes, so that a place on them can be read off."""
    axes.set_gid("axes:" + json.dumps([_scale(axes.xaxis), _scale(axes.yaxis)]))


def _scale(axis: Any) -> list[Any]:
    low, high = axis.get_view_interval()
    name = axis.get_scale()
    if name != "symlog":
        return [name, float(low), float(high)]
    transform = axis.get_transform()
    return [name, float(low), float(high), transform.linthresh, transform.linscale]


def revealed(svg: str) -> str:
    """Turn names into attributes that a page reads, and titles that a browser shows.

    >>> revealed('<g id="mark:[[&quot;set+&quot;], &quot;seed 1: 98 %&quot;]">')
    '<g class="mark" data-method="set" data-recipe="set+"><title>seed 1: 98 %</title>'
    >>> revealed('<g id="mark:[[&quot;rigl+&quot;, &quot;prune&quot;], &quot;&quot;]">')
    '<g class="mark" data-method="rigl prune" data-recipe="rigl+ prune">'
    """
    svg = _AXES.sub(lambda named: f"<g class='axes' data-scales='{named[2]}'>", svg)
    return _MARK.sub(_group, svg)


def _group(named: re.Match[str]) -> str:
    recipes, says = json.loads(html.unescape(named[2]))
    methods = html.escape(" ".join(dict.fromkeys(parse_recipe(r).method for r in recipes)))
    title = f"<title>{html.escape(says, quote=False)}</title>" if says else ""
    shown = html.escape(" ".join(recipes))
    return f'<g class="mark" data-method="{methods}" data-recipe="{shown}">{title}'
