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
from scipy.special import digamma
from scipy.stats import rankdata
from scipy.stats import t as student

from .selection import Columns

ALIKE = 0.02  #: horizons and batch sizes closer than this, in logs, are one
RISE = 0.03  #: of the loss: rates that lie higher above the lowest are not fitted
SURE = 0.95  #: confidence with which a minimum must be one: the curvature is positive
PRIOR = 6.0  #: observations that the typical noise of all cells counts in each
LEAST_NOISE = 1e-9  #: of a loss, so that noiseless tables can be fitted
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
        """Return the distinct rates and the mean loss at each, as if every seed had trained them all."""
        rates, index = np.unique(np.round(self.log_lr, 6), return_inverse=True)
        seeds = np.unique(self.seed, return_inverse=True)[1]
        design = np.column_stack([np.eye(len(rates))[index], np.eye(seeds.max() + 1)[seeds][:, 1:]])
        found = np.linalg.lstsq(design, self.loss - self.loss.mean(), rcond=None)[0]
        return rates, self.loss.mean() + found[: len(rates)] + found[len(rates) :].sum() / (seeds.max() + 1)


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
    """The rates of a landscape around its lowest mean loss: on either side all up to the first whose loss lies more
    than `RISE` above it, and one at least. Beyond, training breaks down, which no quadratic describes.

    Holds the products of u, u², u³ and the loss, each less its seed's mean: seeds may differ by a constant. Make one
    only where the lowest loss has a neighbour on either side.
    """

    def __init__(self, landscape: Landscape):
        rates, means = landscape.means()
        best = int(np.argmin(means))
        first, last = _reach(means[: best + 1][::-1]), _reach(means[best:])
        low, high = rates[best - first], rates[best + last]
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


def _reach(means: np.ndarray) -> int:
    """How many rates on one side of the lowest loss, which comes first, are fitted."""
    high = np.flatnonzero(means > means[0] * (1 + RISE))
    return max(int(high[0]) - 1, 1) if len(high) else len(means) - 1


def common_skew(windows: Sequence[Window], log_D: np.ndarray) -> tuple[float, float]:
    """Return the skew that all landscapes share and its standard error (0 where too few runs tell it).

    Losses rise faster above the best rate than below it, so that quadratics put every minimum too low, by the same
    factor; one skew for all takes that away at the price of one degree of freedom.
    """

    if sum(window.dof for window in windows) < 2:
        return 0.0, 0.0
    noise, _ = noise_of([window.quadratic() for window in windows], log_D)

    def rest(skew: float) -> float:
        """Squares left, in units of each cell's variance."""
        curves = [window.quadratic(skew) for window in windows]
        return float(sum(q.rss / (q.loss * own) ** 2 for q, own in zip(curves, noise, strict=True)))

    found = minimize_scalar(rest, bounds=(-STEEPEST, STEEPEST), method="bounded", options={"xatol": 1e-6})
    best, step = float(found.x), 0.02
    bend = (rest(best + step) - 2 * rest(best) + rest(best - step)) / step**2
    error = float(np.sqrt(2 / bend)) if bend > 0 else STEEPEST
    return best, min(error, STEEPEST)


def noise_of(curves: Sequence[Quadratic], log_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every cell's noise of one run (a share of its loss) and the degrees of freedom it is known with.

    Short runs are noisier: the typical log variance is a line in log D through all cells, and each cell's own is drawn
    to it as if that were `PRIOR` more observations (the moderated variance of Smyth 2004, at a fixed weight).
    """
    dof = np.array([q.dof for q in curves], float)
    known = dof > 0
    if not known.any():
        return np.full(len(curves), LEAST_NOISE), dof
    variance = np.array([q.rss / q.loss**2 for q in curves]) / np.maximum(dof, 1) + LEAST_NOISE**2
    half = dof[known] / 2
    level = np.log(variance[known]) - digamma(half) + np.log(half)
    slope = 0.0
    if known.sum() > 3 and np.ptp(log_D[known]) > ALIKE:
        slope = float(np.polyfit(log_D[known], level, 1, w=np.sqrt(half))[0])
    away = log_D - np.average(log_D[known], weights=half)
    typical = np.exp(np.average(level, weights=half) + slope * away)
    return np.sqrt((PRIOR * typical + dof * variance) / (PRIOR + dof)), dof + PRIOR


def dependence(landscapes: Sequence[Landscape]) -> float:
    """Return the probability of so much dependence on the rate by chance: losses shuffled within each cell and seed.

    The statistic is how much a quadratic in log rate explains of the ranks of the losses, summed over cells, where the
    seeds of a cell must agree on it: ranks, because short runs are noisier and rates that are far too large give losses
    of any size. Small values say that the loss depends on the rate; a flat table gives any value with equal
    probability.
    """
    rng = np.random.default_rng(0)
    own, shuffled = 0.0, np.zeros(SHUFFLES)
    for one in landscapes:
        seeds = [one.seed == name for name in np.unique(one.seed)]
        seeds = [rows for rows in seeds if len(np.unique(np.round(one.log_lr[rows], 6))) > 3]  # three tell nothing
        real, others = np.zeros(2), np.zeros((SHUFFLES, 2))
        for rows in seeds:
            u = one.log_lr[rows] - one.log_lr.mean()
            basis = np.linalg.qr(np.column_stack([np.ones_like(u), u, u * u]))
            design = (basis[0] * np.sign(np.diag(basis[1])))[:, 1:]
            ranks = rankdata(one.loss[rows]) - (len(u) + 1) / 2
            ranks /= np.sqrt((ranks**2).sum()) or 1.0
            real += ranks @ design
            others += ranks[np.argsort(rng.random((SHUFFLES, len(u))), axis=1)] @ design
        if seeds:
            own += float((real**2).sum()) / len(seeds)
            shuffled += (others**2).sum(1) / len(seeds)
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
    columns: Columns, rows: np.ndarray, one: Landscape, fit: Quadratic | None, noise: float, dof: float
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
