"""How far the truth leaves a law: a smooth discrepancy, measured by what the runs' residuals have in common.

A law is nearly right. Near x the truth is log L(x) = log L_law(x; theta) + delta(x), and every run adds its own noise.
Following Kennedy and O'Hagan (2001, Bayesian calibration of computer models), delta is a Gaussian process over the
logarithms of the law's variables,

    Cov(delta(x), delta(x')) = tau²·k(x, x'),   k = exp(-|log x - log x'|² / (2·ℓ²)),   ℓ = 1, 2, 4 or 8

(factors of 3 to 3,000: from what neighbouring designs share to a bend of the whole law). tau and ℓ come from the fitted
runs. Q, the contrasts of the residuals r that no theta can produce (QᵀV = 0, V the slopes d log L / d theta), have

    Qᵀr ~ N(0, Qᵀ(sigma²·S + tau²·K)Q),

S saying which rows share an error, so that the restricted likelihood of (sigma, tau, ℓ) tells noise, independent from
design to design, from misfit, which neighbours share. Tables made from the law itself show no tau; public runs do,
long before a larger model is trained. The prior of log tau is normal about 0.1 % and wide. Runs at one point share an
error beside their own noise: data order, rates tuned for that size, or a digitised figure err alike for both seeds.

Fitted to runs at X, the law follows delta there: theta moves by A·delta(X), A what each run moves theta by
(`noise.influence`). At x* it then misses the truth by delta(x*) - bᵀdelta(X), b = Aᵀg, g = d log L(x*) / d theta, of
variance

    tau²·s(x*),   s = 1 - 2·bᵀk(X, x*) + bᵀKb:

small between the runs, growing beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LENGTHS = (1.0, 2.0, 4.0, 8.0)  #: log distances over which the misfit may stay alike
TAU_PRIOR, TAU_WIDTH = 1e-3, 3.0  #: centre of tau and standard deviation of log tau
OUTLYING = 4.0  #: residuals count up to so many standard deviations: a failed run is no misfit
ROW_NOISE = 0.1  #: variance of a row's own noise over that of its design
PARTS = 4  #: of a curve: its rows err together
MOST = 400  #: points that the process is evaluated at
_SIGMA, _TAU = np.geomspace(2e-4, 0.1, 60), np.geomspace(5e-5, 0.1, 50)


def kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    """k (m, n) between the columns of a (v, m) and b (v, n), logarithms of the law's variables."""
    return np.exp(-0.5 * ((a[:, :, None] - b[:, None]) ** 2).sum(0) / length**2)


