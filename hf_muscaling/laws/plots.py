"""Figures of a fitted law: fit with its band, residuals, extrapolation shaded, critical-batch contours, stages."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from ..errors import ConfigurationError
from .schedules import constant_schedule, cosine_schedule

if TYPE_CHECKING:
    from .base import ScalingLaw
    from .chinchilla import ChinchillaLaw
    from .downstream import DownstreamLaw
    from .kaplan import KaplanLaw
    from .kaplan_step import KaplanStepLaw
    from .stages import StageWise
    from .trajectory import AnnealingLaw

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5a97", "#c77d0a", "#4a4e69", "#00867d", "#9c3d1e")
KINDS = ("fit", "residuals", "contours")
CURVES = 6


def plot(law: ScalingLaw, kind: str = "fit", level: float = 0.9, reach: float = 10.0) -> Figure:
    """Draw a fitted law.

    `kind`: "fit", loss over the law's first variable with its interval, the rows fitted, and what lies beyond them up
    to `reach` times shaded; "residuals", log residuals over it; "contours", for a law with batch sizes, the steps to a
    loss over batch size with the critical batch size, for a law in N and D, the N and D of equal loss with the
    compute-optimal line. Raises `ConfigurationError` for another kind.
    """
    contours = _contours if hasattr(law, "critical_batch_size") else _plane if hasattr(law, "compute_optimal") else None
    if kind not in KINDS or (kind == "contours" and contours is None):
        known = KINDS if contours else KINDS[:2]
        raise ConfigurationError(f"plot(kind={kind!r}) is not known for {type(law).__name__}: {', '.join(known)}.")
    law._check_fitted()
    draw: Any = {"fit": _fit, "residuals": _residuals, "contours": contours}[kind]
    return draw(law, level, reach)


def _axes(columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2 if columns == 1 else 4.6 * columns, 4.6), layout="constrained")
    axes = figure.subplots(1, columns)
    for one in np.atleast_1d(axes):
        one.grid(alpha=0.25, which="both")
    return figure, axes


def _groups(law: ScalingLaw) -> list[tuple[dict[str, float], np.ndarray]]:
    """Rows in up to `CURVES` groups of like values of all variables but the first, with the group's medians."""
    names = list(law.columns)[1:]
    data = law._columns
    everything = np.arange(len(data["loss"]))
    if not names:
        return [({}, everything)]
    key = np.log(data[law.columns[names[0]]])
    edges = np.unique(np.quantile(key, np.linspace(0, 1, CURVES + 1)))
    index = np.clip(np.searchsorted(edges, key, side="right") - 1, 0, max(len(edges) - 2, 0))
    return [
        ({n: float(np.exp(np.median(np.log(data[law.columns[n]][index == g])))) for n in names},
         everything[index == g])
        for g in np.unique(index)
    ]  # fmt: skip


def _fit(law: ScalingLaw, level: float, reach: float) -> Figure:
    figure, axes = _axes()
    first = next(iter(law.columns))
    data = law._columns
    low, high = law.range_[first]
    grid = np.geomspace(low / 1.2, high * reach, 60)
    axes.axvspan(high, grid[-1], color="#f2b134", alpha=0.14, lw=0, label="extrapolation")
    for colour, (others, rows) in zip(COLOURS, _groups(law), strict=False):
        with warnings.catch_warnings():  # the picture shades what lies outside
            warnings.simplefilter("ignore")
            band = law.predict(level=level, **{first: grid}, **others)
        label = ", ".join(f"{n} ≈ {v:.2g}" for n, v in others.items()) or "fit"
        once = f"{level:.0%} interval" if colour == COLOURS[0] else None
        axes.fill_between(grid, band.low, band.high, color=colour, alpha=0.15, lw=0, label=once)
        axes.plot(grid, band.loss, color=colour, lw=1.4, label=label)
        runs = None if others else "runs"
        axes.plot(data[law.columns[first]][rows], data["loss"][rows], "o", color=colour, ms=3, label=runs)
    axes.set(xscale="log", yscale="log", xlabel=f"{first}, {law.units[first]}", ylabel="loss, nats per token")
    _plain_ticks(axes.yaxis)
    axes.set(xlim=(grid[0], grid[-1]), title=law.equation_text if len(law.equation_text) < 60 else type(law).__name__)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _residuals(law: ScalingLaw, level: float, reach: float) -> Figure:
    figure, axes = _axes()
    first = next(iter(law.columns))
    own = law.evaluate(law._columns, level)
    for colour, (others, rows) in zip(COLOURS, _groups(law), strict=False):
        label = ", ".join(_span(n, law._columns[law.columns[n]][rows]) for n in others) or None
        x = law._columns[law.columns[first]][rows]
        axes.plot(x, -100 * own.errors[rows], "o", color=colour, ms=3, label=label)
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xscale="log", xlabel=f"{first}, {law.units[first]}", ylabel="(measured - fitted) / measured, %")
    axes.set_title(f"Residuals, mean {100 * own.are:.2f} %")
    if len(law.columns) > 1:  # beside the axes: residuals fill them evenly and leave no corner free
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _span(name: str, values: np.ndarray) -> str:
    low, high = f"{values.min():.2g}", f"{values.max():.2g}"
    return f"{name} {low}" if low == high else f"{name} {low} to {high}"


