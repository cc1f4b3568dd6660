"""The picture of a forecast: predicted curves with their bands, the measured ones over them, extrapolation shaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .plots import COLOURS, _plain_ticks

if TYPE_CHECKING:
    from .forecasting import Forecast


def plot_forecast(found: Forecast, measured: Sequence[dict[str, Any]] = (), fitted: Any = None) -> Figure:
    """Draw a panel for every batch size: loss over steps, the band, the levels asked for, `measured` curves as dots.

    Rows of the `fitted` law at the nearest batch size are grey, the steps it saw there end where the shade begins.
    """
    count = len(found.curves)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(1.0 + 5.2 * columns, 0.6 + 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    low_b, high_b = found.fitted["B"]
    for axes, curve in zip(panels.ravel(), found.curves, strict=False):
        where = "inside" if low_b <= curve.B <= high_b else "outside"
        end = found.fitted["S"][1]
        if fitted is not None:
            data = fitted._columns
            batches = np.unique(data["B"])
            near = data["B"] == batches[np.argmin(np.abs(np.log(batches / curve.B)))]
            end = float(data["S"][near].max())
            axes.plot(
                data["S"][near],
                data["loss"][near],
                ".",
                color="0.65",
                ms=3,
                label=f"fitted, B = {data['B'][near][0]:,.0f}",
            )
        axes.fill_between(
            curve.S, curve.low, curve.high, color=COLOURS[0], alpha=0.2, lw=0, label=f"{found.level:.0%} interval"
        )
        axes.plot(curve.S, curve.loss, color=COLOURS[0], lw=1.6, label="predicted")
        own = [m for m in measured if round(float(m["B"])) == round(curve.B)]
        for m, colour in zip(own, COLOURS[1:], strict=False):
            name = f"measured, seed {m['seed']}" if "seed" in m else "measured"
            axes.plot(m["S"], m["loss"], "o", color=colour, ms=3.2, mew=0, label=name)
        for reach in (r for r in found.reaches if r.B == curve.B and np.isfinite(r.steps.value)):
            ends = np.clip([reach.steps.low, reach.steps.high], curve.S[0], 4 * curve.S[-1])
            axes.plot(ends, [reach.loss] * 2, color="black", lw=2.2, alpha=0.6, solid_capstyle="butt")
            axes.plot(reach.steps.value, reach.loss, "|", color="black", ms=9)
        axes.plot([], [], color="black", lw=2.2, alpha=0.6, label="steps to a loss, interval")
        right = max(
            [curve.S[-1], *(r.steps.value for r in found.reaches if r.B == curve.B and r.steps.value < 1e3 * end)]
        )
        axes.set_xlim(curve.S[0], 1.25 * right)
        if end < 1.25 * right:
            axes.axvspan(end, 1.25 * right, color="#f2b134", alpha=0.14, lw=0, label="beyond the fitted steps")
        axes.set(xscale="log", yscale="log", xlabel="S, optimizer steps")
        axes.set_title(f"B = {curve.B:,.0f} tokens, {where} the fitted {low_b:,.0f} to {high_b:,.0f}", fontsize=10)
        axes.grid(alpha=0.25, which="both")
        axes.legend(frameon=False, fontsize=8, loc="upper right")
        _plain_ticks(axes.yaxis)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: f"{steps:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in panels.ravel()[count:]:
        axes.set_visible(False)
    top = max(float(curve.loss[len(curve.loss) // 4]) for curve in found.curves)
    panels[0][0].set_ylim(0.97 * min(float(c.low[-1]) for c in found.curves), 1.05 * top)
    for row in panels:
        row[0].set_ylabel("loss, nats per token")
    far = found.N / found.fitted["N"][1]
    figure.suptitle(f"N = {found.N:,.0f} parameters, {far:.1f} times the largest fitted; before training")
    return figure
