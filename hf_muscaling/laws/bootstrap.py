"""Intervals for laws in several variables: resample runs, refit, add the noise of one run and the drift of the law."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from .base import ScalingLaw
from .intervals import DRIFT_POWER, RollingErrors, drift_quantiles, mixture_interval

DRAWS, SEED = 400, 0
ORIGINS = (0.4, 0.55, 0.7, 0.85)


def log_covariates(x: np.ndarray) -> np.ndarray:
    """log x about its mean, so that units do not matter."""
    log = np.log(x)
    return log - log.mean()


class BootstrapLaw(ScalingLaw):
    """A law whose `_interval` comes from refits to resampled runs; a law adds `_estimate`, `_resample` and `_named`."""

    labels: ClassVar[tuple[str, ...]] = ("run_id",)

    def _resample(self, n: int, seed: int) -> np.ndarray:
        """Internal parameters (n, p) refitted to `n` resamples of whole runs."""
        raise NotImplementedError

    def _named(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """The paper's letters → (m,), from internal parameters (m, p)."""
        raise NotImplementedError

    def bootstrap(self, n: int = 4000, seed: int = 0) -> dict[str, np.ndarray]:
        """Parameters refitted to `n` resamples of the runs: {letter: (n,)}; rows that share a `run_id` go together."""
        self._check_fitted()
        return self._named(self._resample(n, seed))

    def _weights(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        weight = columns.get("weight")
        return np.ones_like(columns["loss"]) if weight is None else weight / weight.mean()

    def _groups(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Which rows belong to one run: those that share a `run_id`, otherwise each row alone."""
        if "run_id" not in columns:
            return np.arange(len(columns["loss"]))
        return np.unique(columns["run_id"].astype(str), return_inverse=True)[1]

    def _counts(self, n: int, seed: int) -> np.ndarray:
        """Weights (n, rows) of `n` resamples of whole runs; the same for the same seed."""
        group = self._groups(self._columns)
        runs = int(group.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), n)
        return drawn[:, group] * self._weights(self._columns)

    @cached_property
    def _draws(self) -> dict[str, Any]:
        params = self._named(self._resample(DRAWS, SEED))
        turn = (0.5 + np.arange(DRAWS) * 0.6180339887498949) % 1
        group = self._groups(self._columns)
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
        for name in ("_draws", "_theta"):
            self.__dict__.pop(name, None)