def _contours(law: KaplanStepLaw, level: float, reach: float) -> Figure:
    """Steps over tokens to each of several losses at the largest fitted size; the critical batch size crosses them."""
    figure, axes = _axes()
    size = law.range_["N"][1]
    floor = float(law.minimum_loss(N=size))
    own = law._columns["loss"]
    top = max(float(own.max()), floor * 1.2)
    losses = floor + (top - floor) * np.geomspace(0.08, 0.8, CURVES)
    for colour, loss in zip(COLOURS, losses, strict=False):
        ways = law.trade_off(float(loss), size)
        axes.plot(ways.D, ways.S, color=colour, label=f"loss {loss:.3f}, B_crit {ways.B_crit:.2g}")
        axes.plot(2 * ways.D.min() * 30 / 31, 2 * ways.S.min() * 30 / 31, "o", color=colour)
    axes.set(xscale="log", yscale="log", xlabel="D, training tokens", ylabel="S, optimizer steps")
    axes.set_title(f"Ways to a loss at N = {size:.3g}; dot: critical batch size")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _plane(law: ChinchillaLaw | KaplanLaw, level: float, reach: float) -> Figure:
    """Lines of equal loss over N and D up to `reach` times the runs, and the N and D of lowest loss for each budget."""
    figure, axes = _axes()
    (n_low, n_high), (d_low, d_high) = law.range_["N"], law.range_["D"]
    n, d = np.geomspace(n_low / 1.3, n_high * reach, 120), np.geomspace(d_low / 1.3, d_high * reach, 120)
    loss = law.loss(*np.meshgrid(n, d), **law.params_)
    best = np.stack(law.compute_optimal(np.geomspace(6 * n[0] * d[0], 6 * n[-1] * d[-1], 200)))
    best = best[:, (best[0] >= n[0]) & (best[0] <= n[-1]) & (best[1] >= d[0]) & (best[1] <= d[-1])]
    places = best if best.shape[1] > 20 else np.stack([n, d])  # an optimum far from the runs: along the diagonal
    places = places[:, (np.linspace(0.06, 0.9, 9) * (places.shape[1] - 1)).astype(int)]
    levels, first = np.unique(np.asarray(law.loss(*places, **law.params_)), return_index=True)
    axes.set(xscale="log", yscale="log", xlim=(n[0], n[-1]), ylim=(d[0], d[-1]))
    lines = axes.contour(n, d, loss, levels=levels, colors=COLOURS[0], linewidths=1.1)
    axes.clabel(lines, fmt="%.2f", fontsize=8, manual=[tuple(places[:, i] * (1.6, 0.7)) for i in first])
    axes.plot(law._columns["N"], law._columns["D"], "o", color=COLOURS[1], ms=3, label="runs")
    axes.plot(*best, "--", color="black", lw=1.4, label="lowest loss for C = 6·N·D")
    for span in ([n_high, n[-1], d[0], d[-1]], [n[0], n_high, d_high, d[-1]]):
        corner = {"xy": (span[0], span[2]), "width": span[1] - span[0], "height": span[3] - span[2]}
        label = "extrapolation" if span[0] == n_high else None
        axes.add_patch(Rectangle(**corner, color="#f2b134", alpha=0.14, lw=0, label=label))
    axes.set(xlabel=f"N, {law.units['N']}", ylabel=f"D, {law.units['D']}", title="Lines of equal loss, nats per token")
    figure.legend(loc="outside lower center", ncol=3, frameon=False, fontsize=8)
    return figure


