"""Where a landscape of losses over learning rates has its minimum, and how surely: a quadratic in log rate, skewed.

Several landscapes (cells of token horizon and batch size) share the skew and the noise of one run, which their seeds
and what the curves leave tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

from .selection import Columns

ALIKE = 0.02  #: horizons and batch sizes closer than this, in logs, are one
NEAR = 2.05  #: rates within this factor of the lowest loss are fitted: the landscape is steeper above than below
SURE = 0.95  #: confidence with which a minimum must be one: the curvature is positive
STEEPEST = 0.4  #: bound of the skew, so that a curve has one minimum among the rates fitted
SHUFFLES = 999
SHARE = 0.01  #: of the shuffled tables at most may show as much dependence on the rate


@dataclass(frozen=True)
class Landscape:
    """Rows of one cell: natural log of the rate, loss (nats per token), and which seed or run order they share."""

    log_lr: np.ndarray
    loss: np.ndarray
    seed: np.ndarray

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct rates and the mean loss at each."""
        rates, index = np.unique(np.round(self.log_lr, 6), return_inverse=True)
        return rates, np.bincount(index, self.loss) / np.bincount(index)


@dataclass(frozen=True)
class Quadratic:
    """A curve around the lowest mean loss: L = seed + slope·u + curve·(u² + skew·u³), u = log rate - `centre`.

    `skew` is given (0 makes it a quadratic). `inverse` is the covariance of (slope, curve) at unit noise, `rss` what
    the curve leaves with `dof` degrees of freedom, `reach` the distance to the outermost rate fitted on either side.
    """

    centre: float
    slope: float
    curve: float
    skew: float
    inverse: np.ndarray
    rss: float
    dof: int
    reach: tuple[float, float]
    loss: float

    @property
    def away(self) -> float:
        """The log rate at the bottom, from `centre`; nan where the curve has none."""
        a, b, c = 3 * self.skew * self.curve, 2 * self.curve, self.slope
        inside = b * b - 4 * a * c
        if not self.curve > 0 or inside < 0:
            return float("nan")
        return float(-2 * c / (b + np.sqrt(inside)))

    @property
    def minimum(self) -> float:
        """The log rate at the bottom."""
        return self.centre + self.away

    def error(self, noise: float) -> float:
        """Standard error of `minimum` for a standard deviation of one run's loss (delta method)."""
        u = self.away
        bend = self.curve * (2 + 6 * self.skew * u)
        gradient = np.array([-1 / bend, -(2 * u + 3 * self.skew * u * u) / bend])
        return noise * float(np.sqrt(gradient @ self.inverse @ gradient))

    def sure(self, noise: float, dof: float) -> bool:
        """Whether the curvature is positive beyond doubt (one-sided t test at `SURE`)."""
        return bool(self.curve > student.ppf(SURE, dof) * noise * np.sqrt(self.inverse[1, 1]))


def edge(landscape: Landscape) -> str:
    """Return "smallest" or "largest" if the lowest mean loss lies at that end of the rates, else ""."""
    rates, means = landscape.means()
    best = int(np.argmin(means))
    return "smallest" if best == 0 else "largest" if best == len(rates) - 1 else ""


class Window:
    """The rates of a landscape within `NEAR` of its lowest mean loss, two on either side at least.

    Holds the products of u, u², u³ and the loss, each less its seed's mean: seeds may differ by a constant. Make one
    only where the lowest loss has a neighbour on either side.
    """

    def __init__(self, landscape: Landscape):
        rates, means = landscape.means()
        best = int(np.argmin(means))
        low = min(rates[best] - np.log(NEAR), rates[max(best - 2, 0)])
        high = max(rates[best] + np.log(NEAR), rates[min(best + 2, len(rates) - 1)])
        keep = (landscape.log_lr >= low - 1e-6) & (landscape.log_lr <= high + 1e-6)
        u = landscape.log_lr[keep] - rates[best]
        seeds = np.unique(landscape.seed[keep], return_inverse=True)[1]
        counts = np.bincount(seeds)
        columns = np.array([u, u**2, u**3, landscape.loss[keep]])
        columns -= np.array([np.bincount(seeds, column) / counts for column in columns])[:, seeds]
        self.products = columns @ columns.T
        self.dof = max(len(u) - len(counts) - 2, 0)
        self.centre, self.loss = float(rates[best]), float(means[best])
        self.reach = (float(-u.min()), float(u.max()))

    def quadratic(self, skew: float = 0.0) -> Quadratic:
        """Fit the curve of a skew by least squares."""
        to = np.array([[1.0, 0, 0, 0], [0, 1.0, skew, 0], [0, 0, 0, 1.0]])
        products = to @ self.products @ to.T
        inverse = np.linalg.pinv(products[:2, :2])
        found = inverse @ products[:2, 2]
        rss = max(float(products[2, 2] - found @ products[:2, 2]), 0.0)
        slope, curve = map(float, found)
        return Quadratic(self.centre, slope, curve, skew, inverse, rss, self.dof, self.reach, self.loss)


def common_skew(windows: Sequence[Window]) -> tuple[float, float]:
    """Return the skew that all landscapes share and its standard error (0 where too few runs tell it).

    Losses rise faster above the best rate than below it, so that quadratics put every minimum too low, by the same
    factor; one skew for all takes that away at the price of one degree of freedom.
    """

    def rest(skew: float) -> float:
        return sum(q.rss / q.loss**2 for q in (window.quadratic(skew) for window in windows))

    dof = sum(window.dof for window in windows)
    if dof < 2:
        return 0.0, 0.0
    found = minimize_scalar(rest, bounds=(-STEEPEST, STEEPEST), method="bounded", options={"xatol": 1e-6})
    best, step = float(found.x), 0.02
    bend = (rest(best + step) - 2 * rest(best) + rest(best - step)) / step**2
    error = float(np.sqrt(2 * rest(best) / (dof - 1) / bend)) if bend > 0 else STEEPEST
    return best, min(error, STEEPEST)


