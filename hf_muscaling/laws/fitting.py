"""Global fits of `L = sum of power-law terms`, without start values.

Every term is `exp(x·theta)` with known covariates x (1 or -log of a variable), so `log L` is a log-sum-exp of linear
forms and gradient and Hessian of every objective are exact and short. Starts come from variable projection (linear
fits over a grid of exponents), the end from a damped Newton method. All arrays carry a leading axis `m` of
independent problems (grid points, resamples).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import minimize as simplex

from ..errors import ConfigurationError

OBJECTIVES = {
    "huber": "sum of Huber(log L_fit - log L), delta 1e-3 (Hoffmann et al. 2022, Eq. 3)",
    "least_squares": "sum of (L_fit - L)² in nats²",
    "lad": "sum of |log L_fit - log L|, least absolute deviation",
}
DELTA = 1e-3
_PROFILE: dict[str, tuple[float | None, ...]] = {
    "huber": (0.03, 0.005, DELTA),
    "least_squares": (None,),
    "lad": (0.03, 0.005, 1e-3),
}
_POLISH: dict[str, tuple[float | None, ...]] = {
    "huber": (DELTA,),
    "least_squares": (None,),
    "lad": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
}


def check_objective(objective: str, allowed: tuple[str, ...]) -> str:
    """The objective, or `ConfigurationError` naming those that exist."""
    if objective not in allowed:
        raise ConfigurationError(f"objective={objective!r} is not known. Choose one of: {', '.join(allowed)}.")
    return objective


@dataclass(frozen=True)
class Problem:
    """Regressions on the same rows: covariates `x` (n, p), the term `term[j]` that parameter j belongs to, losses (n,),
    weights (n,) or, one set for each regression, (m, n), and bounds of theta.
    """

    x: np.ndarray
    term: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def value(self, theta: np.ndarray, objective: str) -> np.ndarray:
        """The objective itself (m,), for parameters (m, p)."""
        return objective_value(objective, _log_loss(self, theta)[0], self.loss, self.weight)


def objective_value(objective: str, log_fit: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What an objective makes of fitted log losses (…, n): a weighted sum over the rows (see `OBJECTIVES`)."""
    if objective == "least_squares":
        return ((np.exp(log_fit) - loss) ** 2 * weight).sum(-1)
    r = np.abs(log_fit - np.log(loss))
    if objective == "lad":
        return (r * weight).sum(-1)
    if objective == "huber":
        return (np.where(r <= DELTA, 0.5 * r * r, DELTA * (r - 0.5 * DELTA)) * weight).sum(-1)
    return (r * r * weight).sum(-1)


