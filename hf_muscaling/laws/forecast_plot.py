"""The picture of a forecast: predicted curves with their bands, the measured ones over them, extrapolation shaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .plots import COLOURS, _plain_ticks

if TYPE_CHECKING:
    from .forecasting import Forecast, Reach


def plot_forecast(
    found: Forecast, measured: Sequence[dict[str, Any]] = (), fitted: Any = None, scored: float | None = None
) -> Figure:
    """Draw a panel for every batch size: loss over steps, the band, the levels asked for, `measured` curves as dots.

    Rows of the `fitted` law at the nearest batch size are grey, the steps it saw there end where the shade begins. A
    dotted line marks the share `scored` of the steps, from which on a curve is compared.
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
        own_reaches = [r for r in found.reaches if r.B == curve.B]
        right = 1.25 * max([curve.S[-1], *(r.steps.value for r in own_reaches if r.steps.value < 1e3 * end)])
        axes.set_xlim(curve.S[0], right)
        for reach in own_reaches:
            _draw_reach(axes, reach, curve.S[0], right)
        axes.plot([], [], color="black", lw=2.2, alpha=0.6, label="steps to a loss, interval")
        if end < right:
            axes.axvspan(end, right, color="#f2b134", alpha=0.14, lw=0, label="beyond the fitted steps")
        if scored is not None:
            axes.axvline(scored * curve.S[-1], color="0.3", ls=":", lw=1.2, label=f"compared after {scored:.0%}")
        axes.set(xscale="log", yscale="log", xlabel="S, optimizer steps")
        axes.set_title(f"B = {curve.B:,.0f} tokens, {where} the fitted {low_b:,.0f} to {high_b:,.0f}", fontsize=10)
        axes.grid(alpha=0.25, which="both")
        axes.legend(framealpha=0.8, edgecolor="none", fontsize=8, loc="lower left")
        _plain_ticks(axes.yaxis)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: f"{steps:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in panels.ravel()[count:]:
        axes.set_visible(False)
    top = max(float(curve.loss[len(curve.loss) // 4]) for curve in found.curves)
    losses = [r.loss for r in found.reaches]
    bottom = min([*(float(c.low[-1]) for c in found.curves), *losses])
    panels[0][0].set_ylim(0.97 * bottom, 1.05 * max([top, *losses]))
    for row in panels:
        row[0].set_ylabel("loss, nats per token (log scale)")
    told = "predicted before training" if measured else "before training"
    far = found.N / found.fitted["N"][1]
    figure.suptitle(f"N = {found.N:,.0f} parameters, {far:.1f} times the largest fitted; {told}")
    return figure


def _draw_reach(axes: Axes, reach: Reach, left: float, right: float) -> None:
    """The interval of the steps to a loss, with an arrow where it leaves the panel; a dotted line if never reached."""
    style: dict[str, Any] = {"color": "black", "alpha": 0.6}
    low, high = reach.steps.low, reach.steps.high
    if not np.isfinite(reach.steps.value):
        axes.plot([left, right], [reach.loss] * 2, ls=":", lw=1.2, **style)
        axes.annotate(f"{reach.loss:g}: never", (left, reach.loss), (4, 3), textcoords="offset points", fontsize=8)
        return
    if low < right and high > left:
        axes.plot(np.clip([low, high], left, right), [reach.loss] * 2, lw=2.2, solid_capstyle="butt", **style)
    axes.plot(reach.steps.value, reach.loss, "|", color="black", ms=9)
    for beyond, at, marker in ((low < left, left, "<"), (high > right, right, ">")):
        if beyond:
            axes.plot(at, reach.loss, marker, ms=6, mew=0, clip_on=False, **style)