def dependence(landscapes: Sequence[Landscape]) -> float:
    """Return the probability of so much dependence on the rate by chance: losses shuffled within each cell and seed.

    The statistic is the share of the variance within cells and seeds that the rates explain, over all cells. Small
    values say that the loss depends on the rate; a flat table gives any value with equal probability.
    """
    rng = np.random.default_rng(0)
    groups, levels, losses, start = [], [], [], [0, 0]
    for one in landscapes:
        index = np.unique(np.round(one.log_lr, 6), return_inverse=True)[1]
        block = np.unique(one.seed, return_inverse=True)[1]
        levels.append(index + start[0])
        groups.append(block + start[1])
        start = [start[0] + index.max() + 1, start[1] + block.max() + 1]
        losses.append(one.loss / one.loss.mean())
    level, group, loss = map(np.concatenate, (levels, groups, losses))
    loss = loss - (np.bincount(group, loss) / np.bincount(group))[group]
    order = np.argsort(group, kind="stable")
    level, group, loss = level[order], group[order], loss[order]
    # with one seed a rate has one loss, and what it explains is everything: then ask how smooth it is instead
    if len(np.unique(level)) == len(level):
        return _smoothness(landscapes, rng)
    counts = np.bincount(level)

    def explained(values: np.ndarray) -> float:
        return float((np.bincount(level, values) ** 2 / counts).sum())

    own = explained(loss)
    keys = group + rng.random((SHUFFLES, len(loss)))
    shuffled = [explained(loss[np.argsort(row, kind="stable")]) for row in keys]
    return (1 + sum(value >= own for value in shuffled)) / (1 + SHUFFLES)


def _smoothness(landscapes: Sequence[Landscape], rng: np.random.Generator) -> float:
    """The same with one run a rate: how much of each landscape a quadratic in log rate explains."""
    own, shuffled = 0.0, np.zeros(SHUFFLES)
    for one in landscapes:
        u = one.log_lr - one.log_lr.mean()
        design = np.linalg.qr(np.column_stack([np.ones_like(u), u, u * u]))[0][:, 1:]
        loss = (one.loss - one.loss.mean()) / max(float(one.loss.std()), 1e-300)
        own += float(((design.T @ loss) ** 2).sum())
        orders = np.argsort(rng.random((SHUFFLES, len(loss))), axis=1)
        shuffled += ((loss[orders] @ design) ** 2).sum(1)
    return float((1 + (shuffled >= own - 1e-12).sum()) / (1 + SHUFFLES))


@dataclass(frozen=True)
class Optimum:
    """The best learning rate of one cell: D tokens at B tokens a step, from so many runs.

    `lr` is None where the cell has no minimum, and `status` says why; `error` is the standard error of log lr, `curve`
    the rise of the loss, in shares of it, per squared unit of log lr.
    """

    D: float
    B: float
    runs: int
    lr: float | None
    error: float
    curve: float
    status: str


def optimum_of(
    columns: Columns, rows: np.ndarray, one: Landscape, fit: Quadratic | None, noise: float, dof: int
) -> Optimum:
    """The optimum of the cell of some rows, or why it has none; `noise` is a share of the loss."""
    D, B = (float(np.median(columns[name][rows])) for name in ("D", "B"))
    if fit is None:
        why = f"the lowest loss is at the {edge(one)} rate tried"
    elif not fit.sure(noise * fit.loss, dof):
        why = "no minimum beyond the noise"
    elif not -fit.reach[0] <= fit.away <= fit.reach[1]:
        why = "the minimum lies outside the rates around the lowest loss"
    else:
        error = fit.error(noise * fit.loss)
        return Optimum(D, B, len(rows), math.exp(fit.minimum), error, fit.curve / fit.loss, "found")
    return Optimum(D, B, len(rows), None, math.inf, 0.0, why)


# -- from a table ------------------------------------------------------------------------------------------------------


def one_row_a_run(columns: Columns) -> Columns:
    """A row a run: its largest rate, and D, B and loss of its last checkpoint."""
    names = np.array([str(v) for v in columns["run_id"]])
    rows, lr = [], []
    for name in dict.fromkeys(names):
        own = np.flatnonzero(names == name)
        rows.append(own[np.argmax(columns["D"][own])])
        lr.append(columns["lr"][own].max())
    return {name: values[rows] for name, values in columns.items()} | {"lr": np.array(lr)}


def cells_of(columns: Columns) -> list[np.ndarray]:
    """The rows of every (D, B), by rising D and B; values within `ALIKE` of the next are one."""
    key = [_levels(np.log(columns[name])) for name in ("D", "B")]
    pairs = sorted(set(zip(*key, strict=True)))
    return [np.flatnonzero((key[0] == d) & (key[1] == b)) for d, b in pairs]


def landscape_of(columns: Columns, rows: np.ndarray) -> Landscape:
    """The landscape of some rows."""
    return Landscape(np.log(columns["lr"][rows]), columns["loss"][rows], columns["seed"][rows].astype(str))


def _levels(values: np.ndarray) -> np.ndarray:
    order = np.argsort(values, kind="stable")
    out = np.empty(len(values), int)
    out[order] = np.concatenate([[0], np.cumsum(np.diff(values[order]) > ALIKE)])
    return out