def _plain_ticks(axis: Any) -> None:
    """A few plain numbers on a log axis that spans less than a decade, where powers of ten overlap."""
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())


def _few_ticks(axis: Any) -> None:
    """Labels at 1, 2, 5 only: the others overlap."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if 1 <= value < 1e5 else f"{value:.2g}"))
    axis.set_minor_formatter(NullFormatter())


def plot_stages(found: StageWise) -> Figure:
    """A panel for every stage found: B_crit over loss, the sizes' limits over N, loss above the limit over S_min."""
    p = found.params
    figure, panels = _axes(3 if found.limits else 1)
    first = panels[0] if found.limits else panels
    line = np.geomspace(found.critical["loss"].min(), found.critical["loss"].max(), 50)
    first.plot(found.critical["loss"], found.critical["B_crit"], "o", color=COLOURS[1], ms=4)
    first.plot(line, p["B_star"] * line ** (-1 / p["alpha_B"]), color=COLOURS[0])
    first.set(xscale="log", yscale="log", xlabel="loss, nats per token", ylabel="B_crit, tokens")
    first.set_title(f"1: B_star {p['B_star']:.3g}, alpha_B {p['alpha_B']:.3g}")
    _plain_ticks(first.xaxis)
    _few_ticks(first.yaxis)
    if not found.limits:
        return figure
    second, third = panels[1:]
    line = np.geomspace(found.limits["N"].min(), found.limits["N"].max(), 50)
    second.plot(found.limits["N"], found.limits["loss"], "o", color=COLOURS[1], ms=5)
    second.plot(line, (p["N_c"] / line) ** p["alpha_N"], color=COLOURS[0])
    second.set(xscale="log", yscale="log", xlabel="N, parameters", ylabel="limit of the loss, nats per token")
    second.set_title(f"2: N_c {p['N_c']:.3g}, alpha_N {p['alpha_N']:.3g}")
    for colour, n in zip(COLOURS * 9, np.unique(found.steps["N"]), strict=False):
        own = found.steps["N"] == n
        third.plot(found.steps["S_min"][own], found.steps["rest"][own], ".", color=colour, ms=3, label=f"N = {n:.2g}")
    line = np.geomspace(found.steps["S_min"].min(), found.steps["S_min"].max(), 50)
    third.plot(line, (p["S_c"] / line) ** p["alpha_S"], color="black", lw=1.2)
    third.set(xscale="log", yscale="log", xlabel="S_min, optimizer steps", ylabel="loss - (N_c/N)^alpha_N")
    third.set_title(f"3: S_c {p['S_c']:.3g}, alpha_S {p['alpha_S']:.3g}")
    third.legend(frameon=False, fontsize=8)
    _plain_ticks(second.yaxis)
    for axis in (second.xaxis, third.xaxis, third.yaxis):
        _few_ticks(axis)
    return figure