def _log_loss(problem: Problem, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L (m, n) and the share of each term (K, m, n)."""
    terms = int(problem.term.max()) + 1
    share = np.empty((terms, len(theta), len(problem.loss)))
    for k in range(terms):
        own = problem.term == k
        np.matmul(theta[:, own], problem.x[:, own].T, out=share[k])
    top = np.zeros(()) if share.min() > -300 and share.max() < 300 else share.max(0)
    if top.ndim:
        share -= top
    np.exp(share, out=share)
    total = share.sum(0)
    share /= total
    return top + np.log(total), share


def _derivatives(
    problem: Problem, theta: np.ndarray, delta: float | None, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value (m,), gradient (m, p) and exact Hessian (m, p, p); delta None means least squares on the loss itself."""
    log, share = _log_loss(problem, theta)
    v = np.empty((len(theta), theta.shape[1], len(problem.loss)))
    for j, k in enumerate(problem.term):
        np.multiply(share[k], problem.x[:, j], out=v[:, j])
    if delta is None:
        fit = np.exp(log)
        r = fit - problem.loss
        value = (r * r * weight).sum(1)
        first, outer = 2 * r * fit * weight, 2 * fit * fit * weight
    else:
        r = log - np.log(problem.loss)
        clipped = np.clip(r, -delta, delta)
        value = (clipped * (r - 0.5 * clipped) * weight).sum(1)
        first = clipped * weight
        outer = (clipped == r) * weight - first
    pulled = v * first[:, None]
    same = problem.term[:, None] == problem.term
    hessian = (v * outer[:, None]) @ v.transpose(0, 2, 1) + (pulled @ problem.x) * same
    return value, pulled.sum(2), hessian


def _step(h: np.ndarray, g: np.ndarray, damping: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton's step and the decrease it promises; on |h| for the rows where h points uphill."""
    eye = np.eye(g.shape[1])
    try:
        step = -np.linalg.solve(h + damping[:, None, None] * eye, g[..., None])[..., 0]
        promised = -0.5 * (step * g).sum(1)
    except np.linalg.LinAlgError:
        step, promised = np.zeros_like(g), np.full(len(g), -1.0)
    uphill = ~(promised > 0)
    if uphill.any():
        eigen, vectors = np.linalg.eigh(h[uphill])
        along = np.einsum("mij,mi->mj", vectors, g[uphill])
        curvature = np.abs(eigen) + damping[uphill, None]
        step[uphill] = -np.einsum("mij,mj->mi", vectors, along / curvature)
        promised[uphill] = 0.5 * np.sum(along**2 / curvature, 1)
    return step, promised


def newton(
    problem: Problem,
    theta: np.ndarray,
    delta: float | None,
    free: np.ndarray | None = None,
    steps: int = 60,
    tolerance: float = 1e-14,
) -> np.ndarray:
    """Minimise from every row of `theta` at once: damped Newton on |Hessian|, parameters clipped to their bounds,
    `free` ones moved.

    A row stops when the decrease that Newton's model still promises is below `tolerance` of its value.
    """
    theta = np.clip(theta, problem.low, problem.high)
    p = theta.shape[1]
    free = np.ones(p, bool) if free is None else free
    damping = np.full(len(theta), 1e-3)
    weight = problem.weight
    value, gradient, hessian = _derivatives(problem, theta, delta, weight)
    live = np.arange(len(theta))
    for _ in range(steps):
        g, h, t = gradient[live], hessian[live], theta[live]
        held = ~free | ((t <= problem.low) & (g > 0)) | ((t >= problem.high) & (g < 0))
        g = np.where(held, 0.0, g)
        h = np.where(held[:, :, None] | held[:, None, :], np.eye(p) * 1.0, h)
        scale = np.abs(np.einsum("mii->mi", h))
        scale = np.sqrt(np.maximum(scale, 1e-20 * scale.max(1, keepdims=True) + 1e-60))
        step, promised = _step(h / (scale[:, :, None] * scale[:, None, :]), g / scale, damping[live])
        step /= scale
        tried = np.clip(t + np.clip(step, -3, 3), problem.low, problem.high)
        new, new_gradient, new_hessian = _derivatives(
            problem, tried, delta, weight if weight.ndim == 1 else weight[live]
        )
        better = new < value[live]
        kept = live[better]
        theta[kept], value[kept] = tried[better], new[better]
        gradient[kept], hessian[kept] = new_gradient[better], new_hessian[better]
        damping[live] = np.where(better, damping[live] * 0.1, damping[live] * 10)
        done = (promised <= tolerance * np.maximum(value[live], 1e-300)) | (damping[live] > 1e8)
        live = live[~done]
        if not len(live):
            break
        damping = np.maximum(damping, 1e-12)
    return theta


def minimise(
    problem: Problem, starts: np.ndarray, objective: str, polish: bool = True, lowering: bool = False
) -> tuple[np.ndarray, float]:
    """The best end point (p,) and its objective, from every start at once.

    `lowering` approaches the objective through wider Huber widths; `polish` ends with a simplex search, for kinks.
    """
    theta = starts
    for delta in (*_PROFILE[objective], *_POLISH[objective]) if lowering else _POLISH[objective]:
        theta = newton(problem, theta, delta, tolerance=1e-14 if delta == _POLISH[objective][-1] else 1e-4)
    theta = np.concatenate([starts, theta])
    values = problem.value(theta, objective)
    best = int(np.nanargmin(values))
    if polish and objective != "least_squares" and len(problem.loss) <= 2000:
        for _ in range(2):
            end = simplex(
                lambda t: float(problem.value(np.clip(t, problem.low, problem.high)[None], objective)[0]),
                theta[best],
                method="Nelder-Mead",
                options={"xatol": 1e-10, "fatol": 1e-15, "maxiter": 400},
            )
            if end.fun < values[best]:
                theta[best], values[best] = np.clip(end.x, problem.low, problem.high), end.fun
    return theta[best], float(values[best])


def resampled(problem: Problem, theta: np.ndarray, objective: str, chunk: int = 96) -> np.ndarray:
    """The optimum (m, p) under each of the m weightings of `problem.weight`, starting from the optimum of all rows.

    A weighting moves the optimum far less than Huber's continuation has to bridge, so one start does; in chunks that
    stay in the processor's cache.
    """
    out = np.empty((len(problem.weight), len(theta)))
    for begin in range(0, len(out), chunk):
        weight = problem.weight[begin : begin + chunk]
        part = Problem(problem.x, problem.term, problem.loss, weight, problem.low, problem.high)
        found = np.repeat(theta[None], len(weight), 0)
        *wide, last = (*_PROFILE[objective][1:], *_POLISH[objective])
        for delta in wide:
            found = newton(part, found, delta, tolerance=1e-2)
        found = newton(part, found, last, tolerance=1e-8)
        out[begin : begin + chunk] = found
    return out


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
    for delta in _PROFILE[objective]:
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
