"""Global fits of `L = sum of power-law terms`, without start values.

Every term is `exp(x·theta)` with known covariates x (1 or -log of a variable), so `log L` is a log-sum-exp of linear
forms and gradient and Hessian of every objective are exact and short. Starts come from variable projection (linear
fits over a grid of exponents), the end from a damped Newton method. All arrays carry a leading axis `m` of
independent problems (grid points, resamples).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

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
    centre: np.ndarray | None = None
    precision: np.ndarray | None = None
    count: float = 0.0  #: independent observations behind the rows; 0: as many as rows
    origin: float = 0.0  #: log loss at which a law that contains the loss takes its coordinates

    def value(self, theta: np.ndarray, objective: str) -> np.ndarray:
        """The objective itself (m,), for parameters (m, p), with the penalty where there is one."""
        value = objective_value(objective, self.log_loss(theta), self.loss, self.weight)
        return value + self.penalty(theta) if self.precision is not None else value

    def log_loss(self, theta: np.ndarray) -> np.ndarray:
        """log L (m, n) of parameters (m, p)."""
        return _log_loss(self, theta)[0]

    def penalty(self, theta: np.ndarray) -> np.ndarray:
        """Half the precision-weighted squared distance from `centre` (m,)."""
        return 0.5 * ((theta - self.centre) ** 2 * self.precision).sum(-1)

    def derivatives(
        self, theta: np.ndarray, delta: float | None, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value (m,), gradient (m, p) and exact Hessian (m, p, p); delta None means least squares on the loss.

        `rows` says which of the regressions the rows of theta belong to, where each has its own weights or centre.
        """

        def own(array: np.ndarray) -> np.ndarray:
            return array if array.ndim == 1 or rows is None else array[rows]

        value, gradient, hessian = self._derivatives(theta, delta, own(self.weight))
        if self.precision is not None and self.centre is not None:
            away = theta - own(self.centre)
            value = value + 0.5 * (away * away * self.precision).sum(-1)
            gradient = gradient + away * self.precision
            hessian = hessian + np.diag(self.precision)
        return value, gradient, hessian

    def _derivatives(
        self, theta: np.ndarray, delta: float | None, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same without the penalty, for a sum of power laws.

        With shares s_k of the terms and r the objective's derivatives per row, the Hessian's block (k, l) is
        `sum_n (r2 - r1) s_k s_l x_k x_lᵀ`, plus `sum_n r1 s_k x_k x_kᵀ` on the diagonal: products of rows (m, n) with
        the few columns x_k x_l, the same for every regression.
        """
        log, share = _log_loss(self, theta)
        value, first, outer = pull(log, self.loss, delta, weight)
        outer -= first
        m, p = theta.shape
        gradient, hessian = np.empty((m, p)), np.empty((m, p, p))
        for k, (own, x, squares) in enumerate(self._blocks):
            pulled = share[k] * first
            gradient[:, own] = pulled @ x
            weighted = share[k] * outer
            for other, (columns, _, _) in enumerate(self._blocks[: k + 1]):
                features = squares[other]
                block = (weighted * share[other]) @ features
                if other == k:
                    block += pulled @ features
                block = block.reshape(m, x.shape[1], -1)
                hessian[:, own, columns] = block
                if other != k:
                    hessian[:, columns, own] = block.transpose(0, 2, 1)
        return value, gradient, hessian

    @cached_property
    def _reach(self) -> np.ndarray:
        """The largest size of each covariate."""
        return np.abs(self.x).max(0)

    @cached_property
    def _blocks(self) -> list[tuple[slice, np.ndarray, list[np.ndarray]]]:
        """For each term: its parameters, its covariates (n, a), and their products with those of every earlier term
        (n, a·b); the parameters of a term are neighbours.
        """
        blocks: list[tuple[slice, np.ndarray, list[np.ndarray]]] = []
        for k in range(int(self.term.max()) + 1):
            own = np.flatnonzero(self.term == k)
            x = self.x[:, own]
            earlier = [*(block[1] for block in blocks), x]
            products = [(x[:, :, None] * y[:, None, :]).reshape(len(x), -1) for y in earlier]
            blocks.append((slice(int(own[0]), int(own[-1]) + 1), x, products))
        return blocks

    def slopes(self, theta: np.ndarray) -> np.ndarray:
        """d log L / d theta (p, n) at one theta (p,)."""
        share = _log_loss(self, theta[None])[1][:, 0]
        return share[self.term] * self.x.T


class CurvedProblem(Problem, ABC):
    """A regression whose log L is no log-sum-exp of linear forms: a law gives `expansion`, the rest follows."""

    @abstractmethod
    def expansion(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """log L (m, n), its gradient (m, p, n), and the sum of its Hessians weighted by rows: (m, n) → (m, p, p)."""

    def log_loss(self, theta: np.ndarray) -> np.ndarray:
        """log L (m, n) of parameters (m, p)."""
        return self.expansion(theta)[0]

    def slopes(self, theta: np.ndarray) -> np.ndarray:
        """d log L / d theta (p, n) at one theta (p,)."""
        return self.expansion(theta[None])[1][0]

    def _derivatives(
        self, theta: np.ndarray, delta: float | None, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        log, v, second = self.expansion(theta)
        value, first, outer = pull(log, self.loss, delta, weight)
        hessian = (v * outer[:, None]) @ v.transpose(0, 2, 1) + second(first)
        return value, (v * first[:, None]).sum(2), hessian


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
    blocks = problem._blocks
    share = np.empty((len(blocks), len(theta), len(problem.loss)))
    reach = 0.0
    for k, (own, x, _) in enumerate(blocks):
        part = theta[:, own]
        np.matmul(part, x.T, out=share[k])
        reach = max(reach, float(np.abs(part).max(0) @ problem._reach[own]))
    top = np.zeros(()) if reach < 300 else share.max(0)
    if top.ndim:
        share -= top
    np.exp(share, out=share)
    total = share.sum(0)
    share /= total
    return top + np.log(total), share


def pull(
    log: np.ndarray, loss: np.ndarray, delta: float | None, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The objective (m,) and its first and second derivative (m, n) in each row's log L."""
    if delta is None:
        fit = np.exp(log)
        r = fit - loss
        first = 2 * r * fit * weight
        return (r * r * weight).sum(-1), first, 2 * fit * fit * weight + first
    r = log - np.log(loss)
    clipped = np.minimum(np.maximum(r, -delta), delta)
    first = clipped * weight
    return np.einsum("mn,mn->m", first, r - 0.5 * clipped), first, (clipped == r) * weight


def _step(h: np.ndarray, g: np.ndarray, damping: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton's step and the decrease it promises; on |h| for the rows where h points uphill."""
    damped = h.copy()
    damped.reshape(len(h), -1)[:, :: h.shape[1] + 1] += damping[:, None]
    try:
        step = -np.linalg.solve(damped, g[..., None])[..., 0]
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
    held_curvature = np.eye(p)
    value, gradient, hessian = problem.derivatives(theta, delta, np.arange(len(theta)))
    live = np.arange(len(theta))
    for _ in range(steps):
        g, h, t = gradient[live], hessian[live], theta[live]
        held = ~free | ((t <= problem.low) & (g > 0)) | ((t >= problem.high) & (g < 0))
        if held.any():
            g = np.where(held, 0.0, g)
            h = np.where(held[:, :, None] | held[:, None, :], held_curvature, h)
        scale = np.abs(h.diagonal(axis1=1, axis2=2))
        scale = np.sqrt(np.maximum(scale, 1e-20 * scale.max(1, keepdims=True) + 1e-60))
        step, promised = _step(h / (scale[:, :, None] * scale[:, None, :]), g / scale, damping[live])
        step = np.minimum(np.maximum(step / scale, -3), 3)
        tried = np.minimum(np.maximum(t + step, problem.low), problem.high)
        new, new_gradient, new_hessian = problem.derivatives(tried, delta, live)
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
    *wide, last = dict.fromkeys((*_PROFILE[objective], *_POLISH[objective]) if lowering else _POLISH[objective])
    for delta in wide:
        theta = distinct(newton(problem, theta, delta, tolerance=1e-3))
    theta = newton(problem, theta, last)
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


def distinct(theta: np.ndarray) -> np.ndarray:
    """The rows that are not the end of the same descent as an earlier one."""
    kept = theta[:1]
    for row in theta[1:]:
        if (np.abs(kept - row).max(1) > 1e-3).all():
            kept = np.concatenate([kept, row[None]])
    return kept


def resampled(problem: Problem, theta: np.ndarray, objective: str, chunk: int = 96) -> np.ndarray:
    """The optimum (m, p) under each of the m weightings of `problem.weight`, starting from the optimum of all rows.

    A weighting moves the optimum far less than Huber's continuation has to bridge, so one start does; in chunks that
    stay in the processor's cache.
    """
    out = np.empty((len(problem.weight), len(theta)))
    for begin in range(0, len(out), chunk):
        weight = problem.weight[begin : begin + chunk]
        part = replace(problem, weight=weight)
        if problem.centre is not None and problem.centre.ndim == 2:
            part = replace(part, centre=problem.centre[begin : begin + chunk])
        found = np.repeat(theta[None], len(weight), 0)
        *wide, last = (*_PROFILE[objective][1:], *_POLISH[objective])
        for delta in wide:
            found = newton(part, found, delta, tolerance=1e-2)
        found = newton(part, found, last, tolerance=1e-8)
        out[begin : begin + chunk] = found
    return out
