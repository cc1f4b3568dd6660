"""Intervals for laws in several variables: resampled parameters, the noise of one run, and the law's misfit.

All relative to the loss:

* parameters: every run (all its checkpoints together) gets a random weight, the law is refitted; where the linearised
  fit expects more scatter than the refits show, they are widened to it (refits reuse the residuals, which are smaller
  than the errors once five parameters have been fitted to few runs);
* sigma, the noise of the target run: from the residuals near the large end, with the degrees of freedom they have left
  (`laws.noise`);
* misfit: the truth leaves the law by a smooth discrepancy, whose size the residuals of the fitted runs show
  (`laws.misfit`); it is small between the runs and grows beyond them.

How it was settled, and what it covers: `ChinchillaLaw`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigurationError, FitError
from .base import check_level
from .caveats import rising
from .fitting import resampled
from .interval_data import IntervalData, Neighbourhood
from .intervals import mixture_intervals
from .misfit import Misfit
from .noise import covariance, influence, run_noise
from .regression import Origin, RegressionLaw
from .selection import Columns, run_index
from .uncertainty import flat_direction, profile

DRAWS, SEED = 400, 0
AT_ONCE = 2e7  #: weights (resamples × rows) held at a time
WIDEST = 4.0  #: most that the scatter of refits is widened


@dataclass(frozen=True)
class Linearised:
    """A fit near its optimum: coordinates `theta` (p,) and the `origin` they refer to; `slopes` at the rows
    (p, n), 0 for what is held; the `covariance` (p, p) of theta and the `influence` (p, n) of the rows on it; the
    noise of one run near the large end, `sigma`, with its degrees of freedom.
    """

    theta: np.ndarray
    origin: Origin
    slopes: np.ndarray
    covariance: np.ndarray
    influence: np.ndarray
    sigma: float
    dof: float


class BootstrapLaw(RegressionLaw):
    """A regression law whose `_interval` comes from refits to resampled runs.

    `exact = True` in a subclass takes the law for exact, without misfit: too sure for measured runs.
    """

    exact: ClassVar[bool] = False

    def summary(self) -> str:
        """The fit in words, with the noise of one run and how far the truth leaves the law (`laws.misfit`)."""
        self._check_fitted()
        tau = float(np.median(self._misfit.draws(np.linspace(0.005, 0.995, 100))[0]))
        return f"{super().summary()}\n  noise of one run {100 * self._local.sigma:.2g} %, misfit {100 * tau:.2g} %"

    def bootstrap(self, n: int = 4000, seed: int = 0) -> dict[str, np.ndarray]:
        """Parameters refitted to `n` resamples of the runs: {letter: (n,)}; rows that share a `run_id` go together."""
        self._check_fitted()
        problem, origin, theta = self._fitted
        most = max(int(AT_ONCE / len(problem.loss)), 1)
        sizes = [min(most, n - begun) for begun in range(0, n, most)]
        found = [
            resampled(replace(problem, weight=self._counts(size, seed + i)), theta, self._likelihood)
            for i, size in enumerate(sizes)
        ]
        return self._named(np.concatenate(found), origin)

    def parameter_interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """Profile-likelihood interval of a parameter (`laws.uncertainty`): every value in it fits the runs nearly as
        well once the others are refitted. An end the runs do not set is the parameter's bound (0 or inf).

        Rows of one run count as one observation. Raises `ConfigurationError` for an unknown or fixed parameter.
        """
        self._check_fitted()
        self._known(name, "parameter_interval")
        if name in self.fixed:
            raise ConfigurationError(f"{name} is fixed at {self.fixed[name]:g}, so the runs say nothing about it.")
        return profile(self, name, check_level(level))

    def _weaknesses(self) -> list[str]:
        problem, _, theta = self._fitted
        edge = (problem.high > problem.low) & ((theta < problem.low + 1e-6) | (theta > problem.high - 1e-6))
        found = []
        for name, j in zip(self.parameters, self._coordinates(), strict=True):
            if name == "E" and self._at_floor():
                found.append("E is at its bound 0: the runs do not say where the loss stops falling. Add larger runs.")
            elif edge[j]:
                found.append(
                    f"{name} = {self.params_[name]:.3g} is not identified: it lies at the edge of what is searched. "
                    f"Add runs that differ more in {', '.join(self.variables)}, or borrow it: fixed={{{name!r}: …}}."
                )
        flat = flat_direction(self)
        if flat.size > 1:
            ends = (", ".join(f"{n} = {v[n]:.3g}" for n in self.parameters if n in v) for v in (flat.low, flat.high))
            held = "; the prior decides" if self.prior_ else ""
            found.append(
                f"{' and '.join(flat.letters)} not identified by these runs: from ({next(ends)}) to ({next(ends)}) the "
                f"fit changes by less than the noise{held}. Add runs that differ more in {', '.join(self.variables)}, "
                f"or borrow from another family: fixed={{{flat.letters[-1]!r}: …}}."
            )
        return [*rising(self), *found]

    def _at_floor(self) -> bool:
        """Whether the irreducible loss was pushed to zero."""
        return False

    @abstractmethod
    def _material(self, theta: np.ndarray) -> np.ndarray:
        """For each coordinate of theta, the change that matters."""

    def _coordinates(self) -> tuple[int, ...]:
        """For each letter, the coordinate of theta that carries it."""
        return tuple(range(len(self.parameters)))

    def _hold(self, other: BootstrapLaw) -> None:
        """Take over what another fit decided about the law's form."""

    @property
    def _likelihood(self) -> str:
        return "huber" if self.objective == "bayes" else self.objective

    def _counts(self, n: int, seed: int) -> np.ndarray:
        """Weights (n, rows) of `n` resamples of whole runs; the same for the same seed."""
        group = run_index(self._columns)
        runs = int(group.max()) + 1
        drawn = np.random.default_rng(seed).integers(0, runs, (n, runs)) + runs * np.arange(n)[:, None]
        drawn = np.bincount(drawn.ravel(), minlength=n * runs).reshape(n, runs)
        return drawn[:, group] * self._row_weights(self._columns)

    def _resample(self, n: int, seed: int) -> np.ndarray:
        """Theta (n, p) refitted to smooth resamples of whole runs: every run keeps a weight, drawn from an exponential
        distribution (Rubin's Bayesian bootstrap), so that few runs never leave a parameter without data; the prior's
        centre is drawn too.
        """
        problem, _, theta = self._fitted
        rng = np.random.default_rng(seed)
        group = self._designs
        if n * len(group) > AT_ONCE:
            return self._normal_draws(n, rng, group)
        drawn = rng.exponential(size=(n, int(group.max()) + 1))
        drawn /= drawn.mean(1, keepdims=True)
        weight = drawn[:, group] * self._row_weights(self._columns)
        if problem.precision is None or problem.centre is None:
            return resampled(replace(problem, weight=weight), theta, self._likelihood)
        bare, _ = self._build(self._columns)
        assert bare.precision is not None
        sd = np.where(bare.precision > 0, 1 / np.sqrt(np.maximum(bare.precision, 1e-300)), 0.0)
        centre = problem.centre + sd * rng.normal(size=(n, len(theta)))
        return resampled(replace(problem, weight=weight, centre=centre), theta, self._likelihood)

    def _normal_draws(self, n: int, rng: np.random.Generator, run: np.ndarray) -> np.ndarray:
        """Theta (n, p) for tables too large to refit: normal about the optimum, the covariance H⁻¹·G·H⁻¹ with G the
        squares of each run's own score, so that rows of one run count together.
        """
        problem, _, theta = self._fitted
        v, r = problem.slopes(theta), self._residuals(self._columns, self.params_)
        variance = float(np.average(r**2, weights=problem.weight))
        score = np.stack([np.bincount(run, problem.weight * r * row) for row in v]) / variance
        curvature, spread = (v * problem.weight) @ v.T / variance, score @ score.T
        bare, _ = self._build(self._columns)
        if bare.precision is not None:
            curvature, spread = curvature + np.diag(bare.precision), spread + np.diag(bare.precision)
        free = np.flatnonzero(problem.high > problem.low)
        inverse = np.linalg.pinv(curvature[np.ix_(free, free)], hermitian=True)
        covariance = inverse @ spread[np.ix_(free, free)] @ inverse
        drawn = np.repeat(theta[None], n, 0)
        drawn[:, free] += rng.multivariate_normal(np.zeros(len(free)), covariance, n, method="eigh")
        return np.clip(drawn, problem.low, problem.high)

    @cached_property
    def _draws(self) -> dict[str, Any]:
        params = _finite(self._named(self._resample(DRAWS, SEED), self._fitted[1]))
        turn = (0.5 + np.arange(DRAWS) * 0.6180339887498949) % 1
        chi = np.random.default_rng(SEED + 1).chisquare(self._local.dof, DRAWS) / self._local.dof
        tau, length = self._misfit.draws(turn)
        tau = 0.0 * tau if self.exact else tau
        return {"params": params, "sigma": self._local.sigma / np.sqrt(chi), "tau": tau, "length": length}

    @cached_property
    def _local(self) -> Linearised:
        """The fit near its optimum."""
        columns = self._columns
        problem, origin = self._build(columns)
        theta = np.clip(self._internal(self.params_, origin)[0], problem.low, problem.high)
        slopes = problem.slopes(theta) * (problem.high > problem.low)[:, None]
        run = self._designs
        sigma, dof = run_noise(problem, slopes, self._residuals(columns, self.params_), run, self._likelihood)
        spread = covariance(problem, slopes, sigma, run, self._likelihood)
        return Linearised(theta, origin, slopes, spread, influence(problem, slopes, sigma), sigma, dof)

    @cached_property
    def _misfit(self) -> Misfit:
        """How far the truth leaves the law, by the residuals of its runs."""
        columns, local = self._columns, self._local
        residual = self._residuals(columns, self.params_)
        return Misfit.of(self._logs(columns), local.slopes, local.influence, residual, self._designs)

    @cached_property
    def _designs(self) -> np.ndarray:
        """The design (n,) of each row: runs that end at one point are seeds, or copies, of one.

        They share more than the law: data order, a learning rate tuned for that size, a digitised figure. Taken for
        independent, two seeds that agree would halve the variance of what they have in common.
        """
        run, points = run_index(self._columns), self._logs(self._columns)
        last = np.lexsort((points.sum(0), run))[np.cumsum(np.bincount(run)) - 1]
        found: np.ndarray = np.unique(np.round(points[:, last], 3), axis=1, return_inverse=True)[1].ravel()[run]
        return found

    def _logs(self, columns: Columns) -> np.ndarray:
        """Logarithms (v, n) of the law's variables."""
        return np.log(np.stack([columns[c] for c in self.columns.values()]))

    def _residuals(self, columns: Columns, params: dict[str, float]) -> np.ndarray:
        at = [columns[c] for c in self.columns.values()]
        return np.log(columns["loss"]) - np.log(self.loss(*at, **params))

    def _slopes_at(self, points: Columns) -> np.ndarray:
        """d log L / d theta (p, n) at other points."""
        one = np.ones(len(next(iter(points.values()))))
        return self._problem(points | {"loss": one}, one, self._local.origin).slopes(self._local.theta)

    def _interval(self, at: dict[str, np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
        draws, columns = self._draws, {column: at[name] for name, column in self.columns.items()}

        def mixture(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            points = {name: v[rows] for name, v in columns.items()}
            slopes = self._slopes_at(points)
            expected = np.sqrt(np.maximum(np.einsum("pn,pq,qn->n", slopes, self._local.covariance, slopes), 0.0))
            miss = self._misfit.spread(self._logs(points), slopes)
            here = [v[:, None] for v in points.values()]
            centre, own = np.log(self.loss(*here, **draws["params"])), np.log(self.loss(*here, **self.params_))
            scatter = centre.std(1)
            wider = np.clip(expected / np.where(scatter > 0, scatter, 1.0), 1.0, WIDEST)
            centre = own + wider[:, None] * (centre - own)
            return centre, np.sqrt(draws["sigma"] ** 2 + draws["tau"] ** 2 * miss[draws["length"]].T)

        low, high = mixture_intervals(mixture, len(next(iter(at.values()))), DRAWS, level)
        return np.exp(low), np.exp(high)

    def interval_data(self) -> IntervalData:
        """Refitted parameters, their widening, noise and misfit: see `IntervalData`."""
        self._check_fitted()
        local, draws = self._local, self._draws

        def slopes(*at: float) -> np.ndarray:
            return self._slopes_at({c: np.array([value]) for c, value in zip(self.columns.values(), at, strict=True)})

        nearby = Neighbourhood(
            self.params_, local.theta, local.origin, local.covariance, WIDEST, slopes, self._misfit, draws["length"]
        )
        return IntervalData(draws["params"], draws["sigma"], draws["tau"], dict(self.range_), neighbourhood=nearby)

    def _set(self, columns: Columns, params: dict[str, float], value: float) -> None:
        super()._set(columns, params, value)
        for name in ("_draws", "_local", "_misfit", "_designs"):
            self.__dict__.pop(name, None)


def _finite(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draws whose letters overflow (a scale to the power of 1/exponent, the exponent near 0) replaced by others."""
    good = np.flatnonzero(np.all([np.isfinite(v) for v in params.values()], 0))
    if not len(good):
        raise FitError("Every resample of the runs leaves a parameter without a finite value. Add other runs.")
    count = len(next(iter(params.values())))
    return params if len(good) == count else {name: v[good[np.arange(count) % len(good)]] for name, v in params.items()}
