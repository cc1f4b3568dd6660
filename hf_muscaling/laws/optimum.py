"""Where a landscape of losses over learning rates has its minimum, and how surely: a quadratic in log rate, skewed.

Several landscapes (cells of token horizon and batch size) share the skew and the noise of one run, which their seeds
and what the curves leave tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

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


def quadratic(landscape: Landscape, skew: float = 0.0) -> Quadratic:
    """Fit the rates within `NEAR` of the lowest mean loss, two on either side at least; seeds may differ by a constant.

    Call it only where the lowest loss has a neighbour on either side.
    """
    rates, means = landscape.means()
    best = int(np.argmin(means))
    low = min(rates[best] - np.log(NEAR), rates[max(best - 2, 0)])
    high = max(rates[best] + np.log(NEAR), rates[min(best + 2, len(rates) - 1)])
    keep = (landscape.log_lr >= low - 1e-6) & (landscape.log_lr <= high + 1e-6)
    u, loss = landscape.log_lr[keep] - rates[best], landscape.loss[keep]
    seeds = np.unique(landscape.seed[keep], return_inverse=True)[1]
    design = np.column_stack([u, u * u + skew * u**3, np.eye(seeds.max() + 1)[seeds]])
    inverse = np.linalg.pinv(design.T @ design)
    found = inverse @ design.T @ loss
    rest = loss - design @ found
    dof = max(len(loss) - int(np.linalg.matrix_rank(design)), 0)
    bottom = float(means[best])
    return Quadratic(
        float(rates[best]), float(found[0]), float(found[1]), skew, inverse[:2, :2], float(rest @ rest), dof,
        (float(-u.min()), float(u.max())), bottom,
    )  # fmt: skip


def common_skew(landscapes: Sequence[Landscape]) -> tuple[float, float, list[Quadratic]]:
    """Fit all landscapes with one skew: it, its standard error, and the curves.

    Losses rise faster above the best rate than below it, so that quadratics put every minimum too low, by the same
    factor; one skew for all takes that away at the price of one degree of freedom.
    """

    def rest(skew: float) -> float:
        return sum(q.rss / q.loss**2 for q in (quadratic(one, skew) for one in landscapes))

    spread = sum(q.dof for q in map(quadratic, landscapes))
    if spread < 2:
        return 0.0, 0.0, [quadratic(one) for one in landscapes]
    best = float(minimize_scalar(rest, bounds=(-STEEPEST, STEEPEST), method="bounded", options={"xatol": 1e-6}).x)
    step = 0.02
    bend = (rest(best + step) - 2 * rest(best) + rest(best - step)) / step**2
    noise = rest(best) / (spread - 1)
    error = float(np.sqrt(2 * noise / bend)) if bend > 0 else STEEPEST
    return best, min(error, STEEPEST), [quadratic(one, best) for one in landscapes]


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
