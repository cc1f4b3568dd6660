"""Intervals for laws in several variables: resample runs, refit, add the noise of one run and the drift of the law."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from .fitting import resampled
from .intervals import DRIFT_POWER, RollingErrors, drift_quantiles, mixture_interval
from .regression import RegressionLaw
from .selection import run_index

DRAWS, SEED = 400, 0
ORIGINS = (0.4, 0.55, 0.7, 0.85)


class BootstrapLaw(RegressionLaw):
    """A regression law whose `_interval` comes from refits to resampled runs."""

    def bootstrap(self, n: int = 4000, seed: int = 0) -> dict[str, np.ndarray]:
        """Parameters refitted to `n` resamples of the runs: {letter: (n,)}; rows that share a `run_id` go together."""
        self._check_fitted()
        problem, origin, theta = self._fitted
        found = resampled(replace(problem, weight=self._counts(n, seed)), theta, self._likelihood)
        return self._named(found, origin)

    @property
    def _likelihood(self) -> str:
        return "huber" if self.objective == "bayes" else self.objective

    def _counts(self, n: int, seed: int) -> np.ndarray:
        """Weights (n, rows) of `n` resamples of whole runs; the same for the same seed."""
        group = run_index(self._columns)
        runs = int(group.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), n)
        return drawn[:, group] * self._row_weights(self._columns)

    def _resample(self, n: int, seed: int) -> np.ndarray:
        """Theta (n, p) refitted to smooth resamples of whole runs: every run keeps a weight, drawn from an exponential
        distribution (Rubin's Bayesian bootstrap), so that few runs never leave a parameter without data; the prior's
        centre is drawn too.
        """
        problem, _, theta = self._fitted
        rng = np.random.default_rng(seed)
        group = run_index(self._columns)
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

    @cached_property
    def _draws(self) -> dict[str, Any]:
        params = self._named(self._resample(DRAWS, SEED), self._fitted[1])
        turn = (0.5 + np.arange(DRAWS) * 0.6180339887498949) % 1
        group = run_index(self._columns)
        r = self._residuals(self._columns, self.params_)
        dof = max(int(group.max()) + 1 - len(self.params_), 1)
        chi = np.random.default_rng(SEED + 1).chisquare(dof, DRAWS) / dof
        sigma = np.sqrt(np.mean(r**2) * len(r) / max(len(r) - len(self.params_), 1) / chi)
        return {"params": params, "sigma": sigma, "tau": drift_quantiles(self._rolling(), turn)}

    def _residuals(self, columns: dict[str, np.ndarray], params: dict[str, float]) -> np.ndarray:
        at = [columns[c] for c in self.columns.values()]
        return np.log(columns["loss"]) - np.log(self.loss(*at, *params.values()))

    def _rolling(self) -> RollingErrors:
        """Refit on the runs of smaller N·D, score on the larger; one observation for each origin and distinct N."""
        at = {name: self._columns[c] for name, c in self.columns.items()}
        order = np.argsort(sum(np.log(v) for v in at.values()), kind="stable")
        parts = []
        for share in ORIGINS:
            k = int(share * len(order))
            small, large = ({n: v[rows] for n, v in self._columns.items()} for rows in (order[:k], order[k:]))
            try:
                params, _ = self._estimate(small)
            except ValueError:
                continue
            e = self._residuals(large, params)
            noise = self._residuals(small, params).std() * np.sqrt(1 + len(params) / k)
            reach = [np.log(np.maximum(large[c] / small[c].max(), 1.0)) for c in self.columns.values()]
            distance = np.max(reach, 0)
            for level in np.unique(large[next(iter(self.columns.values()))]):
                own = large[next(iter(self.columns.values()))] == level
                parts.append((np.mean(e[own]), noise, np.mean(distance[own])))
        return RollingErrors(*np.array(parts).T) if parts else RollingErrors(*np.empty((3, 0)))

    def _interval(self, at: dict[str, np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
        draws = self._draws
        ends = []
        for i in range(len(next(iter(at.values())))):
            point = [v[i] for v in at.values()]
            centre = np.log(self.loss(*point, *draws["params"].values()))
            outside = max(
                max(np.log(x / hi), np.log(lo / x), 0.0)
                for x, (lo, hi) in zip(point, self.range_.values(), strict=True)
            )
            variance = draws["sigma"] ** 2 + draws["tau"] ** 2 * outside ** (2 * DRIFT_POWER)
            ends.append(mixture_interval(centre, np.sqrt(variance), level))
        low, high = np.exp(np.array(ends)).T
        return low, high

    def _set(self, columns: dict[str, np.ndarray], params: dict[str, float], value: float) -> None:
        super()._set(columns, params, value)
        self.__dict__.pop("_draws", None)
