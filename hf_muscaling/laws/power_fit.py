"""The global fit of `L = a·x^b + c`: a profile over b, its local minima polished by Newton's method."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from .fitting import PROFILE, minimise, newton
from .problem import Problem


def power_problem(
    x: np.ndarray, loss: np.ndarray, weight: np.ndarray, bounds: tuple[float, float]
) -> tuple[Problem, float]:
    """`L = exp(log_a + b·log(x/scale)) + exp(log_c)` as a `Problem` in (log_a, b, log_c), and the scale (geometric
    mean of x).
    """
    log = np.log(x)
    scale = float(np.exp(log.mean()))
    covariates = np.stack([np.ones_like(log), log - log.mean(), np.ones_like(log)], 1)
    top, bottom = np.log(loss.max()), np.log(loss.min())
    low = np.array([bottom - 40, bounds[0], bottom - 25])
    high = np.array([top + 60, bounds[1], top])
    return Problem(covariates, np.array([0, 0, 1]), loss, weight, low, high), scale


def fit_power(
    x: np.ndarray,
    loss: np.ndarray,
    weight: np.ndarray,
    objective: str,
    bounds: tuple[float, float] = (-8.0, -1e-3),
    grid: int = 96,
) -> tuple[float, float, float, float]:
    """The global optimum (a, b, c, objective) of `L = a·(x/scale)^b + c`, with scale the geometric mean of x, a > 0
    and c ≥ 0.

    For each b on a grid the objective is minimised over (a, c), the Huber width lowered step by step; every local
    minimum of that profile, and for "lad" the best curves through two rows, then start Newton's method on all three
    parameters. The edge c = 0 is solved on its own and wins ties.
    """
    problem, scale = power_problem(x, loss, weight, bounds)
    coarse = problem if len(x) <= 600 else _thinned(problem)
    b = -np.exp(np.linspace(np.log(-bounds[1]), np.log(-bounds[0]), grid))
    starts = _profile(coarse, _project(coarse, b), objective)
    best = _dips(coarse, starts, objective, 6)
    if objective != "least_squares":
        finer = np.exp(np.linspace(-1, 1, 17) * np.log(b[1] / b[0]))
        fine = np.repeat(best[:4], 17, 0)
        fine[:, 1] = np.clip(fine[:, 1] * np.tile(finer, len(best[:4])), *bounds)
        best = np.concatenate([best, _dips(coarse, _profile(coarse, fine, objective), objective, 8)])
    if objective == "lad" and len(x) <= 32:
        best = np.concatenate([best, _least_absolute(problem, b)])
    edge = Problem(problem.x[:, :2], np.array([0, 0]), loss, weight, problem.low[:2], problem.high[:2])
    on_edge = best[:3, :2]
    if coarse is not problem:
        best, on_edge = minimise(coarse, best, objective)[0][None], on_edge[:1]
    theta, value = minimise(problem, best, objective)
    theta_edge, value_edge = minimise(edge, on_edge, objective)
    if value_edge <= value * (1 + 1e-12):
        return float(np.exp(theta_edge[0])), float(theta_edge[1]), 0.0, value_edge
    return float(np.exp(theta[0])), float(theta[1]), float(np.exp(theta[2])), value


def _profile(problem: Problem, theta: np.ndarray, objective: str) -> np.ndarray:
    """Minimise over (a, c) with b held at each row's own value."""
    for delta in PROFILE[objective]:
        theta = newton(problem, theta, delta, free=np.array([True, False, True]), steps=25, tolerance=1e-8)
    return theta


def _dips(problem: Problem, theta: np.ndarray, objective: str, kept: int) -> np.ndarray:
    """The lowest local minima of a profile along its rows."""
    value = problem.value(theta, objective)
    left, right = np.r_[np.inf, value[:-1]], np.r_[value[1:], np.inf]
    dips = np.flatnonzero((value <= left) & (value <= right))
    return theta[dips[np.argsort(value[dips])[:kept]]]


def _least_absolute(problem: Problem, b: np.ndarray, kept: int = 6, rounds: int = 8) -> np.ndarray:
    """The best curves of least absolute deviation, by b: for a given b the optimal (a, c) passes through two rows, so
    all pairs are tried.

    The `kept` best local minima over the grid of b are narrowed eightfold in every round.
    """
    i, j = np.array(list(combinations(range(len(problem.loss)), 2))).T
    z, y = problem.x[:, 1], problem.loss
    i, j = np.where(z[i] <= z[j], i, j), np.where(z[i] <= z[j], j, i)
    falls = (z[i] < z[j]) & (y[i] > y[j])
    i, j = i[falls], j[falls]

    def through(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        power = np.exp(b[:, None] * z)
        a = (y[i] - y[j]) / (power[:, i] - power[:, j])
        c = y[i] - a * power[:, i]
        theta = np.stack([np.log(a), np.broadcast_to(b[:, None], a.shape), np.log(np.maximum(c, 1e-11 * y.min()))], -1)
        value = np.stack([problem.value(t, "lad") for t in theta])
        best = value.argmin(1)
        return theta[np.arange(len(b)), best], value[np.arange(len(b)), best]

    if not len(i):
        return np.empty((0, 3))
    theta = _dips(problem, through(b)[0], "lad", kept)
    step = abs(np.log(b[1] / b[0]))
    for _ in range(rounds):
        near = -np.exp(np.log(-theta[:, 1:2]) + step * np.linspace(-1, 1, 17))
        tried, value = through(np.clip(near, problem.low[1], problem.high[1]).ravel())
        theta = tried.reshape(len(theta), 17, 3)[np.arange(len(theta)), value.reshape(-1, 17).argmin(1)]
        step /= 8
    return theta


def _project(problem: Problem, b: np.ndarray) -> np.ndarray:
    """Variable projection: for each b the (a, c) of a linear fit to the relative residuals, kept positive."""
    z, y, w = problem.x[:, 1], problem.loss, problem.weight
    p, q = np.exp(b[:, None] * z) / y, 1 / y
    pp, pq, py, qq, qy = (p * p) @ w, (p * q) @ w, p @ w, (q * q) @ w, q @ w
    det = np.maximum(pp * qq - pq**2, 1e-14 * pp * qq)
    a, c = (py * qq - qy * pq) / det, (pp * qy - pq * py) / det
    small = 1e-3 * y.min()
    a, c = np.where(c < small, (py - small * pq) / pp, a), np.maximum(c, small)
    c = np.where(a <= 0, qy / qq, c)
    return np.stack([np.log(np.maximum(a, 1e-12 * y.min())), b, np.log(c)], 1)


def _thinned(problem: Problem, rows: int = 300) -> Problem:
    """Rows spread evenly over x, for the starts of a large table; the fit itself uses every row."""
    take = np.argsort(problem.x[:, 1], kind="stable")[np.linspace(0, len(problem.loss) - 1, rows).astype(int)]
    return Problem(problem.x[take], problem.term, problem.loss[take], problem.weight[take], problem.low, problem.high)
