"""How far the truth leaves a law: a smooth discrepancy, measured by what the runs' residuals have in common.

A law is nearly right. Near x the truth is log L(x) = log L_law(x; theta) + delta(x), and every run adds its own noise.
Following Kennedy and O'Hagan (2001, Bayesian calibration of computer models), delta is a Gaussian process over the
logarithms of the law's variables,

    Cov(delta(x), delta(x')) = tau²·k(x, x'),   k = exp(-|log x - log x'|² / (2·ℓ²)),   ℓ = 2 (a factor of 7).

tau comes from the fitted runs. Q, the contrasts of the residuals r that no theta can produce (QᵀV = 0, V the slopes
d log L / d theta), have

    Qᵀr ~ N(0, Qᵀ(sigma²·S + tau²·K)Q),

S saying which rows share a run, so that the restricted likelihood of (sigma, tau) tells noise, which is independent
from run to run, from misfit, which neighbours share. Tables made from the law itself show no tau; public runs do, long
before a larger model is trained. The prior of log tau is normal about 0.1 % and wide.

Fitted to runs at X, the law follows delta there: theta moves by A·delta(X), A what each run moves theta by
(`noise.influence`). At x* it then misses the truth by delta(x*) - bᵀdelta(X), b = Aᵀg, g = d log L(x*) / d theta, of
variance

    tau²·s(x*),   s = 1 - 2·bᵀk(X, x*) + bᵀKb:

small between the runs, growing beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LENGTH = 2.0  #: log distance over which the misfit stays alike
TAU_PRIOR, TAU_WIDTH = 1e-3, 3.0  #: centre of tau and standard deviation of log tau
OUTLYING = 4.0  #: residuals count up to so many standard deviations: a failed run is no misfit
ROW_NOISE = 0.1  #: variance of a checkpoint's own noise over that of its run
PARTS = 4  #: of a curve: its rows err together
MOST = 400  #: points that the process is evaluated at
_SIGMA, _TAU = np.geomspace(2e-4, 0.1, 60), np.geomspace(5e-5, 0.1, 50)


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """k (m, n) between the columns of a (v, m) and b (v, n), logarithms of the law's variables."""
    return np.exp(-0.5 * ((a[:, :, None] - b[:, None]) ** 2).sum(0) / LENGTH**2)


@dataclass(frozen=True)
class Misfit:
    """The discrepancy of a fitted law: `points` (v, m), logarithms of the variables where runs lie; `influence` (p, m),
    A of the module; `gram` (p, p) = A·K·Aᵀ; `log_weight` over the values `_TAU`, the posterior of tau.
    """

    points: np.ndarray
    influence: np.ndarray
    gram: np.ndarray
    log_weight: np.ndarray

    @classmethod
    def of(
        cls, points: np.ndarray, slopes: np.ndarray, influence: np.ndarray, residual: np.ndarray, run: np.ndarray
    ) -> Misfit:
        """The misfit of rows at `points` (v, n), whose `slopes` and `influence` are (p, n) and `residual` and `run`
        (n,).
        """
        cell = _cells(points, run)
        rows = np.bincount(cell)
        points, slopes = (np.stack([np.bincount(cell, v) for v in a]) / rows for a in (points, slopes))
        moved = np.stack([np.bincount(cell, v) for v in influence])
        own = kernel(points, points)
        log_weight = -0.5 * (np.log(_TAU / TAU_PRIOR) / TAU_WIDTH) ** 2
        limit = OUTLYING * 1.4826 * max(float(np.median(np.abs(residual - np.median(residual)))), _SIGMA[0])
        mean = np.bincount(cell, np.clip(residual, -limit, limit)) / rows
        log_weight = log_weight + _restricted_likelihood(mean, slopes, own, _shared(cell, run, rows))
        return cls(points, moved, moved @ own @ moved.T, log_weight)

    def tau(self, u: np.ndarray) -> np.ndarray:
        """Quantiles at `u` of the posterior of tau, a share of the loss."""
        weight = np.exp(self.log_weight - self.log_weight.max())
        return np.exp(np.interp(u, np.cumsum(weight) / weight.sum(), np.log(_TAU)))

    def spread(self, points: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """s (t,) of the module, at points (v, t) with slopes (p, t): the variance of the law's miss, in tau²."""
        followed = np.einsum("pt,pm,mt->t", slopes, self.influence, kernel(self.points, points))
        return np.maximum(1 - 2 * followed + np.einsum("pt,pq,qt->t", slopes, self.gram, slopes), 0.0)


def _cells(points: np.ndarray, run: np.ndarray) -> np.ndarray:
    """The cell (n,) of each row: itself; of curves, a quarter of its run; of very many rows, its place on a grid."""
    runs = int(run.max()) + 1
    cell = np.arange(len(run))
    if runs < len(run):
        order = np.lexsort((points.sum(0), run))
        length = np.bincount(run)
        place = np.empty(len(run), int)
        place[order] = np.arange(len(run)) - np.repeat(np.cumsum(length) - length, length)
        cell = run * PARTS + place * PARTS // length[run]
    cell = np.unique(cell, return_inverse=True)[1]
    size = LENGTH / 8
    while cell.max() >= MOST:
        cell = np.unique(np.round(points / size), axis=1, return_inverse=True)[1].ravel()
        size *= 1.5
    return cell


def _shared(cell: np.ndarray, run: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """S (m, m) between the cells' mean residuals: what rows of one run share, and the rows' own noise."""
    pairs, count = np.unique(np.stack([cell, run]), axis=1, return_counts=True)
    share = count / rows[pairs[0]]
    by_run = np.argsort(pairs[1], kind="stable")
    found = np.diag(ROW_NOISE / rows)
    for of_run in np.split(by_run, np.cumsum(np.bincount(pairs[1]))[:-1]):
        at = pairs[0][of_run]
        found[np.ix_(at, at)] += np.outer(share[of_run], share[of_run])
    return found


def _restricted_likelihood(residual: np.ndarray, slopes: np.ndarray, own: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Log likelihood of every value of `_TAU`, that of sigma averaged over `_SIGMA`.

    One decomposition, of LᵀQᵀKQL with LLᵀ = (QᵀSQ)⁻¹, makes all of them sums over independent numbers.
    """
    size = np.linalg.norm(slopes, axis=1)
    u, s, _ = np.linalg.svd((slopes[size > 0] / size[size > 0, None]).T)
    contrasts = u[:, int((s > 1e-8 * s[0]).sum()) :]
    if not contrasts.shape[1]:
        return np.zeros(len(_TAU))
    root = np.linalg.inv(np.linalg.cholesky(contrasts.T @ shared @ contrasts))
    whitened = root @ contrasts.T
    stretch, turn = np.linalg.eigh(whitened @ own @ whitened.T)
    square = (turn.T @ whitened @ residual) ** 2
    variance = _SIGMA[:, None, None] ** 2 + _TAU[:, None] ** 2 * np.maximum(stretch, 0.0)
    log = -0.5 * (np.log(variance) + square / variance).sum(-1)
    top = log.max()
    found: np.ndarray = top + np.log(np.exp(log - top).mean(0))
    return found
