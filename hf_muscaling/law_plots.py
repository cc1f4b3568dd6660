"""Plots of fits to tables of any origin: the curves with their fit and a target, and the heat maps of ARE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

if TYPE_CHECKING:
    from hf_muscaling.laws.base import Prediction, ScalingLaw
    from hf_muscaling.laws.grid import ExtrapolationGrid

_UNITS = {
    "N": "N, parameters", "D": "D, tokens", "C": "C, FLOPs", "S": "S, optimizer steps", "B": "B, tokens per step"
}  # fmt: skip
SHOWN = 12  #: sizes drawn, spread evenly over those of the table


def plot_fit(law: ScalingLaw, table: Mapping[str, Any], predictions: Sequence[Prediction] = ()) -> Figure:
    """Draw a fitted law over the rows of a table: measured losses and fit, a colour a size, and the relative residuals.

    The x axis is tokens or steps where the law has them, else its own variable; beyond the largest fitted value it is
    shaded. Rows before the fitted range (the window) may leave the residuals' panel. `predictions` are drawn with their
    intervals. Losses in nats per token.
    """
    axis = next((name for name in ("D", "S", "C", "N") if name in law.variables), law.variables[0])
    columns = {name: np.asarray(table[column], float) for name, column in law.columns.items()}
    loss = np.asarray(table["loss"], float)
    figure = Figure(figsize=(7.6, 6.4))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    sizes = np.unique(columns["N"]) if "N" in columns and axis != "N" else np.array([np.nan])
    sizes = sizes[np.unique(np.linspace(0, len(sizes) - 1, min(SHOWN, len(sizes))).round().astype(int))]
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(sizes)))
    for size, colour in zip(sizes, shades, strict=True):
        own = columns["N"] == size if np.isfinite(size) else np.ones(len(loss), bool)
        order = np.flatnonzero(own)[np.argsort(columns[axis][own], kind="stable")]
        at = [columns[name][order] for name in law.variables]
        fitted = np.asarray(law.loss(*at, *law.params_.values()), float)
        x = columns[axis][order]
        label = f"N {size:.3g}" if np.isfinite(size) else "measured"
        above.plot(x, loss[order], ".", color=colour, ms=5, alpha=0.7, label=label)
        below.plot(x, 100 * (loss[order] / fitted - 1), ".", color=colour, ms=4, alpha=0.7)
        if len(np.unique(x)) > 1 and len(law.variables) < 3:
            above.plot(x, fitted, "-", color=colour, lw=1.2)
    for p in predictions:
        _draw_prediction(above, p, axis)
    start, end = law.range_[axis]
    fitted = (columns[axis] >= start) & (columns[axis] <= end)
    at = [columns[name][fitted] for name in law.variables]
    residual = 100 * np.abs(loss[fitted] / np.asarray(law.loss(*at, *law.params_.values()), float) - 1)
    widest = 1.5 * max(float(residual.max(initial=0.0)), 1e-3)
    right = max([end, *(float(np.max(p.at[axis])) for p in predictions)]) * 1.3
    for axes in (above, below):
        axes.axvspan(end, right, color="#f2b134", alpha=0.14, lw=0)
        axes.grid(alpha=0.25, which="both")
    above.set(xscale="log", yscale="log", ylabel="loss, nats per token")
    above.set_title(f"{type(law).__name__}: {law.equation_text}", fontsize=10)
    above.yaxis.set_major_formatter(lambda value, _: f"{value:.2f}")
    above.yaxis.set_minor_formatter(lambda value, _: f"{value:.2f}")
    above.legend(frameon=False, fontsize=8, ncol=2)
    below.axhline(0.0, color="black", lw=0.8)
    below.set(xlabel=_UNITS.get(axis, axis), ylabel="measured over fit, %", ylim=(-widest, widest))
    below.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _draw_prediction(axes: Any, prediction: Prediction, axis: str) -> None:
    values = (prediction.at[axis], prediction.loss, prediction.low, prediction.high)
    x, y, low, high = (np.atleast_1d(np.asarray(v, float)) for v in values)
    place = ", ".join(f"{name} {float(np.ravel(value)[0]):.3g}" for name, value in prediction.at.items())
    axes.errorbar(
        x, y, [y - low, high - y], fmt="D", ms=6, capsize=4, color="black", label=f"{place}: predicted {y[0]:.4f}"
    )


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
