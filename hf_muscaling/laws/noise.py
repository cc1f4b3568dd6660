"""How far one run strays from a fitted law, and how well the runs determine it: what the residuals really say.

Near the optimum a fit is a weighted regression. With V the slopes d log L / d theta (n, p), W the weights, S = VᵀWV and
G = (S + P)⁻¹ (P: the prior), the residuals are r = M·eps, M = 1 - V·G·VᵀW, so runs with independent errors of
variance sigma² leave

    E[rᵀWr] = sigma²·tr(A),   A = RᵀMᵀWMR = diag(w) - Z·Q·Zᵀ,   Q = 2G - GSG,

with R (n, runs) telling which rows belong to which run (they share their error), w = RᵀW and Z = RᵀWV. Satterthwaite's
degrees of freedom are tr(A)²/tr(A²). Counting rows and parameters instead is far off here: rows of small compute weigh
little, so that five parameters use up most of what the others say.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erf

from .problem import DELTA, Problem

FLOOR = 1e-3  #: log loss; two seeds of one run differ by about this much
ABSOLUTE = np.sqrt(np.pi / 2)  #: standard deviation over mean absolute deviation, normal noise
LEAST_LEFT = 0.05  #: smallest share of the noise that residuals are taken to show


def inefficiency(objective: str, sigma: float) -> float:
    """Variance of a fit over that of least squares, normal noise of standard deviation sigma: pi/2 for least absolute
    deviation, for Huber's function between 1 and that (Huber 1964: E psi² / (E psi')²).

    >>> round(inefficiency("huber", 1.0), 3), round(inefficiency("huber", 1e-4), 3)
    (1.57, 1.0)
    """
    if objective == "least_squares":
        return 1.0
    if objective == "lad":
        return float(np.pi / 2)
    z = DELTA / sigma
    inside = float(erf(z / np.sqrt(2)))
    squares = inside - 2 * z * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi) + z * z * (1 - inside)
    return float(squares / inside**2)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a symmetric matrix of any scale; 0 in the directions it knows nothing of."""
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    scale[np.diag(matrix) <= 0] = 0.0
    outer = np.outer(scale, scale)
    return np.linalg.pinv(matrix * outer, rcond=1e-10, hermitian=True) * outer


def _by_run(run: np.ndarray, weight: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """w (runs,) and Z (runs, p)."""
    return np.bincount(run, weight), np.stack([np.bincount(run, weight * row) for row in slopes], 1)


def run_noise(
    problem: Problem, slopes: np.ndarray, residual: np.ndarray, run: np.ndarray, objective: str
) -> tuple[float, float]:
    """Standard deviation of one run's log loss about the law, near the large end, and its degrees of freedom.

    The size comes from absolute deviations, which a few failed rows hardly move; a least-absolute fit passes closer to
    the runs than least squares by the same factor as its variance is larger. One degree of freedom at `FLOOR` is
    added, so that a fit through every run does not claim certainty.
    """
    weight = problem.weight
    share = _share(problem)
    squared = float((ABSOLUTE * np.average(np.abs(residual), weights=weight)) ** 2)
    by_run, z = _by_run(run, weight, slopes)
    s, b, heavy = (slopes * weight) @ slopes.T, z.T @ z, (z * by_run[:, None]).T @ z
    total, variance, dof = by_run.sum(), 1.5 * squared + FLOOR**2, 0.0
    for _ in range(3):
        g = _inverse(s + _precision(problem) * variance / share)
        q = 2 * g - g @ s @ g
        trace = float(total - np.trace(q @ b))
        second = float((by_run**2).sum() - 2 * np.trace(q @ heavy) + np.trace(q @ b @ q @ b))
        dof = min(trace**2 / second, float(len(by_run))) if trace > 0 and second > 0 else 0.0
        left = max(trace / total, 0.0)
        left = max(1 - inefficiency(objective, np.sqrt(variance)) * (1 - left), left / 3, LEAST_LEFT)
        variance = (squared / left * dof + FLOOR**2) / (dof + 1)
    return float(np.sqrt(variance)), dof + 1


def influence(problem: Problem, slopes: np.ndarray, sigma: float) -> np.ndarray:
    """A (p, n): how far each row's residual moves the fitted theta, H⁻¹VᵀW in units of the noise."""
    found: np.ndarray = _share(problem) / sigma**2 * _curved(problem, slopes, sigma) @ (slopes * problem.weight)
    return found


def covariance(problem: Problem, slopes: np.ndarray, sigma: float, run: np.ndarray, objective: str) -> np.ndarray:
    """Covariance (p, p) of the fitted theta: H⁻¹·(noise + prior)·H⁻¹.

    The weights are no inverse variances, they say what matters, so the curvature alone would be far too confident.
    """
    share, prior = _share(problem), _precision(problem)
    _, z = _by_run(run, problem.weight, slopes)
    inverse = _curved(problem, slopes, sigma)
    noise = share**2 * inefficiency(objective, sigma) / sigma**2 * (z.T @ z)
    found: np.ndarray = inverse @ (noise + prior) @ inverse
    return found


def _curved(problem: Problem, slopes: np.ndarray, sigma: float) -> np.ndarray:
    """H⁻¹ (p, p), H the curvature of the likelihood and the prior at noise sigma."""
    return _inverse(_share(problem) * (slopes * problem.weight) @ slopes.T / sigma**2 + _precision(problem))


def _share(problem: Problem) -> float:
    """What a row counts, rows of one run counting together."""
    return (problem.count or len(problem.loss)) / len(problem.loss)


def _precision(problem: Problem) -> np.ndarray:
    p = len(problem.low)
    return np.diag(problem.precision) if problem.precision is not None else np.zeros((p, p))
