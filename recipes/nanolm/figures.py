"""The benchmark's figures: laws with their targets, pairs of errors, averages, published series. matplotlib lives here.

The fitted range is plain, what lies beyond it is shaded. Equal figures are equal files.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from hf_muscaling.plotting import COLOURS
from hf_muscaling.runs import Run, mean_losses

if TYPE_CHECKING:
    from twins import Score

Panel = tuple[str, Sequence[Run], Sequence[Run], "Score"]
"""title, proxies, targets, the law's score"""


def save(figure: Figure, path: Path, mark: str = "") -> None:
    """Write a PNG without a software tag, small enough to be committed; `mark` is written across it."""
    if mark:
        figure.text(0.5, 0.5, mark, ha="center", va="center", rotation=20, fontsize=15, color="firebrick", alpha=0.5)
    figure.savefig(path, dpi=80, bbox_inches="tight", metadata={"Software": None})


def laws(panels: Sequence[Panel], title: str) -> Figure:
    """Draw each series with its law: proxies (a dot a seed), curve, shaded extrapolation, predicted and actual."""
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.8 * columns, 3.1 * rows + 0.4), layout="constrained")
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, proxies, targets, score) in zip(cells, panels, strict=False):
        _law(axes, name, proxies, targets, score)
    for axes in cells[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(title)
    return figure


def _law(axes: Any, name: str, proxies: Sequence[Run], targets: Sequence[Run], score: "Score") -> None:
    finished = [run for run in proxies if run.loss is not None]
    sizes = [run.N for run in finished]
    axes.plot(sizes, [run.loss for run in finished], "o", color=COLOURS[1], ms=4, label="proxies")
    if sizes:
        axes.axvspan(max(sizes), targets[0].N * 1.3, color="#f2b134", alpha=0.14, lw=0, label="extrapolation")
        axes.set_xlim(min(sizes) / 1.15, targets[0].N * 1.3)
    if score.params:
        p, grid = score.params, np.geomspace(min(sizes), targets[0].N * 1.3, 60)
        axes.plot(grid, p["a"] * grid ** p["b"] + p["c"], color=COLOURS[0], lw=1.4, label="law")
        spread = [[score.predicted - score.low], [score.high - score.predicted]]
        axes.errorbar(
            targets[0].N, score.predicted, spread, fmt="D", ms=5, capsize=3, color="black", label="predicted, 90 %"
        )
    actual = [run.loss for run in targets if run.loss is not None]
    axes.plot([targets[0].N] * len(actual), actual, "*", ms=11, color=COLOURS[2], zorder=5, label="actual")
    axes.set(xscale="log", xlabel="N, parameters", ylabel="held-out loss, nats per target")
    axes.set_title(f"{name}\nerror {score.shown}", fontsize=9)
    _sizes(axes, [*sizes, targets[0].N])
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=7)


