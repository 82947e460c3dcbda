"""Tables of results for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.sparse.figure import SIDES

SIGNS = {"at most": "≤", "at least": "≥"}
MET = {True: "yes", False: "no", None: ""}

Records = Sequence[dict[str, Any]]


def tables(records: Records) -> list[Table]:
    """One table of all single values, and one of the speed-ups of sparse layers."""
    compared = [r for r in records if r["benchmark"] == "sparse-layers"]
    single = [r for r in records if r["benchmark"] != "sparse-layers"]
    return [make(some) for make, some in ((_layers, compared), (_values, single)) if some]


def _values(records: Records) -> Table:
    table = Table("benchmark", "case", "value")
    for heading in ("threads", "median", "25–75 %", "target", "met", "ms", "baseline ms", "rounds"):
        table.add_column(heading, justify="right")
    for r in records:
        table.add_row(
            r["benchmark"],
            r["case"],
            r["figure"],
            str(r["settings"].get("threads", "")),
            f"{_short(r['value'])} {r['unit']}",
            _quartiles(r),
            _target(r),
            MET[r["met"]],
            _short(r["measured_ms"]),
            _short(r["baseline_ms"]),
            str(r["rounds"]),
        )
    return table


def _layers(records: Records) -> Table:
    """A row for each layer, sparsity, batch and number of threads."""
    others = [s for s in SIDES if any(r["settings"]["side"] == s for r in records)][1:]
    table = Table(title="training step of a layer: times faster than dense PyTorch")
    table.add_column("layer", no_wrap=True)
    headings = ("sparse", "batch", "threads", "sparseflow", "25–75 %", "target", "met", *others,
                "over sparseprop", "target", "met", "L1 bound", "ms", "dense ms")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    rows: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for r in records:
        key = f"{r['case']}, {r['settings']['threads']}"
        rows.setdefault(key, {})[r["settings"]["side"], r["settings"]["over"]] = r
    for row in rows.values():
        _add_row(table, row, others)
    return table


def _add_row(table: Table, row: dict[tuple[str, str], dict[str, Any]], others: list[str]) -> None:
    mine, rival = row["sparseflow", "dense"], row.get(("sparseflow", "sparseprop"))
    settings = mine["settings"]
    theirs = [row.get((other, "dense")) for other in others]
    table.add_row(
        settings["layer"],
        f"{settings['sparsity']:.0%}",
        str(settings["batch"]),
        str(settings["threads"]),
        _short(mine["value"]),
        _quartiles(mine),
        _target(mine),
        MET[mine["met"]],
        *("" if r is None else _short(r["value"]) for r in theirs),
        *(("", "", "") if rival is None else
          (_short(rival["value"]), _target(rival), MET[rival["met"]])),
        _short(settings.get("bound_L1")),
        _short(mine["measured_ms"]),
        _short(mine["baseline_ms"]),
    )  # fmt: skip


def _quartiles(record: dict[str, Any]) -> str:
    return f"{_short(record['low'])} – {_short(record['high'])}"


def _target(record: dict[str, Any]) -> str:
    if record["target"] is None:
        return ""
    return f"{SIGNS[record['direction']]} {record['target']:g} {record['unit']}"


def _short(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.3g}" if abs(number) < 100 else f"{number:,.0f}"
