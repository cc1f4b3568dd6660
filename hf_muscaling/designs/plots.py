"""The picture of a comparison: the designs' curves with bands, extrapolation shaded, targets, and differences."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hf_muscaling.plotting import COLOURS

if TYPE_CHECKING:
    from .compare import Comparison

MARKERS = "osD^vP"


def plot_comparison(comparison: Comparison) -> Figure:
    """Draw L(N) of all designs in one panel, and each pair's difference at the target with its interval in another."""
    calls = list(comparison.verdict.calls.values())
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _curves(left, comparison)
    _differences(right, comparison, calls)
    return figure


def _curves(axes: Any, comparison: Comparison) -> None:
    designs = comparison.verdict.designs
    level = comparison.verdict.level
    sizes = np.concatenate([d.fitted.N for d in designs])
    start, end = sizes.min() / 1.15, max(d.N for d in designs) * 1.25
    fitted = max(d.fitted.N.max() for d in designs)  # beyond every proxy; each curve is dashed beyond its own
    axes.axvspan(fitted, end, color="#f2b134", alpha=0.14, lw=0, label="extrapolation (dashed)")
    grid = np.geomspace(start, end, 80)
    for design, colour, marker in zip(designs, COLOURS * 9, MARKERS * 9, strict=False):
        result = comparison.results[design.name]
        with warnings.catch_warnings():  # the picture shades what lies outside
            warnings.simplefilter("ignore")
            band = design.law.predict(N=grid, level=level)
        low, middle, high = (np.asarray(v) * design.scale for v in (band.low, band.loss, band.high))
        axes.fill_between(grid, low, high, color=colour, alpha=0.15, lw=0)
        inside = grid <= design.fitted.N.max()
        axes.plot(grid[inside], middle[inside], color=colour, lw=1.6, label=design.name)
        beyond = max(int(inside.sum()) - 1, 0)
        axes.plot(grid[beyond:], middle[beyond:], color=colour, lw=1.6, ls=(0, (4, 1.5)))
        losses = [run.loss * design.scale for run in design.runs if run.loss is not None]
        axes.plot(design.fitted.N, losses, marker, color=colour, ms=4, alpha=0.8)
        p = result.prediction
        spread = np.abs(np.array([[p.low], [p.high]], float) - float(p.loss)) * design.scale
        axes.errorbar(design.N, float(p.loss) * design.scale, spread, fmt=marker, ms=7, mfc="white", color=colour,
                      capsize=4)  # fmt: skip
        actual = [run.loss * design.scale for run in result.targets if run.loss is not None]
        axes.plot([design.N] * len(actual), actual, "*", ms=13, color=colour, mec="black", mew=0.6, zorder=5)
    for pair in comparison.crossings.values():
        if pair.N is not None:
            axes.axvline(pair.N, color="grey", ls=":", lw=1)
            axes.annotate("crossing", (pair.N, 0.97), xycoords=("data", "axes fraction"), rotation=90, va="top",
                          ha="right", fontsize=8, color="grey")  # fmt: skip
    axes.plot([], [], "o", mfc="white", color="black", ms=7, label=f"predicted, {level:.0%} interval")
    if any(comparison.results[d.name].actual is not None for d in designs):
        axes.plot([], [], "*", color="white", mec="black", ms=11, label="trained afterwards")
    count = next(iter(comparison.results.values())).config.count
    label = "N, parameters" + (" without embeddings" if count == "non_embedding" else "")
    axes.set(
        xscale="log", yscale="log", xlim=(start, end), xlabel=label, ylabel=f"held-out loss, {comparison.ground.unit}"
    )
    axes.yaxis.set_major_locator(LogLocator(10, subs=list(np.arange(1, 10, 0.25))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, which="both")
    axes.set_title("Scaling laws of the designs (small marks: proxies)")
    axes.legend(frameon=False, fontsize=8)


def _differences(axes: Any, comparison: Comparison, calls: list[Any]) -> None:
    """One line a pair: the relative difference at the target, its interval, the probability, and the actual one."""
    for row, call in enumerate(calls):
        colour = "grey" if call.winner is None else COLOURS[2]
        middle = 100 * call.difference
        span = [[middle - 100 * call.low], [100 * call.high - middle]]
        axes.errorbar(middle, row, xerr=span, fmt="o", color=colour, capsize=5, ms=7)
        said = "too close to call" if call.winner is None else f"{call.winner} wins"
        chance = f"P({call.first} lower) = {call.probability:.3f}"
        axes.annotate(f"{call.first} − {call.second}: {said}\n{chance}", (0.02, row + 0.12),
                      xycoords=("axes fraction", "data"), va="bottom", fontsize=9,
                      bbox={"fc": "white", "ec": "none", "pad": 1.0})  # fmt: skip
        actual = comparison.actual_difference(call)
        if actual is not None:
            axes.plot(100 * actual, row, "*", ms=13, color="white", mec="black", zorder=5,
                      label="trained afterwards" if row == 0 else None)  # fmt: skip
    axes.axvline(0, color="black", lw=0.8)
    low, high = axes.get_xlim()
    pad = 0.15 * (high - low)
    axes.set(ylim=(-0.6, len(calls) - 1 + 0.8), yticks=[], xlim=(low - pad, high + pad))
    axes.set_xlabel("difference of the targets' losses, % (left: the first is better)")
    axes.set_title(f"At the target, {comparison.verdict.level:.0%} interval")
    axes.grid(alpha=0.25, axis="x")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8, loc="lower left")
