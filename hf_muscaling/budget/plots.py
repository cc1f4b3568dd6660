"""The trade-off of a plan as a figure: cost against the interval to expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..plotting import COLOURS
from .plan import BudgetPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_budget(plan: BudgetPlan) -> Figure:
    """Draw the expected half-width (% of the loss) over the cost (% of the target's FLOPs), what 80 % of outcomes hold,
    the chosen design, equal spacing and the tolerance.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(7.2, 4.6))
    axes = figure.subplots()
    axes.grid(alpha=0.25, which="both")
    cost = [100 * d.cost for d in plan.curve]
    halves = [[100 * value for value in v] for v in zip(*_spread(plan), strict=True)] or [[], [], []]
    axes.fill_between(cost, halves[0], halves[2], color=COLOURS[0], alpha=0.16, lw=0, label="80 % of outcomes")
    axes.plot(cost, halves[1], "o-", ms=4, color=COLOURS[0], label="planned designs")
    chosen = plan.design
    axes.plot(100 * chosen.cost, 100 * chosen.half_width, "*", ms=15, color="black", zorder=5,
              label=f"chosen: ± {100 * chosen.half_width:.2f} % for {100 * chosen.cost:.3g} %")  # fmt: skip
    if plan.equal is not None:
        axes.plot(100 * plan.equal.cost, 100 * plan.equal.half_width, "s", color=COLOURS[1],
                  label=f"equal spacing: ± {100 * plan.equal.half_width:.2f} %")  # fmt: skip
    axes.axvline(100 * plan.budget, color="grey", ls=":", label=f"budget {100 * plan.budget:.3g} %")
    if plan.tolerance is not None:
        axes.axhline(100 * plan.tolerance, color=COLOURS[2], ls="--", label=f"tolerance ± {100 * plan.tolerance:.3g} %")
    axes.set(
        xscale="log", yscale="log", xlabel="cost of grid and proxies, % of the target's FLOPs",
        ylabel=f"half-width of the {100 * plan.level:g} % interval, % of the loss",
        title="What a budget buys: the interval to expect at the target",
    )  # fmt: skip
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_locator(LogLocator(subs=_ticks(high / low), numticks=50))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False)
    return figure


def _ticks(span: float) -> tuple[float, ...]:
    """Return which multiples of a power of ten are labelled, fewer the further an axis spans."""
    if span > 300:
        return (1.0,)
    if span > 5:
        return (1.0, 2.0, 5.0)
    return (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if span > 2 else (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)


def _spread(plan: BudgetPlan) -> list[tuple[float, float, float]]:
    return [(d.interval.low, d.half_width, d.interval.high) for d in plan.curve]
