"""Plots of a series: loss curves, the learning-rate landscape, the fit and its extrapolation. matplotlib lives here.

Every function returns a matplotlib Figure that owns no global state; `save_figure` writes the same bytes twice.
"""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

from hf_muscaling.checks.coordinates import KINDS
from hf_muscaling.runs import Run

if TYPE_CHECKING:
    from hf_muscaling.checks.coordinates import CoordinateCheck
    from hf_muscaling.checks.depth import DepthCheck
    from hf_muscaling.laws.base import Prediction, ScalingLaw

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5a97", "#c77d0a", "#4a4e69", "#00867d", "#9c3d1e")
_UNITS = {"N": "N, parameters", "D": "D, tokens", "C": "C, FLOPs"}


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG without a software tag, so that equal figures are equal files."""
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})


def plot_loss_curves(runs: Sequence[Run], title: str = "Training loss of the series") -> Figure:
    """Draw each run's training loss (nats per token) over tokens, one colour a width, and its held-out loss."""
    figure, axes = _axes()
    widths = sorted({run.width for run in runs})
    for run in runs:
        rows = [row for row in run.curve if "loss" in row]
        if not rows:
            continue
        colour = COLOURS[widths.index(run.width) % len(COLOURS)]
        first = run.run_id == next(r.run_id for r in runs if r.width == run.width)
        tokens, losses = [r["tokens"] for r in rows], _smooth([r["loss"] for r in rows])
        axes.plot(tokens, losses, color=colour, lw=1.1, alpha=0.85, label=f"width {run.width}" if first else None)
        if run.loss is not None:
            axes.plot(run.D, run.loss, "o", color=colour, ms=4)
    axes.set(xscale="log", xlabel="tokens seen", ylabel="loss, nats per token", title=title)
    finals = [run.loss for run in runs if run.loss is not None]
    starts = [run.curve[0]["loss"] for run in runs if run.curve]
    if finals and starts:
        lowest = min(line.get_ydata()[-1] for line in axes.lines)
        axes.set_ylim(min(*finals, lowest) - 0.1, max(starts) + 0.1)
    _few_ticks(axes)
    axes.legend(frameon=False, ncol=2, title="line: training, dot: held-out")
    return figure


def initial_scale(run: Run) -> tuple[str, float]:
    """Return the name and the value of what scales a run's initialisation: T5 has a factor instead of a std."""
    if "initializer_factor" in run.config:
        return "init factor", run.config["initializer_factor"]
    return "init std", run.config.get("initializer_range", 0.0)


def plot_landscape(grid: Sequence[Run], best: Run) -> Figure:
    """Draw held-out loss (nats per token) over learning rate at base width, a line per std and output multiplier."""
    figure, axes = _axes()
    groups: dict[tuple[float, float], list[Run]] = {}
    for run in grid:
        key = (initial_scale(run)[1], run.config.get("output_multiplier", 1.0))
        groups.setdefault(key, []).append(run)
    for colour, ((std, tau), runs) in zip(COLOURS * 9, sorted(groups.items()), strict=False):
        finished = sorted((r for r in runs if r.loss is not None), key=lambda r: r.lr)
        axes.plot(
            [r.lr for r in finished], [r.loss for r in finished], "o-", color=colour, label=f"σ {std:g}, τ {tau:g}"
        )
    axes.plot(best.lr, best.loss, "*", ms=16, color="black", label=f"best: lr {best.lr:.3g}, loss {best.loss:.4f}")
    diverged = sorted({r.lr for r in grid if r.loss is None})
    for lr in diverged:
        axes.axvline(lr, color="grey", ls=":", label="diverged" if lr == diverged[0] else None)
    axes.set(xscale="log", xlabel="learning rate at base width", ylabel="held-out loss, nats per token")
    axes.set_title(f"Hyperparameter landscape at base width {best.width}")
    axes.legend(frameon=False)
    return figure


