"""Plot of the layers: speed-up against sparsity, with the rivals and the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseflow.core.files import write_atomic
from sparseflow.plotting.palette import INK, MUTED, color_of

BATCH = 128
SIDES = {
    "sparseflow": (color_of("rigl"), "o", "sparseflow"),
    "sparseprop": (color_of("prune"), "s", "sparseprop, kernels"),
    "sparseprop, module": (color_of("prune-restart"), "s", "sparseprop, module"),
    "torch.sparse": (color_of("set"), "^", "torch.sparse"),
    "sparselab": (color_of("lottery"), "D", "sparselab"),
}
BOUNDS = {
    "bound_registers": ((0, (6, 2, 1, 2)), "bound: multiply-adds"),
    "bound_L1": ((0, (4, 2)), "bound: rows in L1"),
    "bound_L2": ((0, (1.2, 1.4)), "bound: rows in L2"),
}
SHARES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)

Records = Sequence[dict[str, Any]]


def write_layers_figure(records: Records, path: Path) -> bool:
    """Draw the measured speed-ups with one thread at batch 128.

    Returns:
        Whether a file was written: there must be such records, and matplotlib.
    """
    shown = [
        r
        for r in records
        if r["benchmark"] == "sparse-layers"
        and r["settings"]["over"] == "dense"
        and r["settings"]["threads"] == 1
        and r["settings"]["batch"] == BATCH
    ]
    if not shown:
        return False
    try:
        from sparseflow.plotting.style import png, svg  # noqa: PLC0415
    except ImportError:
        return False
    figure = layers_figure(shown)
    svg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png(figure))
    return True


def layers_figure(records: Records) -> Any:
    """One panel for each layer, both axes logarithmic; the legend takes the last panel."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    from sparseflow.plotting.style import WIDTH, styled  # noqa: PLC0415

    names = list(dict.fromkeys(r["settings"]["layer"] for r in records))
    rows = (len(names) + 2) // 2
    with styled():
        figure = Figure(figsize=(WIDTH, 0.4 + 1.75 * rows))
        grid = figure.subplots(rows, 2, sharex=True, squeeze=False).flatten()
        for axes, name in zip(grid, names, strict=False):
            _panel(axes, [r for r in records if r["settings"]["layer"] == name])
            axes.set_title(name, fontsize=9.5)
        handles = {}
        for axes in grid[: len(names)]:
            handles |= {line.get_label(): line for line in axes.get_legend_handles_labels()[0]}
        for axes in grid[len(names) :]:
            axes.set_axis_off()
        order = [label for *_, label in (*SIDES.values(), *BOUNDS.values()) if label in handles]
        grid[len(names)].legend([handles[o] for o in order], order, loc="center", borderaxespad=0)
        for axes in grid[max(0, len(names) - 2) : len(names)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("sparsity in %")
        figure.supylabel("speed-up of the training step over dense", fontsize=9.5, color=INK)
        return figure


def _panel(axes: Any, records: Records) -> None:
    mine = sorted(
        (r for r in records if r["settings"]["side"] == "sparseflow"),
        key=lambda r: r["settings"]["sparsity"],
    )
    for key, (dashes, label) in BOUNDS.items():
        points = [(_share(r), r["settings"][key]) for r in mine if key in r["settings"]]
        if points:
            axes.plot(*zip(*points, strict=True), linestyle=dashes, color=MUTED, linewidth=1,
                      label=label)  # fmt: skip
    for side, (color, marker, label) in reversed(SIDES.items()):
        points = [r for r in records if r["settings"]["side"] == side]
        points.sort(key=lambda r: r["settings"]["sparsity"])
        if not points:
            continue
        shares = [_share(r) for r in points]
        bold = side == "sparseflow"
        axes.plot(shares, [r["value"] for r in points], color=color, marker=marker, label=label,
                  markersize=4 if bold else 3, linewidth=2 if bold else 1.2)  # fmt: skip
        if bold:
            low, high = [r["low"] for r in points], [r["high"] for r in points]
            axes.fill_between(shares, low, high, color=color, alpha=0.2, linewidth=0)
    _scales(axes, records)


def _scales(axes: Any, records: Records) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator  # noqa: PLC0415

    axes.axhline(1, color=INK, linewidth=0.9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1.15, 0.0085)
    values = [r["value"] for r in records]
    axes.set_ylim(min(0.3, 0.8 * min(values)), 2.2 * max(values))
    axes.xaxis.set_major_locator(FixedLocator(SHARES))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * (1 - share):g}"))
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.annotate("break-even", (SHARES[-1], 1), xytext=(4, -2), textcoords="offset points",
                  fontsize=7.5, color=INK, va="top", ha="right")  # fmt: skip


def _share(record: dict[str, Any]) -> float:
    return 1 - record["settings"]["sparsity"]