@dataclass(frozen=True)
class Misfit:
    """The discrepancy of a fitted law: `points` (v, m), logarithms of the variables where runs lie; `influence` (p, m),
    A of the module; `gram` (lengths, p, p) = A·K·Aᵀ; `log_weight` (lengths, taus), the posterior over `LENGTHS` and
    `_TAU`.
    """

    points: np.ndarray
    influence: np.ndarray
    gram: np.ndarray
    log_weight: np.ndarray

    @classmethod
    def of(
        cls, points: np.ndarray, slopes: np.ndarray, influence: np.ndarray, residual: np.ndarray, design: np.ndarray
    ) -> Misfit:
        """The misfit of rows at `points` (v, n), whose `slopes` and `influence` are (p, n), `residual` (n,), and which
        `design` (n,) they are of.
        """
        cell = _cells(points, design)
        rows = np.bincount(cell)
        points, slopes = (np.stack([np.bincount(cell, v) for v in a]) / rows for a in (points, slopes))
        moved = np.stack([np.bincount(cell, v) for v in influence])
        limit = OUTLYING * 1.4826 * max(float(np.median(np.abs(residual - np.median(residual)))), _SIGMA[0])
        mean = np.bincount(cell, np.clip(residual, -limit, limit)) / rows
        own = np.stack([kernel(points, points, length) for length in LENGTHS])
        log_weight = _restricted_likelihood(mean, slopes, own, _shared(cell, design, rows))
        log_weight = log_weight - 0.5 * (np.log(_TAU / TAU_PRIOR) / TAU_WIDTH) ** 2
        return cls(points, moved, moved @ own @ moved.T, log_weight)

    def draws(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """tau, a share of the loss, and the place of ℓ in `LENGTHS`, at quantiles `u` of their posterior: ordered by ℓ,
        then by tau.
        """
        weight = np.exp(self.log_weight - self.log_weight.max()).ravel()
        at = np.minimum(np.searchsorted(np.cumsum(weight) / weight.sum(), u), len(weight) - 1)
        return _TAU[at % len(_TAU)], at // len(_TAU)

    def spread(self, points: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """s (lengths, t) of the module at points (v, t) with slopes (p, t): the variance of the law's miss in tau²."""
        near = np.stack([kernel(self.points, points, length) for length in LENGTHS])
        followed = np.einsum("pt,pm,lmt->lt", slopes, self.influence, near, optimize=True)
        own = np.einsum("pt,lpq,qt->lt", slopes, self.gram, slopes, optimize=True)
        return np.maximum(1 - 2 * followed + own, 0.0)


def _cells(points: np.ndarray, design: np.ndarray) -> np.ndarray:
    """The cell (n,) of each row: a quarter of its design's points, in the order of compute; of very many designs, the
    row's place on a grid.
    """
    (of, _), row = np.unique(np.stack([design, np.round(points.sum(0), 3)]), axis=1, return_inverse=True)
    count = np.bincount(of.astype(int))
    place = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    cell = np.unique((of * PARTS + place * PARTS // np.repeat(count, count))[row.ravel()], return_inverse=True)[1]
    size = LENGTHS[0] / 4
    while cell.max() >= MOST:
        cell = np.unique(np.round(points / size), axis=1, return_inverse=True)[1].ravel()
        size *= 1.5
    return cell


def _shared(cell: np.ndarray, design: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """S (m, m) between the cells' mean residuals: what rows of one design share, and the rows' own noise."""
    pairs, count = np.unique(np.stack([cell, design]), axis=1, return_counts=True)
    share = count / rows[pairs[0]]
    by_design = np.argsort(pairs[1], kind="stable")
    found = np.diag(ROW_NOISE / rows)
    for rows_of in np.split(by_design, np.cumsum(np.bincount(pairs[1]))[:-1]):
        at = pairs[0][rows_of]
        found[np.ix_(at, at)] += np.outer(share[rows_of], share[rows_of])
    return found


def _restricted_likelihood(residual: np.ndarray, slopes: np.ndarray, own: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Log likelihood (lengths, taus) of K (lengths, m, m) and every value of `_TAU`, that of sigma averaged over
    `_SIGMA`.

    One decomposition, of LᵀQᵀKQL with LLᵀ = (QᵀSQ)⁻¹, makes all taus and sigmas sums over independent numbers.
    """
    size = np.linalg.norm(slopes, axis=1)
    free = slopes[size > 0] / size[size > 0, None]
    contrasts = np.eye(len(residual))
    if len(free):
        u, s, _ = np.linalg.svd(free.T)
        contrasts = u[:, int((s > 1e-8 * s[0]).sum()) :]
    found = np.zeros((len(own), len(_TAU)))
    if not contrasts.shape[1]:
        return found
    whitened = np.linalg.inv(np.linalg.cholesky(contrasts.T @ shared @ contrasts)) @ contrasts.T
    for i, k in enumerate(own):
        stretch, turn = np.linalg.eigh(whitened @ k @ whitened.T)
        square = (turn.T @ whitened @ residual) ** 2
        variance = _SIGMA[:, None, None] ** 2 + _TAU[:, None] ** 2 * np.maximum(stretch, 0.0)
        log = -0.5 * (np.log(variance) + square / variance).sum(-1)
        found[i] = log.max() + np.log(np.exp(log - log.max()).mean(0))
    return found
