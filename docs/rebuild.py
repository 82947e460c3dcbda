"""Rebuild tables and pictures of README and docs from committed results; nothing is run again.

Usage: python docs/rebuild.py
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from sparseflow.measure.statistics import mean_interval
from sparseflow.paper import (
    claims,
    claims_markdown,
    published_markdown,
    with_references,
    write_report,
)
from sparseflow.report import load_results, markdown_table
from sparseflow.studies import dead_below

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "claims.md",
    ROOT / "docs" / "cifar.md",
    ROOT / "docs" / "sparse.md",
    ROOT / "benchmarks" / "README.md",
)
SPARSE = ROOT / "results" / "benchmarks-sparse.json"
PICTURES = {
    "lenet5-mnist": {
        name: name
        for name in (
            "accuracy",
            "flow",
            "start-signal",
            "paths",
            "plane",
            "map",
            "spectra",
            "disagreement",
        )
    },
    "resnet20-cifar10": {"accuracy": "cifar-accuracy", "flow": "cifar-flow"},
}
"""Pictures of a family's report, and their names among the docs'."""


def blocks() -> dict[str, str]:
    """Text of every generated block, by its mark."""
    families = {
        family: with_references(load_results(ROOT / "results" / f"{family}.json"))
        for family in ("lenet5-mnist", "mlp-mnist", "resnet20-cifar10")
    }
    lenet5 = families["lenet5-mnist"]
    found = {
        "published": published_markdown(lenet5),
        "claims": claims_markdown(claims(lenet5)),
    }
    found |= {f"table {family}": markdown_table(results) for family, results in families.items()}
    measured = json.loads((ROOT / "results" / "benchmarks.json").read_text())
    found["benchmarks"] = f"{benchmark_table(measured['records'])}\n\n{conditions(measured)}"
    found["both ways"] = both_ways(json.loads((ROOT / "results/sweep-both-ways.json").read_text()))
    if SPARSE.exists():
        sparse = json.loads(SPARSE.read_text())
        in_plot = ("sparse-layers", "sparse-roofline")
        single = [r for r in sparse["records"] if r["benchmark"] not in in_plot]
        found["sparse layers"] = f"{layers_tables(sparse['records'])}\n\n{conditions(sparse)}"
        found["sparse figures"] = benchmark_table(single, threads=True)
        chosen = [r for r in single if r["target"] is not None or r["benchmark"] == "sparse-steps"]
        found["sparse summary"] = benchmark_table(_alone(chosen), threads=True)
    return found


def _alone(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those on one thread."""
    return [r for r in records if r.get("settings", {}).get("threads") == 1]


def both_ways(measured: dict[str, Any]) -> str:
    """One sweep, truly sparse and masked dense: test accuracies of all seeds, and the time."""
    sparse, dense = (measured["executions"][name] for name in ("sparse", "dense"))
    lines = ["| run | truly sparse | masked dense |", "|---|---|---|"]
    for recipe, found in sparse["test_accuracy"].items():
        cells = [_accuracies(found), _accuracies(dense["test_accuracy"][recipe])]
        lines.append(f"| {recipe} | {' | '.join(cells)} |")
    pairs = [
        (a, b)
        for recipe, found in sparse["test_accuracy"].items()
        for a, b in zip(found, dense["test_accuracy"][recipe], strict=True)
        if min(a, b) >= dead_below(10)
    ]
    mean = mean_interval([a - b for a, b in pairs])
    differs = f"{mean.value:+.2f} points, 95 % interval [{mean.low:+.2f}, {mean.high:+.2f}]"
    lines.append(f"| **mean difference, {len(pairs)} living pairs** | {differs} | |")
    for name, key in (("wall time", "seconds"), ("processor time", "processor_seconds")):
        cells = [f"{one[key]:,} s" for one in (sparse, dense)]
        lines.append(f"| **{name}, {sparse['runs']} runs** | {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracies(found: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in found)


def benchmark_table(records: list[dict[str, Any]], threads: bool = False) -> str:
    """The benchmarks as a Markdown table."""
    lines = ["| what | on | median (quartiles) | target |", "|---|---|---|---|"]
    for r in records:
        value, low, high = (_short(r[key]) for key in ("value", "low", "high"))
        count = r.get("settings", {}).get("threads")
        case = f"{r['case']}, {_threads(count)}" if threads and count else r["case"]
        lines.append(
            f"| {r['figure']} | {case} | {value} {r['unit']} ({low} – {high}) | {_target(r)} |"
        )
    return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"


def _target(record: dict[str, Any]) -> str:
    if record["target"] is None:
        return ""
    sign = {"at most": "≤", "at least": "≥"}[record.get("direction", "at most")]
    met = "met" if record["met"] else "not met"
    return f"{sign} {record['target']:g} {record['unit']}, {met}"


def layers_tables(records: list[dict[str, Any]]) -> str:
    """Speed-ups of sparse layers: over dense by sparsity, then over other libraries."""
    found = [r for r in records if r["benchmark"] == "sparse-layers"]
    mine = [r for r in found if r["settings"]["side"] == "sparseflow"]
    tables = ["![Speed-up of layers against sparsity](../docs/images/sparse-layers.png)"]
    for over in dict.fromkeys(r["settings"]["over"] for r in mine):
        chosen = [r for r in mine if r["settings"]["over"] == over]
        name = "dense PyTorch" if over == "dense" else over
        tables.append(f"Training step of a layer, times faster than {name}:\n\n{_pivot(chosen)}")
    return "\n\n".join(tables)


def _pivot(records: list[dict[str, Any]]) -> str:
    """Layers, batch sizes and threads down, sparsities across."""
    sparsities = sorted({r["settings"]["sparsity"] for r in records})
    rows: dict[str, dict[float, str]] = {}
    for r in records:
        where = r["settings"]
        row = f"{where['layer']}, batch {where['batch']}, {_threads(where['threads'])}"
        target = f" ({_target(r)})" if r["target"] is not None else ""
        rows.setdefault(row, {})[where["sparsity"]] = f"{r['value']:.3g}{target}"
    heading = " | ".join(f"{s:.0%}" for s in sparsities)
    lines = [f"| layer | {heading} |", "|---" * (len(sparsities) + 1) + "|"]
    for row, cells in rows.items():
        lines.append(f"| {row} | {' | '.join(cells.get(s, '') for s in sparsities)} |")
    return "\n".join(lines)


def _threads(count: int | list[int]) -> str:
    if isinstance(count, list):
        return f"{' and '.join(map(str, count))} threads"
    return f"{count} thread" + "s" * (count != 1)


def conditions(measured: dict[str, Any]) -> str:
    """What a set of benchmarks was measured on."""
    about = measured["machine"]
    load = ", ".join(f"{x:g}" for x in measured["load_before"] or [])
    few = ", of a quick run with few rounds" if measured["quick"] else ""
    return (
        f"Interleaved, medians{few}; {about['cpu']}, {_threads(about['threads'])}, torch "
        f"{about['torch']}, load average before: {load}."
    )


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
    for family, names in PICTURES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_report(load_results(ROOT / "results" / f"{family}.json"), Path(folder))
            for name, here in names.items():
                shutil.copy(Path(folder) / f"{name}.png", ROOT / "docs" / "images" / f"{here}.png")
    if SPARSE.exists():
        sys.path.insert(0, str(ROOT))
        from benchmarks.sparse.figure import write_layers_figure  # noqa: PLC0415

        records = json.loads(SPARSE.read_text())["records"]
        write_layers_figure(records, ROOT / "docs" / "images" / "sparse-layers.png")


if __name__ == "__main__":
    main()
