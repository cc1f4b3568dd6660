"""Global fits of `L = sum of power-law terms`, without start values.

Every term is `exp(x·theta)` with known covariates x (1 or -log of a variable), so `log L` is a log-sum-exp of linear
forms and gradient and Hessian of every objective are exact and short. Starts come from variable projection (linear
fits over a grid of exponents), the end from a damped Newton method. All arrays carry a leading axis `m` of
independent problems (grid points, resamples).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize as simplex

from ..errors import ConfigurationError
from .problem import DELTA, RATE, Problem

OBJECTIVES = {
    "huber": "sum of Huber(log L_fit - log L), delta 1e-3 (Hoffmann et al. 2022, Eq. 3)",
    "least_squares": "sum of (L_fit - L)² in nats²",
    "lad": "sum of |log L_fit - log L|, least absolute deviation",
}
FEW, POOL = 32, 61_440  #: resamples that start from one point; rows × resamples whose ends are starts of the rest
ROWS = 100  #: resamples of a smaller table start from several points
SMALL = 150  #: a smaller table has more local minima, and is worth more starts
HOPS, HOP = 12, np.array([0.7, 1.2, 0.2])  #: further starts around a small table's best end, by kind of coordinate
SHORTEST = 1e-9  #: share of Newton's step below which a row has come as far as its digits allow
NEAR = 0.1  #: the largest change that is believed unseen
LEAST, MOST = np.array([-3.0, -0.95, -0.75]), np.array([3.0, 19.0, 3.0])  #: of a step: plain, of a scale, of a rate
ROUNDING = 1e-26  #: a promised decrease that is not one: squared relative errors of 1e-13
PROFILE: dict[str, tuple[float | None, ...]] = {
    "huber": (0.03, 0.005, DELTA),
    "least_squares": (None,),
    "lad": (0.03, 0.005, 1e-3),
}
POLISH: dict[str, tuple[float | None, ...]] = {
    "huber": (DELTA,),
    "least_squares": (None,),
    "lad": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
}


def check_objective(objective: str, allowed: tuple[str, ...]) -> str:
    """The objective, or `ConfigurationError` naming those that exist."""
    if objective not in allowed:
        raise ConfigurationError(f"objective={objective!r} is not known. Choose one of: {', '.join(allowed)}.")
    return objective


def _step(h: np.ndarray, g: np.ndarray, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """Newton's step and the decrease it promises; on |h| for the rows where h points uphill."""
    damped = h.copy()
    damped.reshape(len(h), -1)[:, :: h.shape[1] + 1] += damping
    try:
        step = -np.linalg.solve(damped, g[..., None])[..., 0]
        promised = -0.5 * (step * g).sum(1)
    except np.linalg.LinAlgError:
        step, promised = np.zeros_like(g), np.full(len(g), -1.0)
    uphill = ~(promised > 0)
    if uphill.any():
        eigen, vectors = np.linalg.eigh(h[uphill])
        along = np.einsum("mij,mi->mj", vectors, g[uphill])
        curvature = np.abs(eigen) + damping
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
    damping: float = 1e-3,
    bent: bool = True,
) -> np.ndarray:
    """Minimise from every row of `theta` at once: Newton's method on |Hessian|, parameters kept in their bounds, `free`
    ones moved. A step that does not descend is shortened to where a parabola has its minimum.

    Where a term flattens out, scales and exponents trade off along a curved valley, straight in (E, B, 1/beta): `bent`
    takes its steps in a scale itself, not its log, and in 1/exponent, relative to where they are. With theta = phi(z),
    that multiplies the gradient by phi' and adds gradient · phi'' to the Hessian's diagonal: phi' = 1, phi'' = -1 for a
    log scale, phi' = -beta, phi'' = 2·beta for an exponent. From far away the plain coordinates are the safer ones.

    A row stops when the decrease that Newton's model still promises is below `tolerance` of its value (or `ROUNDING`,
    for a perfect fit); that last step, if small, is taken unseen.
    """
    low, high = problem.low, problem.high
    theta = np.minimum(np.maximum(theta, low), high)
    m, p = theta.shape
    bend = problem.bend
    bent = bent and bool(bend.any())
    least, most = (LEAST[bend], MOST[bend]) if bent else (LEAST[0], MOST[0])
    value, gradient, hessian = problem.derivatives(theta, delta)
    live, t, length = None, theta, np.ones(m)
    for _ in range(steps):
        g, h = gradient, hessian
        held = ((t <= low) & (g > 0)) | ((t >= high) & (g < 0))
        if free is not None:
            held |= ~free
        if bent:
            unit = np.where(bend == RATE, -t, 1.0)
            g = g * unit
            h = h * (unit[:, :, None] * unit[:, None, :])
            h.reshape(-1, p * p)[:, :: p + 1] -= bend * g
        if held.any():
            g = np.where(held, 0.0, g)
            h = np.where(held[:, :, None] | held[:, None, :], np.eye(p), h)
        scale = np.abs(h.diagonal(axis1=1, axis2=2))
        scale = np.sqrt(np.maximum(scale, 1e-20 * scale.max(1, keepdims=True) + 1e-60))
        step, promised = _step(h / (scale[:, :, None] * scale[:, None, :]), g / scale, damping)
        step /= scale
        share = length / np.maximum(np.maximum(step / most, step / least).max(1), 1.0)
        step *= share[:, None]
        if bent:
            grown = np.log1p(step)
            tried = np.where(bend == RATE, t * np.exp(-grown), t + grown)
        else:
            tried = t + step
        tried = np.minimum(np.maximum(tried, low), high)
        hoped = share * promised
        done = (promised <= tolerance * np.abs(value) + ROUNDING) | (length < SHORTEST)
        if done.any():
            near = np.abs(step).max(1, keepdims=True) < NEAR
            theta[done if live is None else live[done]] = np.where(near, tried, t)[done]
            on = np.flatnonzero(~done)
            if not len(on):
                return theta
            live = on if live is None else live[on]
            kept = (t, tried, value, gradient, hessian, length, hoped)
            t, tried, value, gradient, hessian, length, hoped = (array[on] for array in kept)
            low, high = (ends[on] if ends.ndim == 2 else ends for ends in (low, high))
        found = problem.derivatives(tried, delta, live)
        better = found[0] < value
        if better.all():
            t, (value, gradient, hessian) = tried, found
            length = np.minimum(4 * length, 1.0)
        else:
            rise = np.fmax(found[0] - value, 0.0)
            shorter = np.clip(hoped / (rise + 2 * hoped + 1e-300), 0.1, 0.5)
            length = np.where(better, np.minimum(4 * length, 1.0), length * shorter)
            t, value = np.where(better[:, None], tried, t), np.where(better, found[0], value)
            gradient = np.where(better[:, None], found[1], gradient)
            hessian = np.where(better[:, None, None], found[2], hessian)
        damping = max(0.1 * damping, 1e-12)
    theta[slice(None) if live is None else live] = t
    return theta


