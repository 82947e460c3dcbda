"""Rebuild the README's tables and pictures from the committed results; nothing is run again.

Usage: python docs/rebuild.py
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sparseflow.report import load_results, markdown_table, write_report

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ("accuracy", "flow", "start-signal")


def blocks() -> dict[str, str]:
    """Text of every generated block of the README, by its mark."""
    found = {
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


def rebuilt(readme: str) -> str:
    """The README with its generated blocks filled in."""
    for mark, text in blocks().items():
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
        readme = re.sub(pattern, lambda m, t=text: f"{m[1]}{t.strip()}\n{m[2]}", readme, flags=re.S)
    return readme


def main() -> None:
    """Write the README and its pictures."""
    path = ROOT / "README.md"
    path.write_text(rebuilt(path.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        write_report(load_results(ROOT / "results" / "lenet5-mnist.json"), Path(folder))
        for name in PICTURES:
            shutil.copy(Path(folder) / f"{name}.png", ROOT / "docs" / "images" / f"{name}.png")


if __name__ == "__main__":
    main()
