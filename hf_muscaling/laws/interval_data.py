"""The interval of a law as numbers: everything that `predict` needs for it, without the runs and the fit.

What a page in a browser computes with (`hf_muscaling.space`). The rule is that of `PowerLaw._interval` and
`BootstrapLaw._interval`; a test holds the two ways together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import DRIFT_POWER, mixture_interval
from .misfit import Misfit


@dataclass(frozen=True)
class Neighbourhood:
    """What the linearised fit says at a point x, with g = d log L / d theta there (`slopes`, (p, 1)):

    * the scatter of log L that it expects, `sqrt(gᵀ V g)`: draws that scatter less about the `fitted` parameters' log
      loss are widened to it, at most `widest` times;
    * the variance of the law's `misfit`, of draw m with the length at place `length[m]` of `misfit.LENGTHS`.

    `theta` (p,) are the fitted coordinates, which refer to `origin` (as the law's `_problem` says), `covariance` (p, p)
    theirs.
    """

    fitted: Mapping[str, float]
    theta: np.ndarray
    origin: Mapping[str, float]
    covariance: np.ndarray
    widest: float
    slopes: Callable[..., np.ndarray]
    misfit: Misfit
    length: np.ndarray

    def widened(self, loss: Callable[..., Any], at: tuple[float, ...], centre: np.ndarray) -> np.ndarray:
        """The log losses of the draws at one point, moved away from the fitted law's where they scatter too little."""
        own, scatter = float(np.log(loss(*at, **self.fitted))), float(centre.std())
        if scatter <= 0:
            return centre
        slopes = self.slopes(*at)[:, 0]
        expected = np.sqrt(max(float(slopes @ self.covariance @ slopes), 0.0))
        return own + np.clip(expected / scatter, 1.0, self.widest) * (centre - own)

    def miss(self, at: tuple[float, ...]) -> np.ndarray:
        """The variance (M,) of the law's miss at one point, in tau²."""
        found: np.ndarray = self.misfit.spread(np.log(at)[:, None], self.slopes(*at))[self.length, 0]
        return found


@dataclass(frozen=True)
class IntervalData:
    """A mixture of normal distributions of the log loss, one for each draw m of M:

        N(log L(x; params_m), sigma_m²·(1 + rho_m·ln(x_max/x)²) + tau_m²·away_m(x))

    `params` are arrays (M,) by letter, `sigma`, `rho` and `tau` arrays (M,). `span` is the smallest and the largest
    fitted value of each variable. A law in one variable has a `rho` and strays from its runs by a drift, away_m(x) = d⁴
    with d the log distance of x outside `span`. A law in several has a `neighbourhood` instead, which moves the centres
    apart and gives away_m(x), see `Neighbourhood`.

    >>> from hf_muscaling import PowerLaw
    >>> runs = {"N": [1e6, 2e6, 4e6, 8e6], "loss": [2 + 40 * n**-0.25 for n in (1e6, 2e6, 4e6, 8e6)]}
    >>> law = PowerLaw().fit(runs)
    >>> low, high = law.interval_data().bounds(law.loss, {"N": 16e6}, level=0.9)
    >>> found = law.predict(N=16e6, level=0.9)
    >>> bool(np.allclose([low, high], [found.low, found.high], rtol=1e-9))
    True
    """

    params: Mapping[str, np.ndarray]
    sigma: np.ndarray
    tau: np.ndarray
    span: Mapping[str, tuple[float, float]]
    rho: np.ndarray | None = None
    power: float = DRIFT_POWER
    neighbourhood: Neighbourhood | None = None

    def bounds(self, loss: Callable[..., Any], at: Mapping[str, float], level: float) -> tuple[float, float]:
        """The interval, nats per token, of a run at one point; `loss` is the law's function of variables and
        parameters.
        """
        point = tuple(at[n] for n in self.span)
        centre = np.log(np.maximum(np.asarray(loss(*point, **self.params), float), 1e-300))
        away: Any
        if self.neighbourhood is not None:
            away = self.neighbourhood.miss(point)
            centre = self.neighbourhood.widened(loss, point, centre)
        else:
            away = max(0.0, *(max(np.log(at[n] / high), np.log(low / at[n])) for n, (low, high) in self.span.items()))
            away **= 2 * self.power
        variance = self.sigma**2 + self.tau**2 * away
        if self.rho is not None:
            ((name, (_, largest)),) = self.span.items()
            variance = variance + self.sigma**2 * self.rho * np.log(largest / at[name]) ** 2
        low, high = mixture_interval(centre, np.sqrt(variance), level)
        return float(np.exp(low)), float(np.exp(high))
