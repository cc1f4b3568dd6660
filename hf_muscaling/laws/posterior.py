"""What the runs say about a power law in one variable: a full posterior on a grid, no starts and no random numbers.

Given the exponent b the law `L = a·x^b + c` is linear in (a, c), so everything but b and the size of the
misspecification can be integrated by hand and the rest summed on a grid (variable projection, made Bayesian).

Model, relative to the loss, with d = log(x_max / x):

    L_ij / f(x_j) - 1 = delta_j + e_ij,    e_ij ~ N(0, sigma²),    delta_j ~ N(0, sigma² · rho · d_j²)

`e` is what differs between two seeds; `delta`, shared by all runs of one size, says that a power law is a local
description: the further a size lies from the largest one, the further it may stray, on the fitted side and on the
predicted side alike.

Priors: flat in a, c ≥ 0; `log|b|` Student t(2) centred at log 0.4, scale 0.35 (published exponents at a fixed horizon
lie between 0.07 and 1; Chinchilla's alpha is 0.35, nanoLM's b are -0.47 … -0.61); sigma² scaled inverse chi² with one
degree of freedom at `NOISE`²; rho uniform over `RHO`. All are this project's own choice, made on 27 public tables, see
`PowerLaw`; that of sigma on published noise and simulated series, see `NOISE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, chdtri, log_ndtr, ndtr, ndtri

CENTRE, SCALE, DEGREES = 0.4, 0.35, 2.0
NOISE, NOISE_DEGREES = 2.5e-3, 1.0
"""Prior of sigma: one observed deviation of 0.25 %. Half of it lies above 0.37 %, 80 % between 0.15 and 2 %. Published
seeds differ by 0.065 % (124M GPT-2) to 0.4 % (1e5 to 1e6 parameters, this project); the wide upper tail is for
rates that transfer less well and sizes that stray. Three or four single runs lie near some curve by chance, so that
without it they pass for noiseless: 90 % intervals then hold 50 to 79 % (`recipes/benchmarks/few_runs.py`)."""
QUIET = 1e-4
"""The same scale for a point estimate: exact runs give their law exactly."""
RHO = np.array([0.1, 0.3, 1.0, 3.0, 10.0, 30.0])
STEEPEST, FLATTEST = 4.0, 0.01
MAX_SIZES = 400
CANDIDATES = 2  #: of which one is drawn; enough where the runs leave open whether the loss falls


@dataclass(frozen=True)
class Groups:
    """The runs summed up by size: sufficient for the posterior."""

    x: np.ndarray  #: distinct sizes, ascending
    loss: np.ndarray  #: mean loss of each size
    runs: np.ndarray  #: weight of each size (number of runs when every weight is 1)
    within: float  #: weighted sum of squared relative deviations of the runs from the mean of their size
    n: float  #: total number of rows

    @classmethod
    def of(cls, x: np.ndarray, loss: np.ndarray, weight: np.ndarray | None = None) -> Groups:
        """Group rows by size; past `MAX_SIZES` distinct sizes, by bins of log size."""
        weight = np.ones_like(loss) if weight is None else weight
        sizes, index = np.unique(x, return_inverse=True)
        if len(sizes) > MAX_SIZES:
            log = np.log(x)
            index = np.minimum((log - log.min()) / np.ptp(log) * MAX_SIZES, MAX_SIZES - 1).astype(int)
            _, index = np.unique(index, return_inverse=True)
        runs = np.bincount(index, weight)
        mean = np.bincount(index, weight * loss) / runs
        size = np.exp(np.bincount(index, weight * np.log(x)) / runs)
        if len(sizes) <= MAX_SIZES:
            size = sizes
        within = float(np.sum(weight * (loss / mean[index] - 1) ** 2))
        return cls(size, mean, runs, within, float(len(loss)))

    def first(self, k: int) -> Groups:
        """The k smallest sizes; the noise within sizes is shared out by number of runs."""
        runs = self.runs[:k]
        part = runs.sum() / self.runs.sum()
        return Groups(self.x[:k], self.loss[:k], runs, self.within * part, k + (self.n - len(self.x)) * part)


@dataclass(frozen=True)
class _Solved:
    """(a, c) and their joint spread for every (rho, b); arrays of shape (rho, b)."""

    a: np.ndarray
    c: np.ndarray
    spread_aa: np.ndarray
    spread_ac: np.ndarray
    spread_cc: np.ndarray
    squares: np.ndarray
    log_det: np.ndarray


class Posterior:
    """Posterior of (a, b, c, sigma, rho) for `L = a·(x/x_mean)^b + c` given grouped runs; `noise` is the scale of
    sigma's prior.

    Attributes: `b` the grid; `weight` its probabilities, shape (rho, b), with P(a ≥ 0, c ≥ 0) taken for the product of
    the two (`draws` sets that right); `scale` the geometric mean size.
    """

    def __init__(self, groups: Groups, noise: float = NOISE):
        self.groups, self.noise = groups, noise
        log = np.log(groups.x)
        self.scale = float(np.exp(np.average(log, weights=groups.runs)))
        self._z = log - np.log(self.scale)
        self._d = log.max() - log
        self.dof = groups.n - 2 + NOISE_DEGREES
        self._variance = 1 / groups.runs + RHO[:, None] * self._d**2
        self._build()

    def _solve(self, b: np.ndarray) -> _Solved:
        """Weighted linear regression on (x^b, 1) for every rho and b."""
        y = self.groups.loss
        p, q = np.exp(b[:, None] * self._z) / y, 1 / y
        w = 1 / self._variance
        pp, pq, py = w @ (p * p).T, w @ (p * q).T, w @ p.T
        qq, qy = (w @ (q * q))[:, None], (w @ q)[:, None]
        det = np.maximum(pp * qq - pq**2, 1e-14 * pp * qq)
        a, c = (py * qq - qy * pq) / det, (pp * qy - pq * py) / det
        residual = a[..., None] * p + c[..., None] * q - 1
        squares = np.einsum("rbj,rj->rb", residual**2, w)
        return _Solved(a, c, qq / det, -pq / det, pp / det, squares, np.log(det))

    def _log_density(self, b: np.ndarray) -> tuple[np.ndarray, _Solved]:
        """Log posterior per unit of log|b|, up to a constant."""
        s = self._solve(b)
        total = s.squares + self.groups.within + NOISE_DEGREES * self.noise**2
        log = -0.5 * self.dof * np.log(total) - 0.5 * s.log_det - 0.5 * np.log(self._variance).sum(1)[:, None]
        unit = np.sqrt(total / self.dof)
        log = log + np.log(_student_cdf(s.c / (unit * np.sqrt(s.spread_cc)), self.dof) + 1e-300)
        log = log + np.log(_student_cdf(s.a / (unit * np.sqrt(s.spread_aa)), self.dof) + 1e-300)
        t = np.log(-b / CENTRE) / SCALE
        return log - 0.5 * (DEGREES + 1) * np.log1p(t * t / DEGREES), s

    def _build(self) -> None:
        low, high = np.log(FLATTEST), np.log(STEEPEST)
        for _ in range(5):
            grid = np.linspace(low, high, 161)
            log, solved = self._log_density(-np.exp(grid))
            kept = grid[(log > log.max() - 18).any(0)]
            step = grid[1] - grid[0]
            if len(kept) > 60:
                break
            low, high = max(kept[0] - step, low), min(kept[-1] + step, high)
        self.b, self._solved = -np.exp(grid), solved
        density = np.exp(log - log.max())
        self.weight = density / density.sum()
        self._grid = grid

    def curve(self) -> tuple[float, float, float]:
        """Posterior-mean exponent and the (a, c) that go with it, c ≥ 0; `a` refers to x / scale."""
        b = float(np.sum(self.weight * self.b))
        log, s = self._log_density(np.array([b]))
        w = np.exp(log[:, 0] - log.max())
        w /= w.sum()
        free = s.c[:, 0] >= 0
        c = np.where(free, s.c[:, 0], 0.0)
        a = np.where(free, s.a[:, 0], s.a[:, 0] - s.spread_ac[:, 0] / s.spread_cc[:, 0] * s.c[:, 0])
        return float(w @ a), b, float(w @ c)

    def ends(self, level: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """(b, c) at the steep and at the flat end of the central interval of b."""
        by_b = np.cumsum(self.weight.sum(0))
        found = []
        for p in (0.5 * (1 + level), 0.5 * (1 - level)):
            i = min(int(np.searchsorted(by_b, p * by_b[-1])), len(self.b) - 1)
            w = self.weight[:, i] / max(self.weight[:, i].sum(), 1e-300)
            found.append((float(self.b[i]), float(w @ np.maximum(self._solved.c[:, i], 0))))
        return found[0], found[1]

    def draws(self, n: int = 2048) -> dict[str, np.ndarray]:
        """`n` evenly spread posterior draws of a, b, c, sigma, rho (a low-discrepancy sequence: the same every
        time).

        Of `CANDIDATES` candidates for each draw, systematic resampling keeps each as often as it weighs.
        """
        found, log = self._candidates(CANDIDATES * n)
        weight = np.exp(log - log.max())
        cumulative = np.cumsum(weight) / weight.sum()
        keep = np.searchsorted(cumulative, (0.5 + np.arange(n)) / n)
        return {name: values[keep] for name, values in found.items()}

    def _candidates(self, n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """`n` candidates and the logarithms of their weights.

        A candidate has (b, rho) from the grid, sigma from its inverse chi², then c | c ≥ 0 and a | c, a ≥ 0 from their
        normal distributions, so that its density is

            p(b, rho)·P(c ≥ 0 | b, rho)·P(a ≥ 0 | b, rho) · p(sigma | b, rho) · p(a, c | sigma, b, rho) /
                                                               (P(c ≥ 0 | sigma, b, rho)·P(a ≥ 0 | c, sigma, b, rho)).

        The posterior is p(b, rho)·p(sigma | b, rho)·p(a, c | sigma, b, rho) on a, c ≥ 0, and the weight is the ratio of
        the two. Few noisy runs need it: a floor c above every loss, which leaves a = 0, is next to impossible, and
        unweighted it counts like one below them.
        """
        u = _spread(n, 5)
        by_b = np.concatenate([[0], np.cumsum(self.weight.sum(0))])
        edges = np.concatenate(
            [
                [1.5 * self._grid[0] - 0.5 * self._grid[1]],
                0.5 * (self._grid[1:] + self._grid[:-1]),
                [1.5 * self._grid[-1] - 0.5 * self._grid[-2]],
            ]
        )
        b = -np.exp(np.interp(u[0], by_b / by_b[-1], edges))
        column = np.clip(np.searchsorted(by_b / by_b[-1], u[0], side="right") - 1, 0, len(self.b) - 1)
        by_rho = np.cumsum(self.weight[:, column], 0)
        row = (u[1] > by_rho / by_rho[-1]).sum(0)
        y, z = self.groups.loss, self._z
        p, q, w = np.exp(b[:, None] * z) / y, 1 / y, 1 / self._variance[row]
        pp, pq, qq = (w * p * p).sum(1), (w * p * q).sum(1), (w * q * q).sum(1)
        py, qy = (w * p).sum(1), (w * q).sum(1)
        det = np.maximum(pp * qq - pq**2, 1e-14 * pp * qq)
        a, c = (py * qq - qy * pq) / det, (pp * qy - pq * py) / det
        squares = (w * (a[:, None] * p + c[:, None] * q - 1) ** 2).sum(1)
        total = squares + self.groups.within + NOISE_DEGREES * self.noise**2
        sigma = np.sqrt(total / chdtri(self.dof, u[2]))
        spread_a, spread_c, spread_given_c = np.sqrt(qq / det), np.sqrt(pp / det), 1 / np.sqrt(pp)
        c_drawn = _truncated(c, sigma * spread_c, u[3])
        a_mean = a - pq / pp * (c_drawn - c)
        found = {
            "a": _truncated(a_mean, sigma * spread_given_c, u[4]),
            "b": b,
            "c": c_drawn,
            "sigma": sigma,
            "rho": RHO[row],
        }
        unit = np.sqrt(total / self.dof)
        counted = _student_cdf(c / (unit * spread_c), self.dof) * _student_cdf(a / (unit * spread_a), self.dof)
        log = log_ndtr(c / (sigma * spread_c)) + log_ndtr(a_mean / (sigma * spread_given_c)) - np.log(counted + 1e-300)
        return found, log


def _truncated(mean: np.ndarray, sd: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Normal draws restricted to ≥ 0, by inverse distribution function."""
    below = ndtr(-mean / sd)
    return np.maximum(mean + sd * ndtri(np.clip(below + u * (1 - below), 1e-16, 1 - 1e-16)), 0.0)


def _student_cdf(t: np.ndarray, dof: float) -> np.ndarray:
    tail = 0.5 * betainc(0.5 * dof, 0.5, dof / (dof + t * t))
    return np.where(t < 0, tail, 1 - tail)


def _spread(n: int, dimensions: int) -> np.ndarray:
    """Additive recurrence with the generalised golden ratio (Roberts 2018): evenly spread in the unit cube."""
    ratio = 2.0
    for _ in range(60):
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    step = ratio ** -np.arange(1, dimensions + 1)
    return (0.5 + step[:, None] * np.arange(1, n + 1)) % 1.0
