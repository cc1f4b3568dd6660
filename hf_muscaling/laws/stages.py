"""The six constants of the step law estimated stage by stage from small runs, as Part I does, beside the joint fit.

Stage 1, critical batch size: one size at several batch sizes. At each of many losses L the runs' steps follow
`S = S_min + E_min/B`, a line in 1/B; `B_crit = E_min/S_min`, and log B_crit is a line in log L.
Stage 2, size: each size's curve, over S_min, is extended to its limit; log limit is a line in log N.
Stage 3, steps: `log(L - (N_c/N)^alpha_N)` is a line in log S_min.

Part I states the quantities and the regressions; how the limit of a curve is read off (a power law in S_min with
an offset, fitted to the curve) is this project's own choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FitError
from .kaplan_step import KaplanStepLaw
from .power_fit import fit_power
from .selection import Columns, check_window, run_index, select
from .table import _columns, read_table, run_labels

LEVELS = 12
WARM_UP = 0.03  #: share of a run
CONSTANTS = ("N_c", "alpha_N", "S_c", "alpha_S", "B_star", "alpha_B")


@dataclass(frozen=True)
class StageWise:
    """The constants found stage by stage, with the points of every regression.

    `critical` holds loss, B_crit, S_min, E_min of stage 1 and the (loss, 1/B, S) it read off; `limits` N and loss of
    stage 2; `steps` S_min, rest (loss less the size's limit) and N of stage 3. `lacking` says why stages 2 and 3 are
    missing, if they are: `params` then holds B_star and alpha_B only.
    """

    params: dict[str, float]
    critical: Mapping[str, np.ndarray]
    limits: Mapping[str, np.ndarray]
    steps: Mapping[str, np.ndarray]
    lacking: str = ""

    def critical_batch_size(self, loss: float) -> float:
        """`B_star / loss^(1/alpha_B)`, tokens."""
        return float(self.params["B_star"] / loss ** (1 / self.params["alpha_B"]))

    def compare(self, joint: KaplanStepLaw) -> str:
        """Both sets of constants side by side; "open" where a stage is missing."""
        lines = [f"{'':8s} {'stage by stage':>16s} {'jointly':>12s}"]
        for name in CONSTANTS:
            own = f"{self.params[name]:16.5g}" if name in self.params else f"{'open':>16s}"
            lines.append(f"{name:8s} {own} {joint.params_[name]:12.5g}")
        return "\n".join(lines + ([f"open: {self.lacking}"] if self.lacking else []))

    def plot(self) -> Any:
        """A matplotlib figure with a panel for every stage that the runs suffice for."""
        from .plots import plot_stages

        return plot_stages(self)


def estimate_stages(table: Any, window: float = WARM_UP, partial: bool = False) -> StageWise:
    """Fit the constants of `KaplanStepLaw` stage by stage to training curves.

    `table` has one row per checkpoint: N, S (or `step`), B, loss and `run_id`. One size needs at least 3 batch sizes
    (stage 1), and at least 3 sizes are needed (stage 2). The first `window` of every run, by tokens,
    is left out: the warm-up only, since the stages compare runs at losses they pass early.

    Raises `FitError` that names the stage for which the runs do not suffice. With `partial`, stage 1 is enough: runs
    too short to show a size's limit still tell the critical batch size.

    >>> truth = dict(N_c=1e14, alpha_N=0.076, S_c=3e3, alpha_S=0.67, B_star=2e8, alpha_B=0.21)
    >>> runs = [(n, b) for n in (1e6, 4e6, 1.6e7, 6e7) for b in (5e4, 2e5, 8e5)]
    >>> rows = [{"N": n, "S": s, "B": b, "run_id": f"{n} {b}", "loss": float(KaplanStepLaw.loss(n, s, b, **truth))}
    ...         for n, b in runs for s in np.geomspace(500, 5e4, 40)]
    >>> found = estimate_stages(rows).params
    >>> {name: round(found[name], 2) for name in ("alpha_N", "alpha_S", "alpha_B")}
    {'alpha_N': 0.08, 'alpha_S': 0.67, 'alpha_B': 0.21}
    """
    check_window(window, "all")
    raw = dict(_columns(table))
    labels = run_labels(raw)
    if labels is None or len(set(labels)) == len(labels):
        raise FitError("estimate_stages() needs training curves: several rows per run, named by a column 'run_id'.")
    raw["run_id"] = labels
    columns = select(read_table(raw, ["N", "S", "B", "loss"], ["run_id"]), window).columns
    critical, b_star, alpha_b = _critical_batch(columns)
    first = {"B_star": b_star, "alpha_B": alpha_b}
    s_min = columns["S"] / (1 + b_star * columns["loss"] ** (-1 / alpha_b) / columns["B"])
    try:
        later, limits, steps = _later_stages(columns, s_min)
    except FitError as error:
        if not partial:
            raise
        return StageWise(first, critical, {}, {}, str(error))
    return StageWise(later | first, critical, limits, steps)


def _later_stages(
    columns: Columns, s_min: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Stages 2 and 3: their constants, the sizes' limits, and what is left of the loss over S_min."""
    limits, n_c, alpha_n = _limits(columns, s_min)
    rest = columns["loss"] - (n_c / columns["N"]) ** alpha_n
    keep = rest > 0.02 * columns["loss"]
    if keep.sum() < 3:
        raise FitError(
            "Stage 3: hardly any loss lies above its size's limit. Add earlier checkpoints (a lower window)."
        )
    slope, level = _line(np.log(s_min[keep]), np.log(rest[keep]))
    alpha_s = -slope
    if not alpha_s > 0:
        raise FitError("Stage 3: the loss does not fall with steps. Check the columns S and loss.")
    params = {"N_c": n_c, "alpha_N": alpha_n, "S_c": float(np.exp(level / alpha_s)), "alpha_S": float(alpha_s)}
    return params, limits, {"S_min": s_min[keep], "rest": rest[keep], "N": columns["N"][keep]}


def _critical_batch(columns: Columns) -> tuple[dict[str, np.ndarray], float, float]:
    """Stage 1: the hyperbola at every loss, then log B_crit on log L."""
    run = run_index(columns)
    size, batch = columns["N"], columns["B"]
    levels, inverse, steps, found = [], [], [], []
    for n in np.unique(size):
        runs = [np.flatnonzero((run == r) & (size == n)) for r in np.unique(run[size == n])]
        runs = [rows[np.argsort(columns["S"][rows])] for rows in runs if len(rows) >= 3]
        if len({batch[rows[0]] for rows in runs}) < 3:
            continue
        curves = [(batch[rows[0]], np.log(columns["S"][rows]), _falling(columns["loss"][rows])) for rows in runs]
        top, bottom = min(y[0] for _, _, y in curves), max(y[-1] for _, _, y in curves)
        if not top > bottom * 1.001:
            continue
        for level in np.exp(np.linspace(np.log(bottom * 1.0005), np.log(top * 0.9995), LEVELS)):
            x = np.array([1 / b for b, _, _ in curves])
            s = np.exp([np.interp(-np.log(level), -np.log(y), t) for _, t, y in curves])
            slope, least = _line(x / x.mean(), s, 1 / s**2)
            slope = slope / x.mean()
            levels += [level] * len(x)
            inverse += list(x)
            steps += list(s)
            if slope > 0 and least > 0:
                found.append((level, slope / least, least, slope))
    if len(found) < 3:
        raise FitError(
            "Stage 1: no size has curves at 3 or more batch sizes that reach common losses with a critical batch size "
            "between them. Train one size at batch sizes a factor of 4 or more apart, below and above the critical one."
        )
    loss, critical, least, tokens = np.array(found).T
    slope, level = _line(np.log(loss), np.log(critical))
    if not slope < 0:
        raise FitError("Stage 1: B_crit does not grow as the loss falls. Add batch sizes further apart.")
    table = {
        "loss": loss, "B_crit": critical, "S_min": least, "E_min": tokens, "read_loss": np.array(levels),
        "read_inverse_B": np.array(inverse), "read_S": np.array(steps),
    }  # fmt: skip
    return table, float(np.exp(level)), float(-1 / slope)


def _limits(columns: Columns, s_min: np.ndarray) -> tuple[dict[str, np.ndarray], float, float]:
    """Stage 2: the limit of each size's curve over S_min, then log limit on log N."""
    sizes = np.unique(columns["N"])
    if len(sizes) < 3:
        raise FitError(f"Stage 2: {len(sizes)} sizes, at least 3 are needed. Train more sizes.")
    limits = []
    for n in sizes:
        own = columns["N"] == n
        weight = np.ones(int(own.sum()))
        limits.append(fit_power(s_min[own], columns["loss"][own], weight, "least_squares", (-4.0, -1e-3), 48)[2])
    found = np.array(limits)
    if not (found > 0).all():
        raise FitError("Stage 2: a size's curve shows no limit yet. Train the sizes longer.")
    slope, level = _line(np.log(sizes), np.log(found))
    if not slope < 0:
        raise FitError("Stage 2: the limit does not fall with N. Train the sizes longer, or further apart.")
    return {"N": sizes, "loss": found}, float(np.exp(-level / slope)), float(-slope)


def _falling(loss: np.ndarray) -> np.ndarray:
    """The running minimum, made strictly falling."""
    return np.minimum.accumulate(loss) * (1 - 1e-12 * np.arange(len(loss)))


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> tuple[float, float]:
    """Slope and level of a weighted straight line."""
    weight = np.ones_like(x) if weight is None else weight
    middle = np.average(x, weights=weight)
    spread = np.average((x - middle) ** 2, weights=weight)
    slope = np.average((x - middle) * y, weights=weight) / spread
    return float(slope), float(np.average(y, weights=weight) - slope * middle)
