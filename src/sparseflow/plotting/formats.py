"""Numbers and lists as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

from sparseflow.measure.statistics import Estimate

NONE = "–"


def finite(values: Iterable[float | None]) -> list[float]:
    """Drop what is missing."""
    return [v for v in values if v is not None and math.isfinite(v)]


def short(value: float | None) -> str:
    """Two significant digits, without an exponent where that is readable.

    >>> [short(v) for v in (0.0316, 0.00012, 1.26, 14.2, 0.0, None)]
    ['0.032', '0.00012', '1.3', '14', '0', '–']
    """
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if not 1e-5 <= abs(value) < 1e5:
        return f"{value:.1e}"
    digits = max(0, 1 - math.floor(math.log10(abs(float(f"{value:.1e}")))))
    return f"{value:.{digits}f}"


def spread(values: Iterable[float | None]) -> str:
    """Range of several numbers, or the one that all of them round to.

    >>> spread([0.0311, 0.034]), spread([0.40]), spread([])
    ('0.031–0.034', '0.40', '–')
    """
    numbers = finite(values)
    if not numbers:
        return NONE
    low, high = short(min(numbers)), short(max(numbers))
    return low if low == high else f"{low}–{high}"


def given(values: Iterable[float]) -> str:
    """Range of numbers as their source gives them.

    >>> given([0.0001, 0.0004]), given([0.4]), given([])
    ('0.0001–0.0004', '0.40', '')
    """
    return "–".join(f"{v:.2f}" if round(v, 2) == v else f"{v:g}" for v in values)


def accuracy(value: float) -> str:
    """Two decimals."""
    return f"{value:.2f}"


def percent(share: float) -> str:
    """A share as a percentage with as many digits as it needs.

    >>> percent(0.05), percent(0.985), percent(1.0)
    ('5 %', '98.5 %', '100 %')
    """
    return f"{100 * share:.6g} %"


def change(ratio: float) -> str:
    """A relative change with its sign.

    >>> change(0.1234), change(-0.002), change(0.00001), change(1.5)
    ('+12 %', '−0.2 %', '0 %', '+150 %')
    """
    value = 100 * ratio
    if abs(value) < 0.05:
        return "0 %"
    shown = f"{abs(value):.0f}" if abs(value) >= 10 else f"{abs(value):.1f}"
    return f"{'+' if value > 0 else '−'}{shown} %"


def listing(words: Sequence[str]) -> str:
    """Join with commas and a final "and".

    >>> listing(["a", "b", "c"]), listing(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def seeds(names: Sequence[str]) -> str:
    """Seeds, runs of consecutive ones as a range.

    >>> seeds(["0", "1", "2"]), seeds(["0", "2"]), seeds(["0", "0/1/0"])
    ('0–2', '0, 2', '0, 0/1/0')
    >>> seeds(["0/0/1", "0/0/2", "0/0/3"])
    '0/0/1–3'
    """
    shared = {name.rpartition("/")[0] for name in names}
    if len(shared) == 1 and (before := shared.pop()):
        return f"{before}/{seeds([name.rpartition('/')[2] for name in names])}"
    numbers = [int(n) for n in names if n.isdigit()]
    consecutive = numbers == list(range(min(numbers, default=0), max(numbers, default=0) + 1))
    if len(numbers) == len(names) > 2 and consecutive:
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(names)


_APART = re.compile(r"\[[^][]*\]|\d ±")


def joined(sentence: str) -> str:
    """Keep numbers and their percent signs, ± and intervals on one line.

    >>> joined("up 3 % [−1 %, 4 %]").count(chr(160))
    4
    """
    kept = _APART.sub(lambda found: found[0].replace(" ", "\u00a0"), sentence)
    return kept.replace(" %", "\u00a0%")


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "run"), count(11719, "step"), count(2, "study")
    ('1 run', '11,719 steps', '2 studies')
    """
    many = f"{noun[:-1]}ies" if noun.endswith("dy") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else many}"


def signed(value: float) -> str:
    """Two significant digits with a sign.

    >>> signed(12.3), signed(-0.5), signed(0.0)
    ('+12', '−0.50', '0')
    """
    mark = "+" if value > 0 else "−" if value < 0 else ""
    return mark + short(abs(value))


def minus(text: str) -> str:
    """Write a leading hyphen as a minus sign.

    >>> minus("-0.3")
    '−0.3'
    """
    return "−" + text[1:] if text.startswith("-") else text


def estimate(value: Estimate, shown: Callable[[float], str] = short) -> str:
    """A number with its interval, where it has one.

    >>> estimate(Estimate(98.5, 98.25, 98.75, 5), accuracy)
    '98.50 [98.25, 98.75]'
    >>> estimate(Estimate(0.5, math.nan, math.nan, 1))
    '0.50'
    """
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return shown(value.value)
    return f"{shown(value.value)} [{shown(value.low)}, {shown(value.high)}]"


def clipped(text: str, most: int = 40) -> str:
    """Shorten a name of any length to what a picture has room for.

    >>> clipped("rigl+"), clipped("x" * 50, most=5)
    ('rigl+', 'xxxx…')
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"
