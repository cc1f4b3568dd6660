"""Intervals for laws in several variables: resampled parameters, the noise of one run, and the drift of the law.

All relative to the loss:

* parameters: every run (all its checkpoints together) gets a random weight, the law is refitted; where the linearised
  fit expects more scatter than the refits show, they are widened to it (refits reuse the residuals, which are smaller
  than the errors once five parameters have been fitted to few runs);
* sigma, the noise of the target run: from the residuals near the large end, with the degrees of freedom they have left
  (`laws.noise`);
* drift: d beyond the fitted range (log distance, the largest over the variables) the truth leaves the law by
  N(0, tau² d²). tau is calibrated by rolling origin (refit without the largest models, score them) under a log-normal
  prior centred at 0.3 sigma, at least 0.7 %, within a factor e.

How it was settled, and what it covers: `ChinchillaLaw`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigurationError, FitError
from .base import check_level
from .caveats import rising
from .fitting import resampled
from .interval_data import IntervalData, Widening
from .intervals import RollingErrors, drift_quantiles, mixture_interval
from .noise import covariance, run_noise
from .problem import Problem
from .regression import Origin, RegressionLaw
from .selection import Columns, run_index
from .uncertainty import flat_direction, profile

DRAWS, SEED = 400, 0
AT_ONCE = 2e7  #: weights (resamples × rows) held at a time
ORIGINS = (0.5, 0.65, 0.8)  #: shares of the sizes kept
HELD_GROUPS = 3
DRIFT, DRIFT_RANGE, DRIFT_WIDTH, DRIFT_POWER = 0.3, (7e-3, 0.02), 1.0, 1.0
OVERLAP = 0.5  #: what a rolling-origin error counts: the origins share runs
WIDEST = 4.0  #: most that the scatter of refits is widened


class BootstrapLaw(RegressionLaw):
    """A regression law whose `_interval` comes from refits to resampled runs.

    `drifts = False` in a subclass takes the law for exact: right for tables made from it, too sure for measured runs.
    """

    drifts: ClassVar[bool] = True

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
        group = run_index(self._columns)
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
        sigma, dof = self._noise(self._columns, self.params_)
        chi = np.random.default_rng(SEED + 1).chisquare(dof, DRAWS) / dof
        tau = np.zeros(DRAWS)
        if self.drifts:
            centre = float(np.clip(DRIFT * sigma, *DRIFT_RANGE))
            tau = drift_quantiles(self._rolling(), turn, centre, DRIFT_WIDTH, DRIFT_POWER, OVERLAP)
        return {"params": params, "sigma": sigma / np.sqrt(chi), "tau": tau}

    def _noise(self, columns: Columns, params: dict[str, float]) -> tuple[float, float]:
        """Standard deviation of one run's log loss about the law, near the large end, and its degrees of freedom."""
        problem, _, slopes = self._linear(columns, params)
        return run_noise(problem, slopes, self._residuals(columns, params), run_index(columns), self._likelihood)

    def _linear(self, columns: Columns, params: dict[str, float]) -> tuple[Problem, Origin, np.ndarray]:
        """The regression of columns at given parameters, and d log L / d theta (p, n), 0 for what is held fixed."""
        problem, origin = self._build(columns)
        theta = np.clip(self._internal(params, origin)[0], problem.low, problem.high)
        return problem, origin, problem.slopes(theta) * (problem.high > problem.low)[:, None]

    def _residuals(self, columns: Columns, params: dict[str, float]) -> np.ndarray:
        at = [columns[c] for c in self.columns.values()]
        return np.log(columns["loss"]) - np.log(self.loss(*at, **params))

    def _rolling(self) -> RollingErrors:
        """Refit without the largest models, score them: one observation for each origin and held-out size.

        With fewer than 5 sizes, or a law that has none, the rows of largest compute are held out instead.
        """
        columns = self._columns
        first = next(iter(self.columns.values()))
        ladder = np.log(columns[first])
        if len(np.unique(ladder)) < 5:
            ladder = -self._below(columns)
        levels = np.unique(ladder)
        parts = []
        for cut in np.unique([levels[-2], *np.quantile(levels, ORIGINS)]):
            small, large = ({n: v[keep] for n, v in columns.items()} for keep in (ladder <= cut, ladder > cut))
            try:
                params, _ = self._refit(small)
            except FitError:
                continue
            e = self._residuals(large, params)
            reach = self._outside(large, small)
            spread, slopes, sigma, dof = self._forecast(small, params, large)
            late, run = self._row_weights(large), run_index(large)
            at = np.linspace(cut, levels[-1] + 1e-9, HELD_GROUPS + 1)
            group = np.searchsorted(at, ladder[ladder > cut], side="left")
            for level in np.unique(group):
                own = group == level
                w = late[own] / late[own].sum()
                slope, by_run = slopes[:, own] @ w, np.bincount(run[own], w)
                variance = slope @ spread @ slope + sigma**2 * (by_run**2).sum()
                parts.append([e[own] @ w, np.sqrt(variance), reach[own] @ w, dof])
        return RollingErrors(*np.array(parts).T) if parts else RollingErrors(*np.empty((4, 0)))

    def _outside(self, points: Columns, data: Columns) -> np.ndarray:
        """Log distance of points outside the data's range, the largest over the variables."""
        found = [
            np.maximum(np.log(points[c] / data[c].max()), np.log(data[c].min() / points[c]))
            for c in self.columns.values()
        ]
        return np.maximum(np.max(found, 0), 0.0)

    def _forecast(
        self, columns: Columns, params: dict[str, float], points: Columns
    ) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Covariance (p, p) of the fitted theta, d log L / d theta at points (p, n), the noise of one run and its
        degrees of freedom.
        """
        problem, origin, slopes = self._linear(columns, params)
        run = run_index(columns)
        sigma, dof = run_noise(problem, slopes, self._residuals(columns, params), run, self._likelihood)
        theta = np.clip(self._internal(params, origin)[0], problem.low, problem.high)
        there = self._problem(points, np.ones_like(points["loss"]), origin).slopes(theta)
        return covariance(problem, slopes, sigma, run, self._likelihood), there, sigma, dof

    def _interval(self, at: dict[str, np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
        draws = self._draws
        points = {column: at[name] for name, column in self.columns.items()}
        outside = self._outside(points, self._columns)
        spread, slopes, *_ = self._forecast(self._columns, self.params_, points | {"loss": np.ones(len(outside))})
        expected = np.sqrt(np.maximum(np.einsum("pn,pq,qn->n", slopes, spread, slopes), 0.0))
        ends = []
        for i in range(len(outside)):
            here = [v[i] for v in points.values()]
            centre, own = np.log(self.loss(*here, **draws["params"])), float(np.log(self.loss(*here, **self.params_)))
            scatter = float(centre.std())
            if scatter > 0:
                centre = own + np.clip(expected[i] / scatter, 1.0, WIDEST) * (centre - own)
            variance = draws["sigma"] ** 2 + draws["tau"] ** 2 * outside[i] ** (2 * DRIFT_POWER)
            ends.append(mixture_interval(centre, np.sqrt(variance), level))
        low, high = np.exp(np.array(ends)).T
        return low, high

    def interval_data(self) -> IntervalData:
        """Refitted parameters, their widening, noise and drift: see `IntervalData`."""
        self._check_fitted()
        problem, origin = self._build(self._columns)
        theta = np.clip(self._internal(self.params_, origin)[0], problem.low, problem.high)
        covariance = self._forecast(self._columns, self.params_, self._columns)[0]

        def slopes(*at: float) -> np.ndarray:
            point = {column: np.array([value]) for column, value in zip(self.columns.values(), at, strict=True)}
            one = np.ones(1)
            return self._problem(point | {"loss": one}, one, origin).slopes(theta)[:, 0]

        widening = Widening(self.params_, theta, origin, covariance, WIDEST, slopes)
        draws = self._draws
        return IntervalData(
            draws["params"], draws["sigma"], None, draws["tau"], DRIFT_POWER, dict(self.range_), widening
        )

    def _set(self, columns: Columns, params: dict[str, float], value: float) -> None:
        super()._set(columns, params, value)
        self.__dict__.pop("_draws", None)


def _finite(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draws whose letters overflow (a scale to the power of 1/exponent, the exponent near 0) replaced by others."""
    good = np.flatnonzero(np.all([np.isfinite(v) for v in params.values()], 0))
    if not len(good):
        raise FitError("Every resample of the runs leaves a parameter without a finite value. Add other runs.")
    count = len(next(iter(params.values())))
    return params if len(good) == count else {name: v[good[np.arange(count) % len(good)]] for name, v in params.items()}