def plot_trajectory(law: AnnealingLaw, kind: str, level: float, reach: float) -> Figure:
    """Curves over steps with the law, a constant and a cosine schedule `reach` times longer; or residuals."""
    if kind not in KINDS[:2]:
        raise ConfigurationError(f"plot(kind={kind!r}) is not known for {type(law).__name__}: {', '.join(KINDS[:2])}.")
    law._check_fitted()
    figure, axes = _axes()
    data = law._columns
    fitted = np.asarray(law.loss(data["S1"], data["S2"], **law.params_))
    names = list(dict.fromkeys(data["run_id"]))
    for colour, name in zip(COLOURS * 9, names, strict=False):
        own = data["run_id"] == name
        own = np.flatnonzero(own)[np.argsort(data["step"][own], kind="stable")]
        if kind == "residuals":
            axes.plot(data["step"][own], 100 * (1 - fitted / data["loss"])[own], "-", color=colour, lw=1, label=name)
            continue
        axes.plot(data["step"][own], data["loss"][own], ".", color=colour, ms=3, alpha=0.6)
        axes.plot(data["step"][own], fitted[own], color=colour, lw=1.2, label=name)
    axes.set(xlabel="step, optimizer updates")
    if kind == "residuals":
        axes.axhline(0, color="black", lw=0.8)
        axes.set_ylabel("(measured - fitted) / measured, %")
    else:
        _longer(axes, law, level, reach)
        axes.set(ylabel="loss, nats per token", title=law.equation_text)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _longer(axes: Any, law: AnnealingLaw, level: float, reach: float) -> None:
    """What the law says of runs `reach` times longer, at constant rate and along a cosine to 0."""
    data = law._columns
    last, peak = int(data["step"].max()), float(data["lr"].max())
    start = max(int(data["step"].min()), 1)
    total = max(int(reach * last), start + 2)
    peak = peak or float(data["S1"].max() / last)
    rise = int(np.clip(2 * (data["step"] - data["S1"] / peak).min(), 0, start))  # what a warm-up took from S1
    for line, rates in (("--", constant_schedule(total, peak, rise)), (":", cosine_schedule(total, peak, 0.0, rise))):
        with warnings.catch_warnings():  # the picture shades what lies outside
            warnings.simplefilter("ignore")
            band = law.predict(schedule=rates, step=np.unique(np.geomspace(start, total, 80).astype(int)), level=level)
        label = f"{'constant' if line == '--' else 'cosine to 0'}, {total:,} steps"
        axes.fill_between(band.at["step"], band.low, band.high, color="black", alpha=0.12, lw=0)
        axes.plot(band.at["step"], band.loss, line, color="black", lw=1.2, label=label)
    axes.axvspan(last, total, color="#f2b134", alpha=0.14, lw=0, label="extrapolation")
    axes.set(xscale="log", xlim=(start, total))


def plot_downstream(law: DownstreamLaw, kind: str, level: float, reach: float) -> Figure:
    """Score over loss, lower losses to the right, with the interval and `reach` ranges more; or residuals."""
    if kind not in KINDS[:2]:
        raise ConfigurationError(f"plot(kind={kind!r}) is not known for DownstreamLaw: {', '.join(KINDS[:2])}.")
    law._check_fitted()
    figure, axes = _axes()
    data, (low, high) = law._columns, law.range_["loss"]
    if kind == "residuals":
        axes.plot(data["loss"], 100 * (data["score"] - law.score(data["loss"])), "o", color=COLOURS[0], ms=3)
        axes.axhline(0, color="black", lw=0.8)
        axes.set(ylabel="measured - fitted, points")
    else:
        width = high - low
        end = max(low - reach * width, 0.05 * low)
        grid = np.linspace(high + 0.05 * width, end, 80)
        with warnings.catch_warnings():  # the picture shades what lies outside
            warnings.simplefilter("ignore")
            band = law.predict(grid, level)
        axes.axvspan(low, end, color="#f2b134", alpha=0.14, lw=0, label="extrapolation")
        axes.fill_between(grid, band.low, band.high, color=COLOURS[0], alpha=0.18, lw=0, label=f"{level:.0%} interval")
        axes.plot(grid, band.score, color=COLOURS[0], lw=1.5)
        axes.plot(data["loss"], data["score"], "o", color=COLOURS[1], ms=4, label="checkpoints")
        axes.axhline(law.params_["chance"], color="grey", ls=":", lw=1, label="chance")
        axes.set(ylabel="score", title=law.equation_text)
        axes.legend(frameon=False, fontsize=8)
    axes.invert_xaxis()
    axes.set(xlabel="loss, nats per token")
    return figure
