"""Figures of a `LearningRateLaw`: the optima with the law, and the landscapes that they are the minima of."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..errors import ConfigurationError
from .optimum import RISE
from .plots import COLOURS, _axes

if TYPE_CHECKING:
    from .learning_rate import LearningRateLaw, Optimum

KINDS = ("fit", "landscapes")


def plot_learning_rates(law: LearningRateLaw, kind: str, level: float, reach: float) -> Figure:
    """Draw a fitted law; `kind` is "fit" or "landscapes"."""
    if kind not in KINDS:
        raise ConfigurationError(f"plot(kind={kind!r}) is not known for LearningRateLaw: {', '.join(KINDS)}.")
    law._check_fitted()
    return _fit(law, level, reach) if kind == "fit" else _landscapes(law)


def _batches(law: LearningRateLaw) -> dict[float, list[Optimum]]:
    groups: dict[float, list[Optimum]] = {}
    for cell in law.cells_:
        near = next((b for b in groups if abs(np.log(b / cell.B)) < 0.02), cell.B)
        groups.setdefault(near, []).append(cell)
    return dict(sorted(groups.items()))


def _fit(law: LearningRateLaw, level: float, reach: float) -> Figure:
    figure, axes = _axes()
    low, high = law.range_["D"]
    known = "gamma" in law.params_
    grid = np.geomspace(low / 1.2, high * (reach if known else 1.0), 60) if known else np.array([low, high])
    if known:
        axes.axvspan(high, grid[-1], color="#f2b134", alpha=0.14, lw=0, label="extrapolation")
    for colour, (batch, cells) in zip(COLOURS * 9, _batches(law).items(), strict=False):
        if any(cell.lr is not None for cell in cells):
            with warnings.catch_warnings():  # the picture shades what lies outside
                warnings.simplefilter("ignore")
                band = law.predict(D=grid, B=batch, level=level)
            axes.fill_between(grid, band.low, band.high, color=colour, alpha=0.12, lw=0)
            axes.plot(grid, band.lr, color=colour, lw=1.4, label=f"B = {batch:,.0f} tokens")
        found = [cell for cell in cells if cell.lr is not None]
        rates = np.array([cell.lr for cell in found])
        spread = np.array([np.exp(1.645 * cell.error) for cell in found])
        ends = np.array([rates - rates / spread, rates * spread - rates]) if len(found) else np.empty((2, 0))
        axes.errorbar([cell.D for cell in found], rates, ends, fmt="o", ms=4, capsize=3, color=colour, lw=1)
    axes.set(xscale="log", yscale="log", xlabel="D, token horizon", ylabel="best learning rate at base width")
    exponents = ", ".join(f"{n} = {law.params_[n]:.2f}" for n in ("gamma", "delta") if n in law.params_)
    axes.set_title(f"{law.equation}   ({exponents})", fontsize=10)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.2g}" if f"{value:.0e}"[0] in "25" else "")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _landscapes(law: LearningRateLaw) -> Figure:
    """A panel for every batch size: loss over rate for each horizon, above its lowest mean, the optimum marked."""
    groups, data = _batches(law), law._columns
    figure = Figure(figsize=(4.2 * max(len(groups), 1.4), 4.4), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    horizons = sorted({round(cell.D) for cell in law.cells_})
    top = 0.0
    for axes, (batch, cells) in zip(panels, groups.items(), strict=True):
        for cell in cells:
            colour = COLOURS[horizons.index(round(cell.D)) % len(COLOURS)]
            own = (abs(np.log(data["D"] / cell.D)) < 0.02) & (abs(np.log(data["B"] / cell.B)) < 0.02)
            rates, index = np.unique(data["lr"][own], return_inverse=True)
            means = np.bincount(index, data["loss"][own]) / np.bincount(index)
            rise = 100 * (means / means.min() - 1)
            top = max(top, float(np.sort(rise)[min(4, len(rise) - 1)]))  # what breaks down is out of the picture
            axes.plot(rates, rise, "o-", ms=3, lw=1.2, color=colour, label=f"D = {cell.D:,.0f}")
            if cell.lr is not None:
                axes.axvline(cell.lr, color=colour, lw=1, ls=":")
        axes.set(xscale="log", xlabel="learning rate at base width", title=f"B = {batch:,.0f} tokens per step")
        axes.grid(alpha=0.25)
        axes.xaxis.set_minor_locator(NullLocator())
        ends = np.log2(data["lr"].min()), np.log2(data["lr"].max())
        ticks = data["lr"].min() * 2.0 ** np.arange(0, ends[1] - ends[0] + 0.1, 2 if ends[1] - ends[0] > 4 else 1)
        axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    panels[0].set_ylabel("loss above the lowest, %")
    top = min(max(top, 0.1), 200 * RISE)
    panels[0].set_ylim(-0.05 * top, 1.1 * top)
    panels[0].legend(frameon=False, fontsize=8, title="dotted: optimum", title_fontsize=8)
    return figure