def plot_law(
    law: "ScalingLaw",
    runs: Sequence[Run],
    prediction: "Prediction | None" = None,
    target: float | None = None,
    actual: Sequence[float] = (),
    level: float = 0.9,
) -> Figure:
    """Draw L(N): the proxies, the fit with its interval, the shaded extrapolation, the prediction and the actual loss.

    `actual` lists the target's held-out losses (nats per token), one a seed, if it was trained.
    """
    figure, axes = _axes()
    key = "N_non_embedding" if getattr(law, "count", "total") == "non_embedding" else "N"
    finished = [run for run in runs if run.loss is not None]
    sizes = np.array([float(getattr(run, key)) for run in finished])
    end = max(sizes.max(), target or 0.0) * 1.3
    grid = np.geomspace(sizes.min() / 1.2, end, 80)
    band = _quiet_predict(law, grid, level)
    axes.axvspan(sizes.max(), end, color="#f2b134", alpha=0.14, lw=0, label="extrapolation")
    axes.fill_between(grid, band.low, band.high, color=COLOURS[0], alpha=0.18, lw=0, label=f"{level:.0%} interval")
    axes.plot(grid, band.loss, color=COLOURS[0], lw=1.6, label=_equation(law))
    axes.plot(sizes, [run.loss for run in finished], "o", color=COLOURS[1], ms=5, label="proxies (one dot a seed)")
    if prediction is not None and target is not None:
        spread = [[prediction.loss - prediction.low], [prediction.high - prediction.loss]]
        axes.errorbar(target, prediction.loss, spread, fmt="D", ms=6, capsize=4, color="black",
                      label=f"predicted {prediction.loss:.4f}")  # fmt: skip
    if len(actual):
        mean = sum(actual) / len(actual)
        axes.plot([target] * len(actual), actual, "*", ms=13, color=COLOURS[2], zorder=5, label=f"actual {mean:.4f}")
    axes.set(
        xscale="log", yscale="log", xlim=(grid[0], end), xlabel=_size_label(key), ylabel="held-out loss, nats per token"
    )
    axes.set_title("Scaling law and prediction")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2f}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.2f}")
    _few_ticks(axes)
    axes.legend(frameon=False)
    return figure


def plot_transfer(losses: dict[str, dict[int, dict[float, float]]], title: str) -> Figure:
    """Draw held-out loss over learning rate for each width, a panel each parametrisation, the optimum of each marked.

    `losses[panel][width][lr]` is in nats per target; a loss that is not finite marks a diverged run.
    """
    figure = Figure(figsize=(5.4 * len(losses), 4.4))
    panels = figure.subplots(1, len(losses), sharey=True, squeeze=False)[0]
    for axes, (name, widths) in zip(panels, losses.items(), strict=True):
        for colour, (width, row) in zip(COLOURS, sorted(widths.items()), strict=False):
            rates = sorted(lr for lr, loss in row.items() if np.isfinite(loss))
            axes.plot(rates, [row[lr] for lr in rates], "o-", ms=3, color=colour, label=f"width {width}")
            if rates:
                best = min(rates, key=row.__getitem__)
                axes.plot(best, row[best], "*", ms=15, color=colour)
        axes.set(xscale="log", xlabel="learning rate at base width", title=name)
        axes.legend(frameon=False, title="star: optimum")
        axes.grid(alpha=0.25)
        axes.xaxis.set_minor_formatter(NullFormatter())
        tried = sorted({lr for row in widths.values() for lr in row})
        axes.set_xticks(tried, [f"{lr:g}" for lr in tried])
    panels[0].set_ylabel("held-out loss, nats per target")
    figure.suptitle(title)
    return figure


