"""Where the loss of a run that does not exist yet will lie: parameters, noise between runs, and a law that is only
nearly right.

Plain bootstrap intervals, which know the parameters' uncertainty alone, contain a real target far too rarely (25 % of
the time at nominal 95 %, measured on public curves). The spread used here has three parts, all relative to the loss:

* the law's posterior draws: every (parameters, sigma, rho) the runs allow;
* the noise of the target run itself, sigma, with the few degrees of freedom it was estimated with;
* drift: beyond the fitted range the truth leaves the law by N(0, tau² d^4), d = log distance outside the range. A
  smooth deviation starts at second order, once level and slope have been fitted. tau is measured on the table
  (rolling origin: refit on the smaller sizes, score on the larger) and, being measured poorly by few sizes, starts
  from a wide log-normal prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

TAU_PRIOR, TAU_WIDTH, DRIFT_POWER = 0.0015, 1.0, 2.0
_TAU = np.geomspace(5e-5, 0.05, 70)
AT_ONCE = 100_000  #: normal distributions worked on at a time: they stay in the processor's cache
CLOSE = 1e-5  #: a step so short, in standard deviations, leaves about its cube
LATE, TURNS = 12, 140


@dataclass(frozen=True)
class RollingErrors:
    """Errors of the law on sizes larger than those it was fitted to: log error, its predicted standard deviation, log
    distance, and the degrees of freedom the deviation was estimated with (None: known).
    """

    error: np.ndarray
    deviation: np.ndarray
    distance: np.ndarray
    dof: np.ndarray | None = None


def rolling_origin(
    sizes: np.ndarray, score: Callable[[int], tuple[np.ndarray, np.ndarray]], first: int = 4
) -> RollingErrors:
    """Refit on the first k sizes, for k = `first` … n - 1, and score every larger size.

    `score(k)` returns the log errors and predicted standard deviations at `sizes[k:]` of the law fitted to `sizes[:k]`.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for k in range(first, len(sizes)):
        error, deviation = score(k)
        parts.append((error, deviation, np.log(sizes[k:] / sizes[k - 1])))
    if not parts:
        return RollingErrors(np.empty(0), np.empty(0), np.empty(0))
    return RollingErrors(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def drift_quantiles(
    errors: RollingErrors,
    u: np.ndarray,
    centre: float = TAU_PRIOR,
    width: float = TAU_WIDTH,
    power: float = DRIFT_POWER,
    count: float = 1.0,
) -> np.ndarray:
    """Quantiles at `u` of the posterior of tau, given rolling-origin errors e ~ N(0, deviation² + tau² d^(2·power)),
    Student's t where the deviation has few degrees of freedom.

    The prior of log tau is normal about log `centre` with standard deviation `width`; each error counts as
    `count` observations, less than one where errors share runs.
    """
    log = -0.5 * (np.log(_TAU / centre) / width) ** 2
    if len(errors.error):
        variance = errors.deviation**2 + _TAU[:, None] ** 2 * errors.distance ** (2 * power)
        square = errors.error**2 / variance
        if errors.dof is not None:
            square = (errors.dof + 1) * np.log1p(square / errors.dof)
        log = log - 0.5 * count * (np.log(variance) + square).sum(1)
    weight = np.exp(log - log.max())
    cumulative = np.cumsum(weight) / weight.sum()
    return np.exp(np.interp(u, cumulative, np.log(_TAU)))


def mixture_interval(centre: np.ndarray, deviation: np.ndarray, level: float) -> tuple[Any, Any]:
    """The central interval of an equal mixture of normal distributions N(centre_m, deviation_m²).

    Of one mixture, arrays (M,), two numbers; of many, (points, M), two arrays (points,).

    >>> low, high = mixture_interval(np.array([-1.0, 1.0]), np.array([0.5, 0.5]), 0.9)
    >>> round(low, 4), round(high, 4)
    (-1.6408, 1.6408)
    """
    many, deviation = np.atleast_2d(centre), np.atleast_2d(deviation)
    tail = 0.5 * (1 - level)
    low, high = _quantile(many, deviation, tail), -_quantile(-many, deviation, tail)
    return (low, high) if np.ndim(centre) > 1 else (float(low[0]), float(high[0]))


def mixture_intervals(
    mixture: Callable[[slice], tuple[np.ndarray, np.ndarray]], points: int, draws: int, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """The intervals (points,) of many mixtures, a few at a time: `mixture` gives the centres and deviations (k, draws)
    of some of the points.
    """
    at_once, ends = max(AT_ONCE // draws, 1), np.empty((2, points))
    for begin in range(0, points, at_once):
        part = slice(begin, min(begin + at_once, points))
        ends[:, part] = mixture_interval(*mixture(part), level)
    return ends[0], ends[1]


def _quantile(centre: np.ndarray, deviation: np.ndarray, probability: float) -> np.ndarray:
    """Quantiles (k,) below the median of mixtures (k, M): Halley's method on u(x) = Phi⁻¹(F(x)), F the distribution
    function, which for one normal distribution is a line.

    With f = F', u' = f/phi(u) and u'' = f'/phi(u) + u·u'². A step that leaves the bracket, or comes late, halves it.
    """
    target = float(ndtri(probability))
    mean, own = centre.mean(1), (deviation**2).mean(1)
    spread = np.sqrt(((centre - mean[:, None]) ** 2).mean(1) + own)
    low, high = (centre - 12 * deviation).min(1), (centre + 12 * deviation).max(1)
    found, live = np.empty(len(mean)), np.arange(len(mean))
    x, inverse = np.clip(mean + target * spread, low, high), np.broadcast_to(1 / deviation, centre.shape)
    for turn in range(TURNS):
        z = (x[:, None] - centre) * inverse
        below = ndtr(z).mean(1)
        density = np.exp(-0.5 * z * z)
        density *= inverse
        z *= density
        z *= inverse
        with np.errstate(all="ignore"):
            u = ndtri(below)
            unit = np.exp(0.5 * u * u)  # 1 / phi(u), but for a factor that f shares
            first = density.mean(1) * unit
            second = u * first**2 - z.mean(1) * unit
            off = u - target
            newton = -off / first
            step = newton / np.clip(1 + 0.5 * newton * second / first, 0.5, 2.0)
        low, high = np.where(off < 0, x, low), np.where(off < 0, high, x)
        done = (np.abs(off) <= CLOSE) & (np.abs(newton) <= CLOSE * spread) | (high - low <= 1e-14 * spread)
        after = x + step
        inside = done | (after > low) & (after < high) & (turn < LATE or turn % 2 == 0)
        after = np.clip(np.where(inside, after, 0.5 * (low + high)), low, high)
        found[live] = after
        if done.all():
            break
        x = after
        if done.any():
            kept = ~done
            live, x, low, high, spread = (v[kept] for v in (live, x, low, high, spread))
            centre, inverse = centre[kept], inverse[kept]
    return found