def minimise(
    problem: Problem, starts: np.ndarray, objective: str, polish: bool = True, lowering: bool = False
) -> tuple[np.ndarray, float]:
    """The best end point (p,) and its objective, from every start at once.

    `lowering` approaches the objective through wider Huber widths, and ends from the best few of each; `polish` ends
    with a simplex search, for kinks.
    """
    *wide, last = dict.fromkeys((*PROFILE[objective], *POLISH[objective]) if lowering else POLISH[objective])
    theta, ways = starts, []
    for delta in wide or (last,):
        ways.append(way(problem, theta, delta))
        theta = ways[-1]
    theta = theta if len(problem.loss) > SMALL else distinct(np.concatenate(ways[::-1]))
    theta = newton(problem, theta, last, steps=40, tolerance=1e-12)
    theta = newton(problem, theta, last, steps=40, tolerance=1e-12, bent=False)  # with E at its bound bent steps stall
    if lowering and len(problem.loss) <= SMALL:
        theta = np.concatenate([theta, _hops(problem, theta[problem.compared(theta, last)[0].argmin()], objective)])
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


def _hops(problem: Problem, theta: np.ndarray, objective: str) -> np.ndarray:
    """Where starts scattered around an end (p,) lead; the same for the same table."""
    found = theta + np.random.default_rng(0).normal(size=(HOPS, len(theta))) * HOP[problem.bend]
    for delta in PROFILE[objective]:
        found = distinct(newton(problem, found, delta, steps=40, tolerance=1e-6, bent=False))
    return newton(problem, found, POLISH[objective][-1], steps=40, tolerance=1e-12)


def way(problem: Problem, theta: np.ndarray, delta: float | None, kept: int = 3) -> np.ndarray:
    """Where the starts lead under a wide Huber width, roughly: the few best. Curved valleys wait for the last width."""
    theta = distinct(newton(problem, theta, delta, steps=12 if problem.bend.any() else 40, tolerance=1e-3, bent=False))
    if len(theta) <= kept:
        return theta
    return theta[np.argsort(problem.compared(theta, delta)[0])[:kept]]


def distinct(theta: np.ndarray) -> np.ndarray:
    """The rows that are not the end of the same descent as an earlier one."""
    kept = theta[:1]
    for row in theta[1:]:
        if (np.abs(kept - row).max(1) > 1e-3).all():
            kept = np.concatenate([kept, row[None]])
    return kept


def resampled(problem: Problem, theta: np.ndarray, objective: str) -> np.ndarray:
    """The optimum (m, p) under each of the m weightings of `problem.weight`, given that of all rows.

    A few start from `theta`, then some more from whichever of these ends suits them best, then all others from the
    ends of those: the values of all pairs are one matrix product, and none ends worse than from that many starts. Small
    tables, which have more local minima, start from several. Single precision finds the way, double precision the end.
    """
    out = np.empty((len(problem.weight), len(theta)))
    many = max(POOL // len(problem.loss), FEW)
    sizes = [FEW, *((16 * FEW,) if many > 16 * FEW else ()), many]
    pool, wide = theta[None], PROFILE[objective][1:]
    *finer, last = POLISH[objective]
    for rows in (*(slice(size) for size in sizes), slice(many, None)):
        part = problem.part(rows)
        if not len(part.weight):
            break
        starts = _suited(part.single, pool, last)
        tries = starts.shape[1]
        spread = part.repeated(tries).single
        found = starts.reshape(-1, len(theta))
        for delta in (*wide, *finer, last):
            found = newton(spread, found, delta, tolerance=1e-5)
        if tries > 1:
            best = spread.derivatives(found, last)[0].reshape(-1, tries).argmin(1)
            found = found.reshape(starts.shape)[np.arange(len(starts)), best]
        pool = out[rows] = newton(part, found, last, tolerance=1e-11, damping=1e-6)
        wide = ()
    return out


def _suited(problem: Problem, pool: np.ndarray, delta: float | None, at_once: int = 1000) -> np.ndarray:
    """Starts (m, k, p): for each regression the best of every k-th of the pool, k about what `ROWS` rows cost."""
    k = min(max(ROWS // len(problem.loss), 1), len(pool))
    value = np.concatenate(
        [problem.part(slice(i, i + at_once)).compared(pool, delta) for i in range(0, len(problem.weight), at_once)]
    )
    return np.stack([pool[j::k][value[:, j::k].argmin(1)] for j in range(k)], 1)
