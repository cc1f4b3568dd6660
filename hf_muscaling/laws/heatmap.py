"""The Hitchhiker's Guide's picture: ARE over the share of training seen and the number of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .grid import ExtrapolationGrid


def plot_extrapolation_grid(grid: ExtrapolationGrid, title: str = "", top: float = 0.15) -> Figure:
    """Draw ARE in % over share of training (x) and number of models (y): a row a window, a column a law.

    Colours end at `top`, the Hitchhiker's Guide's largest contour; cells that no law could be fitted to stay blank.
    """
    rows, columns = len(grid.windows), len(grid.laws)
    figure = Figure(figsize=(1.2 + 3.9 * columns, 1.0 + 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for (j, i), axes in np.ndenumerate(panels):
        cells = 100 * grid.are[i, j]
        image = axes.imshow(cells, origin="lower", aspect="auto", cmap="viridis_r", vmin=0.0, vmax=100 * top)
        for (k, m), value in np.ndenumerate(cells):
            if np.isfinite(value):
                colour = "white" if value > 50 * top else "black"
                axes.text(m, k, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(grid.seen)), [f"{100 * s:g}" for s in grid.seen], fontsize=8)
        axes.set_yticks(range(len(grid.models)), [str(m) for m in grid.models], fontsize=8)
        axes.set_title(f"{grid.laws[i]}, first {100 * grid.windows[j]:g} % left out", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("% of training seen")
    for axes in panels[:, 0]:
        axes.set_ylabel("models")
    if image is not None:
        figure.colorbar(image, ax=panels, label="ARE at the largest model, %", extend="max")
    figure.suptitle(title)
    return figure
