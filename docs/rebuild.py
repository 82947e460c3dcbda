"""Rebuild tables and pictures of README and docs from committed results; nothing is run again.

Usage: python docs/rebuild.py
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sparseflow.report import (
    claims,
    claims_markdown,
    load_results,
    markdown_table,
    published_markdown,
    write_report,
)

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "claims.md")
PICTURES = (
    "accuracy",
    "flow",
    "start-signal",
    "paths",
    "plane",
    "map",
    "spectra",
    "disagreement",
)


def blocks() -> dict[str, str]:
    """Text of every generated block, by its mark."""
    lenet5 = load_results(ROOT / "results" / "lenet5-mnist.json")
    found = {
        "published": published_markdown(lenet5),
        "claims": claims_markdown(claims(lenet5)),
    }
    found |= {
        f"table {family}": markdown_table(load_results(ROOT / "results" / f"{family}.json"))
        for family in ("lenet5-mnist", "mlp-mnist")
    }
    measured = json.loads((ROOT / "results" / "benchmarks.json").read_text())
    return found | {"benchmarks": benchmark_table(measured)}


def benchmark_table(measured: dict[str, Any]) -> str:
    """The benchmarks as a Markdown table, with what they were measured on."""
    about = measured["machine"]
    lines = ["| what | on | median (quartiles) | target |", "|---|---|---|---|"]
    for r in measured["records"]:
        value = f"{r['value']:.3g} {r['unit']} ({r['low']:.3g} – {r['high']:.3g})"
        met = {True: "met", False: "not met", None: ""}[r["met"]]
        target = "" if r["target"] is None else f"≤ {r['target']:g} {r['unit']}, {met}"
        lines.append(f"| {r['figure']} | {r['case']} | {value} | {target} |")
    load = ", ".join(f"{x:g}" for x in measured["load_before"] or [])
    threads = f"{about['threads']} thread" + "s" * (about["threads"] != 1)
    lines += [
        "",
        f"Interleaved, medians; {about['cpu']}, {threads}, torch {about['torch']}, load average "
        f"before: {load}.",
    ]
    return "\n".join(lines)


def rebuilt(page: str, texts: dict[str, str]) -> str:
    """A page with its generated blocks filled in."""
    for mark, text in texts.items():
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
        page = re.sub(pattern, lambda m, t=text: f"{m[1]}{t.strip()}\n{m[2]}", page, flags=re.S)
    return page


def main() -> None:
    """Write the pages and their pictures."""
    texts = blocks()
    for path in PAGES:
        path.write_text(rebuilt(path.read_text(), texts))
    with tempfile.TemporaryDirectory() as folder:
        write_report(load_results(ROOT / "results" / "lenet5-mnist.json"), Path(folder))
        for name in PICTURES:
            shutil.copy(Path(folder) / f"{name}.png", ROOT / "docs" / "images" / f"{name}.png")


if __name__ == "__main__":
    main()