def _sizes(axes: Any, sizes: Sequence[int]) -> None:
    """Label a logarithmic axis at the smallest and largest proxy and at the target."""
    shown = sorted(set(sizes))
    shown = [shown[0], *shown[-2:]]
    axes.set_xticks(shown, [f"{N / 1000:.0f} k" if N < 1e6 else f"{N / 1e6:.2f} M" for N in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def pairs(rows: dict[str, dict[str, "Score"]], title: str) -> Figure:
    """Draw |error| at the target and the fit's residual as bars, a group a design, a colour a treatment."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    quantities = (("|error| at the target, %", "error"), ("mean residual of the fit, %", "residual"))
    for axes, (label, name) in zip(figure.subplots(1, 2), quantities, strict=True):
        treatments = list(next(iter(rows.values())))
        for k, treatment in enumerate(treatments):
            values = [abs(getattr(row[treatment], name) or math.nan) * 100 for row in rows.values()]
            places = np.arange(len(rows)) + (k - (len(treatments) - 1) / 2) * 0.38
            axes.bar(places, values, 0.36, color=COLOURS[k], label=treatment)
        axes.set_xticks(range(len(rows)), list(rows), rotation=20, fontsize=8)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25, axis="y")
    axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def averages(
    proxies: Sequence[Run], targets: Iterable[Run], single: Sequence["Score"], averaged: Sequence["Score"]
) -> Figure:
    """Draw very small proxies one by one and averaged over learning rates, and the errors of both kinds of law."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    sizes = {run.width: run.N for run in proxies}
    for colour, lr in zip(COLOURS, sorted({run.lr for run in proxies}), strict=False):
        mine = [run for run in proxies if run.lr == lr and run.loss is not None]
        left.plot([run.N for run in mine], [run.loss for run in mine], "o", ms=4, alpha=0.7, color=colour,
                  label=f"lr {lr:.3g}, a dot a seed")  # fmt: skip
    means = mean_losses(proxies)
    left.plot([sizes[w] for w in means], list(means.values()), "k-", lw=1, label="mean over rates and seeds")
    targets = list(targets)
    left.axvspan(max(sizes.values()), targets[0].N * 1.2, color="#f2b134", alpha=0.14, lw=0, label="extrapolation")
    left.plot([run.N for run in targets], [run.loss for run in targets], "*", ms=10, color=COLOURS[3],
              label="targets, one a rate")  # fmt: skip
    left.set(xscale="log", xlabel="N, parameters", ylabel="held-out loss, nats per target")
    _sizes(left, [*sizes.values(), targets[0].N])
    left.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=7)
    for place, scores in enumerate((single, averaged)):
        errors = [score.error * 100 for score in scores if score.error is not None]
        right.plot([place] * len(errors), errors, "o", ms=6, alpha=0.6, color=COLOURS[place])
    right.set_xticks([0, 1], ["one rate,\none seed", "mean of rates,\none seed"])
    right.axhline(0, color="black", lw=0.8)
    right.set(xlim=(-0.6, 1.6), ylabel="error at the target, %", title="a dot a law")
    right.grid(alpha=0.25, axis="y")
    figure.suptitle("Very small proxies, averaged over the basin's learning rates")
    return figure


def published(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw published series with their laws, the largest held out, and the relative deviations of the coefficients."""
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for colour, row in zip(COLOURS, rows, strict=False):
        N, loss, p = np.array(row["N"]), np.array(row["loss"]), row["params"]
        left.plot(N[:-1], loss[:-1], "o", ms=4, color=colour)
        left.plot(N[-1], loss[-1], "*", ms=11, color=colour)
        inner, outer = np.geomspace(N[0], N[-2], 40), np.geomspace(N[-2], N[-1], 20)
        label = f"{row['name']}: {row['error']:+.2%}"
        left.plot(inner, p["a"] * inner ** p["b"] + p["c"], color=colour, lw=1.4, label=label)
        left.plot(outer, p["a"] * outer ** p["b"] + p["c"], color=colour, lw=1.4, ls=":")
    left.set(xscale="log", xlabel="N, billions of parameters", ylabel="loss, nats per token")
    left.set_title("law (dotted: extrapolation), star: held out, with its error", fontsize=9)
    left.legend(frameon=False, fontsize=7)
    left.grid(alpha=0.25)
    for k, name in enumerate("abc"):
        values = [row["deviations"][name] for row in rows]
        right.plot(values, np.arange(len(rows)), "os^"[k], ms=7, color=COLOURS[k], label=name)
    right.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    right.set(xscale="log", xlabel="standard deviation of a coefficient / its value", ylim=(len(rows) - 0.4, -0.6))
    right.legend(frameon=False)
    right.grid(alpha=0.25)
    return figure


def costs(rows: dict[str, dict[str, float]]) -> Figure:
    """Draw Eq. 1 for every config: by the formula with the paper's trials, with the whole grid, and as stated."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots()
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    for k, kind in enumerate(kinds):
        places = np.arange(len(rows)) + (k - (len(kinds) - 1) / 2) * 0.27
        values = [row.get(kind, math.nan) for row in rows.values()]
        axes.bar(places, values, 0.25, color=COLOURS[k], label=kind)
        for place, value in zip(places, values, strict=True):
            if math.isfinite(value):
                axes.text(place, value * 1.05, f"{value:.3g}", ha="center", fontsize=7)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_xticks(range(len(rows)), list(rows), fontsize=8, rotation=15)
    axes.set(yscale="log", ylabel="grid and proxies / target, FLOPs", title="Cost ratio (Eq. 1)")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0.05, axes.get_ylim()[1] * 1.6)
    axes.grid(alpha=0.25, axis="y")
    axes.legend(frameon=False, ncols=len(kinds), fontsize=8)
    return figure
