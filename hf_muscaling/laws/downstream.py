"""From loss to task score, the second stage of FLP."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit, ndtri
from scipy.stats import spearmanr
from scipy.stats import t as student

from ..errors import ConfigurationError, FitError
from . import downstream_store
from .answers import plain, positive
from .base import ExtrapolationWarning, IdentificationWarning, check_level
from .downstream_interval import (
    DRAWS,
    EDGE,
    FLATTEST,
    ScoreInterval,
    independent,
    mean_score,
    row_weights,
    standard_normal,
)
from .prediction import Prediction, ScoreEvaluation, ScorePrediction
from .selection import Columns
from .table import _columns, read_table, run_labels

FORMS = ("sigmoid", "linear")
MARGIN = 0.05  #: of the way from chance to ceiling: what counts as above chance when the questions are not counted
STEEPEST = 1e3


class DownstreamLaw(ScoreInterval):
    """Task score as a function of loss: `score = chance + (ceiling - chance)/(1 + exp(k·(L - L0)))`, or a line.

    * `form="sigmoid"` (default) is fitted to all rows by quasi-likelihood (binomial variance, its size estimated);
      parameters `k` > 0 and `L0`, the loss half-way up;
    * `form="linear"`: `score = intercept + slope·L` by weighted least squares, FLP's second stage; rows that are not
      above chance (two standard errors where `items` says how many questions there are, else 5 % of the way to the
      ceiling, this project's choice) are left out, and predictions stay between chance and ceiling. It warns when the
      scores bend: beyond them a line then misleads, and its interval does not know.

    `chance` is the score of guessing (0.25 for four answers): a number, or else the column `chance` of the table, or
    else 0. `ceiling` is the highest score; None (default) estimates it, and the interval averages over what the scores
    leave open (a line takes 1). Stating 1.0 narrows the interval where scores are still low, wrongly so for a task that
    levels off below. It bounds the law and not what is measured: an interval, which holds measured scores, may pass it.

    `fit(table)` takes checkpoints of one task: columns `loss` and `score` (shares of 1); `items` (questions), `run_id`,
    `step`, `weight` are used when present. The interval has the parameters (rows of a run count by their correlation),
    the noise of one score and drift below the fitted losses, calibrated by ordered hold-out (fit at high loss, score
    at low loss). On synthetic truth (4 runs of 10 checkpoints, 1000 questions, 40 repeats) the 90 % interval held 86 to
    98 % of scores up to 0.45 nats below the fitted losses, whether they rise to 1 or level off at 0.85; with
    `ceiling=1.0` stated and 0.85 true, none at the far end.

    Source: Chen et al. 2024 (FLP), Scaling Laws for Predicting Downstream Performance in LLMs. Raises `FitError` for
    scores outside [0, 1], several tasks, fewer than 4 usable rows; warns `IdentificationWarning` when the score does
    not follow the loss or the scores never leave chance.

    >>> loss = np.linspace(3.6, 2.6, 12)
    >>> table = {"loss": loss, "score": 0.25 + 0.75 / (1 + np.exp(4 * (loss - 2.8)))}
    >>> law = DownstreamLaw(chance=0.25).fit(table)
    >>> {name: round(value, 3) for name, value in law.params_.items()}
    {'chance': 0.25, 'ceiling': 1.0, 'k': 4.0, 'L0': 2.8}
    >>> round(law.predict(loss=2.5).score, 3), round(law.solve(score=0.625), 3)
    (0.826, 2.8)

    With a first stage, whose interval is carried through:

    >>> from hf_muscaling.laws import PowerLaw, TwoStage
    >>> sizes = np.array([1e7, 2e7, 4e7, 8e7, 16e7])
    >>> first = PowerLaw().fit({"N": sizes, "loss": 2 + 30 * sizes**-0.2})
    >>> p = TwoStage(first, law).predict(N=1e9, level=0.9)
    >>> bool(p.low < p.score < p.high)
    True
    """

    equations: ClassVar[dict[str, str]] = {
        "sigmoid": "score = chance + (ceiling - chance)/(1 + exp(k·(L - L0)))",
        "linear": "score = intercept + slope·L, between chance and ceiling",
    }
    units: ClassVar[dict[str, str]] = {"loss": "nats per token", "score": "share of 1"}
    params_: dict[str, float]
    objective_value_: float
    range_: dict[str, tuple[float, float]]
    selection_: str

    def __init__(self, form: str = "sigmoid", chance: float | None = None, ceiling: float | None = None):
        if form not in FORMS:
            raise ConfigurationError(f"form={form!r} is not known. Choose one of: {', '.join(FORMS)}.")
        for name, value in (("chance", chance), ("ceiling", ceiling)):
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value <= 1):
                raise ConfigurationError(f"{name}={value!r} must be a share of 1: 0.25 for one answer in four.")
        _check_order(chance or 0.0, 1.0 if ceiling is None else ceiling)
        self.form = form
        self.chance = None if chance is None else float(chance)
        self.ceiling = None if ceiling is None else float(ceiling)

    # -- fit and use ---------------------------------------------------------------------------------------------------

    @property
    def equation_text(self) -> str:
        """The equation of this form."""
        return self.equations[self.form]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The letters of `params_`."""
        return ("chance", "ceiling", *(("k", "L0") if self.form == "sigmoid" else ("intercept", "slope")))

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as stored in JSON."""
        return {"form": self.form, "chance": self.chance, "ceiling": self.ceiling}

    def fit(self, table: Any) -> DownstreamLaw:
        """Estimate the parameters from checkpoints with `loss` and `score` and return self; see the class."""
        raw = dict(_columns(table))
        tasks = {str(v) for v in raw.get("task", ()) if v not in (None, "")}
        if len(tasks) > 1:
            raise FitError(
                f"The table holds {len(tasks)} tasks ({', '.join(sorted(tasks)[:4])}): fit each on its rows."
            )
        columns = self._read(raw)
        chance = self._chance(columns)
        top = 1.0 if self.ceiling is None else self.ceiling
        _check_order(chance, top)
        columns.pop("chance", None)
        total, text = len(columns["loss"]), "all rows"
        if self.form == "linear":
            keep = columns["score"] > chance + self._above(columns, chance, top)
            columns = {name: values[keep] for name, values in columns.items()}
            text = f"rows above chance ({chance:g})"
        if len(columns["loss"]) < 4 or np.ptp(columns["loss"]) <= 1e-9 * columns["loss"].max():
            raise FitError(
                f"{len(columns['loss'])} of {total} rows can be fitted ({text}), at losses that differ: a law needs 4. "
                "Evaluate more checkpoints, later ones or an easier task."
            )
        self.selection_ = f"{text}: {len(columns['loss'])} of {total}"
        params = self._estimate(columns, chance)
        self._set(columns, params, self._score(columns, params))
        for message in self.caveats():
            warnings.warn(message, IdentificationWarning, stacklevel=2)
        return self

    def score(self, loss: Any) -> Any:
        """The law itself: the score at losses (nats per token)."""
        self._check_fitted()
        return plain(mean_score(self.form, np.asarray(positive("loss", loss, "nats per token")), self.params_))

    def predict(self, loss: Any, level: float = 0.9) -> ScorePrediction:
        """The score of a checkpoint with that loss, with an interval that holds it with probability `level`.

        `loss` is a number, an array, or the `Prediction` of a first-stage law: then its interval is carried through,
        the two sides of it taken as those of a normal distribution in log loss (`TwoStage` takes the law's own).
        Warns `ExtrapolationWarning` at losses further below the fitted ones than those span.
        """
        self._check_fitted()
        level = check_level(level)
        at: Mapping[str, Any] = {}
        normal = standard_normal()
        if isinstance(loss, Prediction):
            at, point = loss.at, np.asarray(loss.loss, float)
            z = ndtri(0.5 * (1 + loss.level))
            below, above = (np.abs(np.log(np.asarray(v, float) / point)) / z for v in (loss.low, loss.high))
            side = np.where(normal < 0, below.reshape(-1, 1), above.reshape(-1, 1))
            draws = point.reshape(-1, 1) * np.exp(side * normal)
        else:
            point = positive("loss", loss, "nats per token")
            draws = np.repeat(point.reshape(-1, 1), DRAWS, 1)
        return self._predicted(point, draws, level, at)

    def solve(self, *, score: Any) -> Any:
        """The loss at which the law gives `score`; nan for a score that it never gives."""
        self._check_fitted()
        target, p = positive("score", score, "share of 1"), self.params_
        inside = (target > p["chance"]) & (target < p["ceiling"])
        with np.errstate(all="ignore"):
            if self.form == "linear":
                found = (target - p["intercept"]) / p["slope"]
            else:
                found = p["L0"] - logit((target - p["chance"]) / (p["ceiling"] - p["chance"])) / p["k"]
        return plain(np.where(inside & (found > 0), found, np.nan))

    def evaluate(self, table: Any, level: float = 0.9) -> ScoreEvaluation:
        """Predict the score of every row of a table from its loss and compare."""
        self._check_fitted()
        columns = self._read(dict(_columns(table)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)
            p = self.predict(columns["loss"], level)
        errors = np.asarray(p.score) - columns["score"]
        inside = (columns["score"] >= p.low) & (columns["score"] <= p.high)
        return ScoreEvaluation(float(np.mean(np.abs(errors))), float(np.mean(inside)), level, errors, p)

    def summary(self) -> str:
        """The fit in words: equation, parameters, rows, residuals and what the rows leave open."""
        self._check_fitted()
        own = self.evaluate(self._columns)
        low, high = self.range_["loss"]
        lines = [f"DownstreamLaw: {self.equation_text}", *(f"  {k} = {v:.6g}" for k, v in self.params_.items())]
        lines += [
            f"  fitted to {self.selection_}",
            f"  residuals: mean {100 * own.mae:.2f} points, worst {100 * float(np.abs(own.errors).max()):.2f}",
            f"  loss from {low:.4g} to {high:.4g} (nats per token)",
        ]
        return "\n".join([*lines, *(f"  note: {message}" for message in self.caveats())])

    def plot(self, kind: str = "fit", *, level: float = 0.9, reach: float = 1.0) -> Any:
        """A matplotlib figure: "fit" (score over loss with its interval, `reach` fitted ranges of lower loss shaded) or
        "residuals".
        """
        from .plots import plot_downstream

        return plot_downstream(self, kind, level, reach)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The fitted law as JSON text, written to `path` when given."""
        self._check_fitted()
        return downstream_store.write(self, path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> DownstreamLaw:
        """The law stored by `to_json`; raises `RecordError` for anything else."""
        return downstream_store.read(cls, source)

    # -- estimation ----------------------------------------------------------------------------------------------------

    def _read(self, raw: dict[str, Any]) -> Columns:
        labels = run_labels(raw)
        if labels is not None:
            raw["run_id"] = labels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # equal scores at equal losses are no copies
            columns = read_table(raw, ["loss", "score"], ["weight", "run_id", "step", "chance", "items"])
        if (columns["score"] > 1).any():
            row = int(np.argmax(columns["score"] > 1))
            raise FitError(
                f"Column 'score', row {row}: expected a share from 0 to 1, found {columns['score'][row]:g}. Divide "
                f"percentages by 100."
            )
        if "weight" in columns:
            keep = columns["weight"] > 0
            columns = {name: values[keep] for name, values in columns.items()}
        return columns

    def _chance(self, columns: Columns) -> float:
        stated = np.unique(columns["chance"]) if "chance" in columns else np.array([])
        if self.chance is not None:
            return self.chance
        if len(stated) > 1:
            raise FitError(f"Column 'chance' holds {len(stated)} values: one law describes one task. Fit each alone.")
        return float(stated[0]) if len(stated) else 0.0

    @staticmethod
    def _above(columns: Columns, chance: float, ceiling: float) -> np.ndarray | float:
        if "items" in columns:
            return 2 * np.sqrt(np.maximum(chance * (1 - chance), 0.0) / columns["items"])
        return MARGIN * (ceiling - chance)

    def _estimate(self, columns: Columns, chance: float, ceiling: float | None = None) -> dict[str, float]:
        """The parameters; a given `ceiling` goes before the law's own, which None estimates."""
        ceiling = self.ceiling if ceiling is None else ceiling
        top = 1.0 if ceiling is None else ceiling
        weight, loss, score = row_weights(columns), columns["loss"], columns["score"]
        if self.form == "linear":
            centre = np.average(loss, weights=weight)
            away = loss - centre
            slope = float((weight * away * score).sum() / (weight * away * away).sum())
            level = float(np.average(score, weights=weight))
            return {"chance": chance, "ceiling": top, "intercept": level - slope * centre, "slope": slope}
        centre, spread = float(loss.mean()), float(loss.std())
        scaled = np.clip((score - chance) / (top - chance), 0.02, 0.98)
        slope, level = np.polyfit((loss - centre) / spread, logit(scaled), 1)
        free = ceiling is None
        least = max(float(np.quantile(score, 0.9)), chance + 0.02) if free else top
        bounds = [(-60.0, 60.0), (FLATTEST * spread, STEEPEST * spread), (min(least, 1.0), 1.0 if free else top)]

        def named(theta: np.ndarray) -> dict[str, float]:
            k = float(theta[1] / spread)
            return {"chance": chance, "ceiling": float(theta[2]), "k": k, "L0": float(centre + theta[0] / k)}

        x, y = (loss - centre) / spread, np.clip(score, EDGE, 1 - EDGE)

        def deviance(theta: np.ndarray) -> tuple[float, np.ndarray]:
            """The objective, less what does not depend on theta, and its gradient."""
            p = expit(theta[0] - theta[1] * x)
            mean = np.clip(chance + (theta[2] - chance) * p, EDGE, 1 - EDGE)
            pull = -weight * (y / mean - (1 - y) / (1 - mean))
            rise = pull * (theta[2] - chance) * p * (1 - p)
            value = -(weight * (y * np.log(mean) + (1 - y) * np.log(1 - mean))).sum()
            return float(value), np.array([rise.sum(), -(rise * x).sum(), (pull * p).sum()])

        best, found = np.inf, None
        for steepness in (max(-slope, 0.05), 4.0):
            for high in {bounds[2][1], 0.5 * sum(bounds[2])}:
                end = minimize(
                    deviance, [level, steepness, high], jac=True, bounds=bounds, method="L-BFGS-B",
                    options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 300},
                )  # fmt: skip
                if end.fun < best:
                    best, found = end.fun, end.x
        if found is None:
            raise FitError("No sigmoid fits these scores. Check the columns 'loss' and 'score'.")
        return named(found)

    def _score(self, columns: Columns, params: Mapping[str, float]) -> float:
        """The objective: half the binomial deviance a unit of weight, or squares for the line."""
        weight, score = row_weights(columns), columns["score"]
        if self.form == "linear":
            fit = params["intercept"] + params["slope"] * columns["loss"]
            return float((weight * (score - fit) ** 2).sum())
        mean = np.clip(mean_score(self.form, columns["loss"], params), EDGE, 1 - EDGE)
        share = np.clip(score, EDGE, 1 - EDGE)
        terms = share * np.log(share / mean) + (1 - share) * np.log((1 - share) / (1 - mean))
        return float((weight * terms).sum())

    def caveats(self) -> list[str]:
        """What the scores leave open or contradict, one sentence each: what `fit` warned of and `summary` notes."""
        self._check_fitted()
        found, p = [], self.params_
        loss, score = self._columns["loss"], self._columns["score"]
        rows = max(independent(self._columns, score - mean_score(self.form, loss, p)).sum(), 4.0)
        rank = float(spearmanr(loss, score).statistic) if np.ptp(score) > 0 else 0.0
        strength = -rank * np.sqrt((rows - 2) / max(1 - rank**2, 1e-9))
        if student.sf(strength, rows - 2) > 0.05:
            found.append(
                f"The score does not follow the loss (rank correlation {rank:+.2f}): the law says little more than "
                "their mean. Check that both belong to the same checkpoints, or take an easier task."
            )
        below = int(
            (score < p["chance"] - np.maximum(self._above(self._columns, p["chance"], p["ceiling"]), 0.02)).sum()
        )
        if 2 * below > len(score) or (below and self._columns.get("items") is None and below > 0.25 * len(score)):
            found.append(
                f"{below} of {len(score)} scores lie below chance={p['chance']:g}: state the task's own chance."
            )
        if self.ceiling is not None:
            margin = np.maximum(1.5 * self._above(self._columns, self.ceiling, 1.0), 0.02)  # three standard errors
            if above := int((score > self.ceiling + margin).sum()):
                found.append(
                    f"{above} of {len(score)} scores lie above ceiling={self.ceiling:g}, up to {score.max():.3g}: "
                    "leave the ceiling out (it is estimated), or state one that the task has."
                )
        if score.max() <= p["chance"] + np.max(self._above(self._columns, p["chance"], p["ceiling"])):
            found.append(f"No score is above chance ({p['chance']:g}): where it rises is not seen. Add larger models.")
        elif self.form == "linear" and self._bend() > 3:
            found.append("The scores bend: no line describes them, and beyond them it misleads. Take form='sigmoid'.")
        elif self.form == "sigmoid" and self.ceiling is None and p["L0"] < loss.min():
            found.append("The ceiling is not identified: the scores are not half-way up yet. State ceiling=….")
        return found

    def _bend(self) -> float:
        """Size of the quadratic term of the scores in its standard errors."""
        x, score = self._columns["loss"], self._columns["score"]
        if len(np.unique(x)) < 4 or len(x) < 5:
            return 0.0
        x = (x - x.mean()) / x.std()
        terms = np.stack([np.ones_like(x), x, x * x], 1)
        found, *_ = np.linalg.lstsq(terms, score, rcond=None)
        residual = score - terms @ found
        rows = max(independent(self._columns, residual).sum() - 3, 1.0)
        variance = float((residual**2).mean()) * len(x) / rows * np.linalg.inv(terms.T @ terms)[2, 2]
        return float(abs(found[2]) / np.sqrt(variance + 1e-12))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _set(self, columns: Columns, params: dict[str, float], value: float) -> None:
        self._columns, self.params_, self.objective_value_ = columns, params, value
        self.range_ = {"loss": (float(columns["loss"].min()), float(columns["loss"].max()))}
        self.__dict__.pop("_draws", None)

    @property
    def n_runs_(self) -> int:
        """Number of rows fitted."""
        return len(self._columns["loss"])

    def _check_fitted(self) -> None:
        if not hasattr(self, "params_"):
            raise FitError("This DownstreamLaw is not fitted yet. Call .fit(table) first, or .from_json(path).")


def _check_order(chance: float, ceiling: float) -> None:
    if not chance < ceiling:
        raise ConfigurationError(f"chance={chance:g} must be below ceiling={ceiling:g}.")
