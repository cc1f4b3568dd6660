"""Where the score of a checkpoint will lie: parameters, the noise of one score, drift below the fitted losses.

Everything is drawn, so that the interval of a loss that is itself predicted passes through the law.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import expit, ndtri

from .answers import plain
from .base import ExtrapolationWarning
from .intervals import RollingErrors, drift_quantiles
from .prediction import ScorePrediction
from .selection import Columns, run_index

DRAWS = 2000
EDGE = 1e-6  #: scores of the likelihood stay this far from 0 and 1
FLATTEST = 1e-3
DRIFT, DRIFT_WIDTH, DRIFT_UNIT = 0.003, 1.0, 5.0  #: prior of the drift, in fifths of a score
ORIGINS = (0.4, 0.55, 0.7)
CEILINGS = 16
END = 0.25  #: share of the rows, those of lowest loss, whose common error is carried on


class ScoreInterval:
    """The interval of `DownstreamLaw`."""

    form: str
    ceiling: float | None
    params_: dict[str, float]
    range_: dict[str, tuple[float, float]]
    _columns: Columns
    _above: Any
    _estimate: Any

    def _slopes(self, loss: np.ndarray, params: Mapping[str, float]) -> np.ndarray:
        """d score / d theta (2, n): theta = (k·L0, k) at a given ceiling, or (intercept, slope)."""
        if self.form == "linear":
            return np.stack([np.ones_like(loss), loss])
        p = expit(params["k"] * (params["L0"] - loss))
        rise = (params["ceiling"] - params["chance"]) * p * (1 - p)
        return np.stack([rise, -rise * loss])

    def _spread(self, columns: Columns, params: Mapping[str, float]) -> tuple[np.ndarray, float, float]:
        """Covariance of theta, the size of the noise beside the binomial's (or its variance), degrees of freedom."""
        loss = columns["loss"]
        weight = columns.get("weight", np.ones_like(loss))
        weight = weight / weight.mean()
        mean = np.clip(mean_score(self.form, loss, params), EDGE, 1 - EDGE)
        residual = columns["score"] - mean
        unit = self._unit(mean, columns.get("items"))
        counted = independent(columns, residual / np.sqrt(unit))
        free = 3.0 if self.form == "sigmoid" and self.ceiling is None else 2.0
        dof = max(counted.sum() - free, 1.0)
        size = float((weight * residual**2 / unit).mean() * len(loss) / max(len(loss) - free, 1.0))
        size = max(size, 1.0) if "items" in columns else max(size, 1e-6)
        slopes = self._slopes(loss, params)
        prior = np.full(2, 0.2 if self.form == "sigmoid" else 1e-2)
        information = (slopes * (weight * counted / unit / size)) @ slopes.T + np.diag(prior**2)
        return np.linalg.inv(information), size, dof

    def _unit(self, mean: np.ndarray, items: np.ndarray | None) -> np.ndarray:
        """The noise's variance up to its size: that of a share of `items` questions; the same everywhere for a line."""
        if self.form == "linear":
            return np.ones_like(mean) if items is None else mean * (1 - mean) / items
        return np.maximum(mean * (1 - mean), 1e-3) / (1.0 if items is None else items)

    @cached_property
    def _draws(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """Parameters, size of the noise, drift, standard normal numbers."""
        p, rng = self.params_, np.random.default_rng(1)
        _, size, dof = self._spread(self._columns, p)
        chi = rng.chisquare(dof, DRAWS) / dof
        share, fits = self._ceilings(size)
        pick = np.repeat(np.arange(len(share)), np.diff(np.rint(np.cumsum([0.0, *share]) * DRAWS).astype(int)))
        pick = rng.permutation(pick)
        root = np.array([np.linalg.cholesky(self._spread(self._columns, fit)[0]) for fit in fits])
        away = np.einsum("mij,mj->mi", root[pick], rng.normal(size=(DRAWS, 2))) / np.sqrt(chi)[:, None]
        named = {name: np.array([fit[name] for fit in fits])[pick] for name in p}
        if self.form == "linear":
            named |= {"intercept": named["intercept"] + away[:, 0], "slope": named["slope"] + away[:, 1]}
        else:
            k = np.maximum(named["k"] + away[:, 1], FLATTEST)
            named |= {"k": k, "L0": (named["k"] * named["L0"] + away[:, 0]) / k}
        turn = rng.permutation((0.5 + np.arange(DRAWS)) / DRAWS)
        tau = DRIFT_UNIT * drift_quantiles(self._rolling(), turn, DRIFT, DRIFT_WIDTH, 1.0)
        return named, size / chi, tau, rng.normal(size=DRAWS)

    def _ceilings(self, size: float) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Fits at ceilings from the highest scores to 1 and the likelihood of each; the one fit where it is stated."""
        p, columns = self.params_, self._columns
        if self.ceiling is not None:
            return np.ones(1), [p]
        least = max(float(np.quantile(columns["score"], 0.9)), p["chance"] + 0.02)
        fits = [self._estimate(columns, p["chance"], top) for top in np.linspace(min(least, 0.99), 1.0, CEILINGS)]
        misfit = []
        for fit in fits:
            mean = np.clip(mean_score(self.form, columns["loss"], fit), EDGE, 1 - EDGE)
            z = (columns["score"] - mean) / np.sqrt(self._unit(mean, columns.get("items")) * size)
            misfit.append(float((independent(columns, z) * z * z).sum()))
        share = np.exp(-0.5 * (np.array(misfit) - min(misfit)))
        share[-1] *= CEILINGS - 1  # before the runs, a score that goes up to 1 is as likely as all that level off
        return share / share.sum(), fits

    def _rolling(self) -> RollingErrors:
        """Refit on the higher losses, score the lower ones: one observation a share of the fitted range."""
        columns, parts = self._columns, []
        top, bottom = columns["loss"].max(), columns["loss"].min()
        for share in ORIGINS:
            cut = top - share * (top - bottom)
            early = columns["loss"] >= cut
            part = {n: v[early] for n, v in columns.items()}
            late = {n: v[~early] for n, v in columns.items()}
            above = part["score"] > self.params_["chance"] + self._above(
                part, self.params_["chance"], self.params_["ceiling"]
            )
            if above.sum() < 4 or not len(late["loss"]) or np.ptp(part["loss"]) <= 0:
                continue
            params = self._estimate(part, self.params_["chance"])
            covariance, size, _ = self._spread(part, params)
            mean = mean_score(self.form, late["loss"], params)
            slope = self._slopes(late["loss"], params).mean(1)
            unit = self._unit(np.clip(mean, EDGE, 1 - EDGE), late.get("items"))
            rows = max(independent(late, late["score"] - mean).sum(), 1.0)
            deviation = np.sqrt(slope @ covariance @ slope + size * unit.mean() / rows)
            distance = (cut - late["loss"]).mean() / (top - cut)
            parts.append([(late["score"] - mean).mean() / DRIFT_UNIT, deviation / DRIFT_UNIT, distance])
        return RollingErrors(*np.array(parts).T) if parts else RollingErrors(*np.empty((3, 0)))

    def _predicted(self, point: np.ndarray, draws: np.ndarray, level: float, at: Mapping[str, Any]) -> ScorePrediction:
        """The interval from draws (points, DRAWS) of each point's loss."""
        params, size, tau, normal = self._draws
        low, high = self.range_["loss"]
        width = high - low
        items = self._columns.get("items")
        typical = None if items is None else np.full(DRAWS, float(np.median(items)))
        edge = np.quantile(self._columns["loss"], END)
        at_end = self._columns["loss"] <= edge
        own = (self._columns["score"] - mean_score(self.form, self._columns["loss"], self.params_))[at_end]
        misfit = float(own.mean())  # a form that leaves the rows at the end of its range goes on leaving them
        score = mean_score(self.form, point.ravel(), self.params_)
        ends = []
        for row in draws:
            mean = mean_score(self.form, row, params)
            outside = np.maximum(np.maximum(low - row, row - high), 0.0) / width
            variance = size * self._unit(np.clip(mean, EDGE, 1 - EDGE), typical) + (tau * outside) ** 2
            variance = variance + np.where(row < edge, misfit**2, 0.0)
            drawn = np.clip(mean + np.sqrt(variance) * normal, 0.0, 1.0)
            ends.append(np.quantile(drawn, (0.5 * (1 - level), 0.5 * (1 + level))))
        bounds = np.array(ends).T
        far = np.maximum(low - point, 0.0) / width
        if (far > 1).any():
            warnings.warn(
                f"The loss lies {far.max():.2g} ranges below the lowest fitted ({low:.4g}): there the score rests on "
                "the law's form. Evaluate larger models.",
                ExtrapolationWarning,
                stacklevel=3,
            )

        def as_given(value: np.ndarray) -> Any:
            return plain(np.asarray(value).reshape(point.shape))

        return ScorePrediction(
            as_given(score), as_given(np.minimum(bounds[0], score)), as_given(np.maximum(bounds[1], score)), level,
            as_given(far), as_given(point), dict(at),
        )  # fmt: skip


def mean_score(form: str, loss: Any, p: Mapping[str, Any]) -> np.ndarray:
    """The score at losses: sigmoid, or a line held between chance and ceiling."""
    loss = np.asarray(loss, float)
    if form == "linear":
        return np.clip(p["intercept"] + p["slope"] * loss, p["chance"], p["ceiling"])
    return p["chance"] + (p["ceiling"] - p["chance"]) * expit(p["k"] * (p["L0"] - loss))


def standard_normal() -> np.ndarray:
    """The standard normal numbers that draw the loss."""
    return np.random.default_rng(0).permutation(ndtri((0.5 + np.arange(DRAWS)) / DRAWS))


def row_weights(columns: Columns) -> np.ndarray:
    """Weights of rows, mean 1: those given times the number of questions where known."""
    weight = columns.get("weight", np.ones_like(columns["loss"])) * columns.get("items", 1.0)
    return weight / weight.mean()


def independent(columns: Columns, residual: np.ndarray) -> np.ndarray:
    """For each row, how much of an independent observation it is: residuals of one run may err together."""
    run = run_index(columns)
    counts = np.bincount(run)
    total = float((residual**2).mean()) or 1.0
    sums, squares = np.bincount(run, residual), np.bincount(run, residual**2)
    pairs = float((counts * (counts - 1)).sum())
    together = float((sums**2 - squares).sum() / pairs / total) if pairs else 0.0
    order = np.lexsort((columns.get("step", -columns["loss"]), run))
    r, same = residual[order], np.diff(run[order]) == 0
    next_to = float((r[1:] * r[:-1])[same].mean() / total) if same.any() else 0.0
    near = float(np.clip(next_to, 0.0, 0.95))
    share = np.minimum(1 / (1 + (counts - 1) * np.clip(together, 0.0, 1.0)), (1 - near) / (1 + near))
    return np.maximum(share, 1 / counts)[run]