def plot_coordinates(check: "CoordinateCheck") -> Figure:
    """Draw the sizes of a coordinate check over width, a line a module: initial sizes, then changes after some steps.

    Standard parametrisation, if measured, is the second row. Sizes are RMS over entries, in geometric means over seeds;
    flat lines are what theory asks for.
    """
    measured = [m for m in (check.mup, check.control) if m is not None]
    steps = sorted({1, check.step, check.mup.steps})
    figure = Figure(figsize=(3.6 * (1 + len(steps)), 3.4 * len(measured)), layout="constrained")
    rows = figure.subplots(len(measured), 1 + len(steps), sharex=True, sharey="col", squeeze=False)
    names = {"mup": "μP", "sp": "standard parametrisation"}
    for row, coordinates in zip(rows, measured, strict=True):
        tables = [("at initialisation", coordinates.initial)]
        tables += [(f"change, step {t}", {k: v[t - 1] for k, v in coordinates.changes.items()}) for t in steps]
        for axes, (title, table) in zip(row, tables, strict=True):
            for name, sizes in table.items():
                if (sizes > 0).all() and np.isfinite(sizes).all():
                    kind = coordinates.kinds[name]
                    style = {"color": COLOURS[KINDS.index(kind)], "lw": 2.2 if kind == "logits" else 1.0}
                    axes.plot(coordinates.widths, np.exp(np.log(sizes).mean(-1)), "o-", ms=2.5, alpha=0.8, **style)
            axes.set(xscale="log", yscale="log")
            axes.set_title(f"{names[coordinates.parametrization]}: {title}", fontsize=9)
            axes.set_xticks(coordinates.widths, [str(w) for w in coordinates.widths])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.25)
        row[0].set_ylabel("RMS of the activation")
        row[1].set_ylabel("RMS of its change since initialisation")
    for axes in rows[-1]:
        axes.set_xlabel("width")
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        rows[0][0].plot([], [], "o-", ms=2.5, color=colour, label=kind)
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS), frameon=False)
    verdict = "passed" if check.passed else "failed"
    figure.suptitle(f"Coordinate check of {check.model}, {verdict}: a line a module, flat is right")
    return figure


def plot_depth(check: "DepthCheck") -> Figure:
    """Draw the sizes of a depth check's changes over the number of layers, the control beside them."""
    panels = [("CompleteP", check.changes)]
    panels += [("no depth parametrisation", check.control_changes)] if check.control_changes else []
    figure = Figure(figsize=(4.4 * len(panels), 3.8), layout="constrained")
    rows = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, table) in zip(rows, panels, strict=True):
        for (name, sizes), colour in zip(table.items(), (f"C{k}" for k in range(10)), strict=False):
            axes.plot(check.depths, np.exp(np.log(sizes).mean(-1)), "o-", ms=4, color=colour, label=name)
        axes.set(xscale="log", yscale="log", title=title, xlabel="layers")
        axes.set_xticks(check.depths, [str(d) for d in check.depths])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
    rows[0].set_ylabel(f"RMS of the change after step {check.step}")
    rows[0].legend(frameon=False, fontsize=8)
    verdict = "passed" if check.passed else "failed"
    figure.suptitle(f"Depth check of {check.model}, {verdict}: flat is right")
    return figure


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, 4.6))
    axes = figure.subplots()
    axes.grid(alpha=0.25, which="both")
    axes.xaxis.set_major_formatter(LogFormatterSciNotation())
    axes.xaxis.set_minor_formatter(NullFormatter())
    return figure, axes


def _few_ticks(axes: Any) -> None:
    """Label 2 and 5 times a power of ten where the logarithmic x axis spans less than two of them, else neither."""
    low, high = axes.get_xlim()

    def label(value: float, _: int) -> str:
        power = math.floor(math.log10(value))
        digit = round(value / 10**power)
        return rf"${digit}\times10^{{{power}}}$" if digit in (2, 5) else ""

    axes.xaxis.set_minor_formatter(label if high < 100 * low else NullFormatter())


def _smooth(losses: list[float], weight: float = 0.6) -> list[float]:
    smoothed, mean = [], losses[0]
    for loss in losses:
        mean = weight * mean + (1 - weight) * loss
        smoothed.append(mean)
    return smoothed


def _size_label(key: str) -> str:
    return "N, parameters without embeddings" if key == "N_non_embedding" else "N, parameters"


def _equation(law: "ScalingLaw") -> str:
    p = law.params_
    return f"L = {p['a']:.3g}·N^({p['b']:.3f}) + {p['c']:.3f}" if {"a", "b", "c"} <= set(p) else type(law).__name__


def _quiet_predict(law: "ScalingLaw", sizes: np.ndarray, level: float) -> "Prediction":
    import warnings

    with warnings.catch_warnings():  # the picture shades what lies outside; the warning belongs to the prediction
        warnings.simplefilter("ignore")
        return law.predict(N=sizes, level=level)
