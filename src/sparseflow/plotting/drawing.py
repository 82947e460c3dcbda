"""What drawings are made with; matplotlib comes with an extra, so it is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparseflow.core.optional import late

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from sparseflow.plotting import eigenvalues, heatmap, style
else:
    Axes = Drawing = Any
    eigenvalues, heatmap, style = (
        late(f"sparseflow.plotting.{name}", extra="report")
        for name in ("eigenvalues", "heatmap", "style")
    )

mpl = late("matplotlib", extra="report")

__all__ = ["Axes", "Drawing", "eigenvalues", "heatmap", "mpl", "style"]
