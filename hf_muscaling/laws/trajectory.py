"""The loss curve under any learning-rate schedule: `L(s) = L0 + A·S1^-alpha - C·S2`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigurationError, FitError
from .annealing import STEEPEST, AnnealingProblem, row_weights
from .answers import plain, positive
from .base import ExtrapolationWarning, ScalingLaw
from .fitting import OBJECTIVES, minimise
from .intervals import RollingErrors, drift_quantiles
from .prediction import Evaluation, Prediction
from .problem import objective_value
from .schedules import areas, as_schedule, schedule_of_rows
from .selection import Columns, progress, run_index, select
from .table import _columns, read_table, run_labels

LAMBDA = 0.999  #: the paper's
LIFETIMES = 1000 * np.exp(0.35 * np.arange(-15, 9))  #: 1/(1 - lambda_) searched, steps
RELUCTANCE = 0.05  #: how much better a lambda_ whose lifetime is a factor e from the paper's must predict
THINNED = 50  #: rows a run when searching lambda_
LATE = 0.5  #: share of a held-out run that is scored
DRAWS = 1024
PER_RUN = 12.0  #: rows of a curve err together: a run tells its level, slope and bend
NOISE, NOISE_DOF = 0.002, 3.0  #: log loss by which a new schedule's curve is off, and what that prior weighs
DRIFT, DRIFT_WIDTH, ORIGINS = 0.003, 1.0, (0.4, 0.6, 0.8)
SHOWN = 400


class AnnealingLaw(ScalingLaw):
    """Loss of every step of one model under any learning-rate schedule: `L(s) = L0 + A·S1^-alpha - C·S2`, nats per
    token.

    `S1(s) = sum_{i≤s} lr_i` is the forward area, `S2(s) = sum_{i≤s} sum_{k≤i} (lr_{k-1} - lr_k)·lambda_^(i-k)` the
    annealing area (`laws.schedules.areas`). Fitted to a constant-rate curve and one or two short annealed ones of a
    model, it gives the annealed end of another schedule or horizon. One law describes one model size, batch size and
    peak rate.

    `fit(table)` takes checkpoints: columns `step`, `lr`, `loss` and, with several runs, `run_id`. The rate between
    rows is drawn straight, and from 0 before a run's first row; `fit(table, schedules={run_id: rates})` states the
    rate of every step instead. `window` of each run's first rows are left out.

    `lambda_=None` (default) chooses the decay factor that predicts held-out runs best, each run left out in turn, when
    at least three runs allow it, and takes the paper's 0.999 otherwise; a number holds it. `objective` is "huber"
    (default), "least_squares" or "lad" (see `ChinchillaLaw`).

    The interval of `predict` holds the loss of a run with that schedule: parameters (a run counts as three rows), the
    error on schedules left out, and drift with log S1 beyond the fitted one. It rests on few runs and a prior.

    Measured on the 9 schedules each of a 25M and a 100M model (Multi-Power Law's curves), fitted to two or three runs
    of 24 thousand steps, scored on all others, up to 72 thousand steps: 0.2 % at the annealed ends and along the
    curves, against 1.1 % for a power law in steps that ignores the rate, 0.35 % for the Multi-Power Law (seven
    parameters, which two or three runs do not determine) and 0.4 % for an immediate effect of the rate.

    Source: Tissue et al. 2024, Scaling Law with Learning Rate Annealing, Eq. 1. Raises `FitError` for a table without
    the columns, with one row a run, or with curves that do not fall; warns `IdentificationWarning` when no run's rate
    falls or the runs leave a parameter open.

    >>> from hf_muscaling.laws import AnnealingLaw, constant_schedule, cosine_schedule, wsd_schedule
    >>> from hf_muscaling.laws.schedules import areas
    >>> def trained(rates, name):  # stands for a run
    ...     s1, s2 = areas(rates, 0.99)
    ...     s1, s2, step = s1[49::50], s2[49::50], np.arange(50, len(rates) + 1, 50)
    ...     loss = 3.0 + 0.5 * s1**-0.4 - 0.5 * s2
    ...     return [dict(run_id=name, step=s, lr=rates[s - 1], loss=l) for s, l in zip(step, loss)]
    >>> runs = trained(constant_schedule(2000, 1e-3, 50), "constant")
    >>> runs += trained(wsd_schedule(2000, 1e-3, decay=400, warmup=50), "annealed")
    >>> law = AnnealingLaw(lambda_=0.99).fit(runs)
    >>> end = law.predict(schedule=cosine_schedule(8000, 1e-3, warmup=50), step=8000)
    >>> bool(end.low < end.loss < end.high), round(end.extrapolation, 1)
    (True, 2.0)
    """

    objectives: ClassVar[tuple[str, ...]] = tuple(OBJECTIVES)
    equation: ClassVar[str] = "L(s) = L0 + A·S1^-alpha - C·S2"
    labels: ClassVar[tuple[str, ...]] = ("run_id", "step", "lr")
    bounds: ClassVar[dict[str, tuple[float, float]]] = {
        "L0": (0.0, np.inf), "A": (0.0, np.inf), "alpha": (0.0, STEEPEST), "C": (0.0, np.inf), "lambda_": (0.0, 1.0),
    }  # fmt: skip

    def __init__(self, objective: str = "huber", window: float = 0.1, lambda_: float | None = None):
        super().__init__(objective, window)
        number = isinstance(lambda_, (int, float, np.number)) and not isinstance(lambda_, bool)
        if lambda_ is not None and not (number and 0 < lambda_ < 1):
            raise ConfigurationError(f"lambda_={lambda_!r} must lie between 0 and 1, for example 0.999, or be None.")
        self.lambda_ = None if lambda_ is None else float(lambda_)

    @staticmethod
    def loss(S1: Any, S2: Any, L0: float, A: float, alpha: float, C: float, lambda_: float) -> Any:
        """`L0 + A·S1^-alpha - C·S2`, nats per token; lambda_ is the one that S2 was made with."""
        return L0 + A * np.asarray(S1, float) ** -alpha - C * np.asarray(S2, float)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that a table must have beside the loss; the areas are made from them."""
        return ("step", "lr")

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as stored in JSON."""
        return {"objective": self.objective, "window": self.window, "lambda_": self.lambda_}

    # -- use -----------------------------------------------------------------------------------------------------------

    def fit(self, table: Any, schedules: Mapping[str, Any] | None = None) -> Any:
        """Estimate the parameters from curves of one model and return self; see the class.

        `schedules` maps a run_id to the rates of its steps, for runs whose rows do not say them well enough.
        """
        self._given = _given(schedules)
        return super().fit(table)

    def predict(self, *, level: float = 0.9, schedule: Any = None, step: Any = None, **at: Any) -> Prediction:
        """The loss along a schedule, with an interval that holds a run's loss with probability `level`.

        `schedule` lists the learning rate of every step (`cosine_schedule(…)`, `wsd_schedule(…)` or any array);
        `step` says at which steps, a number or an array, by default up to 400 of them evenly up to the last, which
        `prediction.at["step"]` then holds. Or give the areas themselves, `S1=…, S2=…`. `extrapolation` is S1 over the
        largest fitted. Raises `ConfigurationError` for a schedule that is none or a step it does not have.
        """
        if schedule is None:
            if step is not None:
                raise ConfigurationError("predict(step=…) needs schedule=…, the learning rate of every step.")
            return super().predict(level=level, **at)
        if at:
            raise ConfigurationError(f"predict() takes a schedule or {', '.join(self.variables)}, not both.")
        self._check_fitted()
        rates = as_schedule(schedule)
        if step is None:
            step = np.unique(np.linspace(1, len(rates), min(SHOWN + 1, len(rates) + 1)).astype(int)[1:])
        steps = positive("step", step, "optimizer steps")
        if (steps > len(rates)).any() or (steps != np.rint(steps)).any():
            raise ConfigurationError(f"step={str(step)[:40]} must be whole steps of the schedule's {len(rates)}.")
        s1, s2 = (v[steps.astype(int) - 1] for v in areas(rates, self.params_["lambda_"]))
        self._check_rates(rates, s1, s2)
        found = super().predict(level=level, S1=s1, S2=s2)
        return replace(found, at={"step": plain(steps), "lr": plain(rates[steps.astype(int) - 1]), **found.at})

    def _check_rates(self, rates: np.ndarray, s1: np.ndarray, s2: np.ndarray) -> None:
        """Warn of a peak rate or an annealing that no run had; raise `ConfigurationError` where the law breaks down."""
        if not (self.loss(s1, s2, **self.params_) > 0).all():
            raise ConfigurationError(
                f"The law gives no loss > 0 for this schedule: its peak rate is {rates.max():.3g}, and one law "
                f"describes one (annealing area S2 {s2.max():.3g}, fitted up to {self._columns['S2'].max():.3g})."
            )
        fitted = max((float(np.max(v)) for v in getattr(self, "_rates", {}).values()), default=np.inf)
        most = max(float(self._columns["S2"].max()), 1e-300)
        if rates.max() > 1.5 * fitted or s2.max() > 3 * most:
            warnings.warn(
                f"The schedule's peak rate is {rates.max():.3g} and its annealing area S2 {s2.max():.3g}; the runs had "
                f"{fitted:.3g} and {most:.3g}. One law describes one peak rate: expect the interval not to hold.",
                ExtrapolationWarning,
                stacklevel=3,
            )

    def solve(self, variable: str, *, loss: Any, **at: Any) -> Any:
        """The first step of a schedule whose predicted loss is at most `loss`: `solve("step", loss=3.1,
        schedule=rates)`; inf when it never is.
        """
        self._check_fitted()
        if variable != "step" or set(at) != {"schedule"}:
            raise ConfigurationError('This law answers solve("step", loss=…, schedule=rates).')
        target = positive("loss", loss, "nats per token")
        s1, s2 = areas(as_schedule(at["schedule"]), self.params_["lambda_"])
        lowest = np.minimum.accumulate(np.asarray(self.loss(s1, s2, **self.params_)))
        first = np.searchsorted(-lowest, -target, side="left")
        return plain(np.where(first < len(lowest), first + 1.0, np.inf))

    def minimum_loss(self, **at: Any) -> Any:
        """L0, the loss of an endless run at constant rate; annealing lowers it by `C·S2`."""
        self._check_fitted()
        if at:
            raise ConfigurationError("minimum_loss() of this law takes no variable.")
        return self.params_["L0"]

    def evaluate(self, table: Any, level: float = 0.9, schedules: Mapping[str, Any] | None = None) -> Evaluation:
        """Predict every run of a table, each under its own schedule, and compare (the first `window` left out)."""
        self._check_fitted()
        raw = dict(_columns(table))
        if not {"S1", "S2"} <= set(raw):
            raw = self._prepared(raw, _given(schedules), self.params_["lambda_"])[0]
        return super().evaluate(raw, level)

    def plot(self, kind: str = "fit", *, level: float = 0.9, reach: float = 3.0) -> Any:
        """A matplotlib figure: "fit" (curves over steps, a cosine and a constant schedule up to `reach` times longer
        with their intervals, extrapolation shaded) or "residuals".
        """
        from .plots import plot_trajectory

        return plot_trajectory(self, kind, level, reach)

    # -- columns -------------------------------------------------------------------------------------------------------

    def _selected(self, table: Any) -> tuple[Columns, str]:
        raw = dict(_columns(table))
        columns, text, self._rates = self._prepared(raw, getattr(self, "_given", {}), self.lambda_ or LAMBDA)
        self._warn_of_table(raw)
        return columns, text

    def _prepared(
        self, raw: dict[str, Any], given: Mapping[str, np.ndarray], lambda_: float
    ) -> tuple[Columns, str, dict[str, np.ndarray]]:
        """Validated rows with their areas, which they are in words, and each run's rates."""
        labels = run_labels(raw)
        if "step" not in raw and "S" in raw:
            raw["step"] = raw["S"]
        raw["run_id"] = labels if labels is not None else ["run"] * len(raw.get("loss", ()))
        if "lr" not in raw and set(raw["run_id"]) <= set(given):
            raw["lr"] = np.zeros(len(raw["run_id"]))
        columns = read_table(raw, ["step", "lr", "loss", "run_id"], ["weight"])
        rates = {}
        for name in dict.fromkeys(columns["run_id"]):
            own = columns["run_id"] == name
            if name in given:
                rates[name] = given[name]
                if columns["step"][own].max() > len(given[name]):
                    raise FitError(f"schedules[{name!r}] ends before the run's last row. Give the rate of every step.")
            elif own.sum() < 2:
                raise FitError(f"Run {name!r} has one row, which tells no curve. Give its checkpoints.")
            else:
                rates[name] = schedule_of_rows(columns["step"][own], columns["lr"][own], name)
        columns["S1"], columns["S2"] = _areas(columns, rates, lambda_)
        selection = select(columns, self.window)
        order = ("S1", "S2", "loss", "weight", *self.labels)
        kept = {name: selection.columns[name] for name in order if name in selection.columns}
        return kept, selection.text, rates

    # -- estimation ----------------------------------------------------------------------------------------------------

    def _estimate(self, columns: Columns) -> tuple[dict[str, float], float]:
        if len(np.unique(columns["S1"])) < 5 or np.ptp(np.log(columns["S1"])) < 0.3:
            raise FitError("The curves are too short for a law: give at least 5 checkpoints over a factor of 1.5.")
        lambda_ = self.lambda_ or self._choose(columns)
        columns["S2"] = _areas(columns, self._rates, lambda_)[1]
        theta, problem = self._optimum(columns)
        if not theta[1] > np.log(1e-5):
            raise FitError("The loss does not fall with training: no law to fit. Check for a run that diverged.")
        params = problem.named(theta) | {"lambda_": float(lambda_)}
        return params, self._score(columns, params)

    def _score(self, columns: Columns, params: dict[str, float]) -> float:
        log = np.log(np.maximum(self.loss(columns["S1"], columns["S2"], **params), 1e-300))
        return float(objective_value(self.objective, log, columns["loss"], row_weights(columns)))

    def _optimum(self, columns: Columns) -> tuple[np.ndarray, AnnealingProblem]:
        problem = AnnealingProblem.of(columns)
        theta, _ = minimise(problem, problem.starts(), self.objective, polish=self.objective == "lad", lowering=True)
        return theta, problem

    def _folds(self, columns: Columns) -> list[tuple[Columns, Columns]]:
        """Each run left out in turn, where the others still have an annealed run beside another: (rest, run)."""
        run, parts = run_index(columns), []
        fallen = {r for r in np.unique(run) if np.any(columns["S2"][run == r] > 0)}
        for left in np.unique(run):
            rest = set(np.unique(run)) - {left}
            if len(rest) >= 2 and rest & fallen:
                own = run == left
                parts.append(({n: v[~own] for n, v in columns.items()}, {n: v[own] for n, v in columns.items()}))
        return parts

    def _errors(self, rest: Columns, run: Columns) -> np.ndarray:
        """Log errors over the late part of `run` of the law fitted to `rest`."""
        theta, problem = self._optimum(rest)
        late = run["step"] >= np.quantile(run["step"], LATE)
        values = self.loss(run["S1"][late], run["S2"][late], **problem.named(theta), lambda_=np.nan)
        return np.log(run["loss"][late]) - np.log(np.maximum(values, 1e-3 * run["loss"][late]))

    def _choose(self, columns: Columns) -> float:
        """The lambda_ that predicts runs left out best; the paper's when the runs are too few to leave one out."""
        if len(self._folds(columns)) < 2:
            return LAMBDA
        longest = max(map(len, self._rates.values()))
        lifetimes = LIFETIMES[max(longest / 4, LIFETIMES[0]) >= LIFETIMES]
        scores = []
        place, run = progress(columns, run_index(columns))[0], run_index(columns)
        counts = np.bincount(run)[run]
        sparse = np.floor(place * THINNED) != np.floor((place - 1 / counts) * THINNED)
        thin = {n: v[sparse] for n, v in columns.items()}
        for lifetime in lifetimes:
            folds = self._folds(thin | {"S2": _areas(thin, self._rates, 1 - 1 / lifetime)[1]})
            error = np.mean([np.abs(self._errors(*fold)).mean() for fold in folds])
            scores.append(error * (1 + RELUCTANCE * abs(np.log(lifetime * (1 - LAMBDA)))))
        return float(1 - 1 / lifetimes[int(np.argmin(scores))])

    def _weaknesses(self) -> list[str]:
        found = []
        if not np.any(self._columns["S2"] > 0):
            found.append(
                "C is not identified: no run's learning rate falls, so annealing is not seen. Add one short run that "
                "decays (a cosine or a cooldown)."
            )
        elif self.params_["C"] <= 0:
            found.append("C is at its bound 0: the runs show no gain from annealing. Check the column 'lr'.")
        theta, deviation = self._laplace[0], np.sqrt(np.diag(self._laplace[1]))
        for name, size in (("alpha", deviation[2] / theta[2]), ("C", deviation[3] / max(theta[3], 1e-12))):
            if size > 0.7 and not any(m.startswith("C ") for m in found if name == "C"):
                found.append(
                    f"{name} = {self.params_[name]:.3g} is not identified by these runs (standard deviation "
                    f"{100 * size:.0f} %). Add a run at constant rate, or a longer one."
                )
        return found

    # -- interval ------------------------------------------------------------------------------------------------------

    @cached_property
    def _laplace(self) -> tuple[np.ndarray, np.ndarray, AnnealingProblem, float]:
        """Optimum, its covariance when a run counts as `PER_RUN` rows, the problem, and the log error of a curve."""
        columns = self._columns
        problem = AnnealingProblem.of(columns)
        theta = problem.internal(self.params_)
        run = run_index(columns)
        errors = [self._errors(*fold) for fold in self._folds(columns)]
        if len(errors) < 2:
            own = np.log(columns["loss"]) - problem.log_loss(theta[None])[0]
            errors = [own[run == r] for r in np.unique(run)]
        squares = sum(float(np.mean(e**2)) for e in errors)
        sigma = float(np.sqrt((squares + NOISE_DOF * NOISE**2) / (len(errors) + NOISE_DOF)))
        v = problem.slopes(theta)
        share = PER_RUN / np.bincount(run)[run]
        prior = np.array([1.0 / np.mean(columns["loss"]), 1.0, 0.5, 1.0]) ** -2.0
        information = (v * np.minimum(share, 1.0)) @ v.T / sigma**2 + np.diag(prior)
        return theta, np.linalg.inv(information), problem, sigma

    @cached_property
    def _draws(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """Parameters, noise of a curve, drift, and the standard normal that goes with each draw."""
        theta, covariance, problem, sigma = self._laplace
        rng = np.random.default_rng(0)
        drawn = theta + rng.multivariate_normal(np.zeros(4), covariance, DRAWS, method="eigh")
        params = problem.named_draws(np.clip(drawn, problem.low, problem.high))
        dof = NOISE_DOF + len(np.unique(run_index(self._columns)))
        noise = sigma / np.sqrt(rng.chisquare(dof, DRAWS) / dof)
        turn = rng.permutation((0.5 + np.arange(DRAWS)) / DRAWS)
        tau = drift_quantiles(self._rolling(sigma), turn, DRIFT, DRIFT_WIDTH, 1.0)
        return params, noise, tau, rng.normal(size=DRAWS)

    def _rolling(self, sigma: float) -> RollingErrors:
        """Refit without what lies beyond a share of the largest S1, score it: one observation a share."""
        columns, parts = self._columns, []
        top = columns["S1"].max()
        for share in ORIGINS:
            early = columns["S1"] <= share * top
            rest = {n: v[early] for n, v in columns.items()}
            if len(rest["loss"]) < 8 or np.ptp(np.log(rest["S1"])) < 0.5 or not np.any(rest["S2"] > 0):
                continue
            theta, problem = self._optimum(rest)
            late = {n: v[~early] for n, v in columns.items()}
            values = self.loss(late["S1"], late["S2"], **problem.named(theta), lambda_=np.nan)
            error = np.log(late["loss"]) - np.log(np.maximum(values, 1e-3 * late["loss"]))
            parts.append([error.mean(), sigma, np.log(late["S1"] / (share * top)).mean()])
        return RollingErrors(*np.array(parts).T) if parts else RollingErrors(*np.empty((3, 0)))

    def _interval(self, at: dict[str, np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
        params, noise, tau, normal = self._draws
        ends = []
        for s1, s2 in zip(at["S1"], at["S2"], strict=True):
            loss = np.maximum(params["L0"] + params["A"] * s1 ** -params["alpha"] - params["C"] * s2, 1e-9)
            outside = max(np.log(s1 / self.range_["S1"][1]), 0.0)
            drawn = loss * np.exp(np.hypot(noise, tau * outside) * normal)
            ends.append(np.quantile(drawn, (0.5 * (1 - level), 0.5 * (1 + level))))
        low, high = np.array(ends).T
        return low, high

    def _set(self, columns: Columns, params: dict[str, float], value: float) -> None:
        super()._set(columns, params, value)
        self.range_ = {"S1": self.range_["S1"]}  # S2 may be 0, and what lies beyond it is linear
        for name in ("_laplace", "_draws"):
            self.__dict__.pop(name, None)


def _given(schedules: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    if schedules is None:
        return {}
    if not isinstance(schedules, Mapping):
        raise ConfigurationError("schedules must map each run_id to the learning rates of its steps.")
    return {str(name): as_schedule(rates) for name, rates in schedules.items()}


def _areas(columns: Columns, rates: Mapping[str, np.ndarray], lambda_: float) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 of every row."""
    s1, s2 = np.empty_like(columns["loss"]), np.empty_like(columns["loss"])
    for name, schedule in rates.items():
        own = columns["run_id"] == name
        at = np.rint(columns["step"][own]).astype(int) - 1
        s1[own], s2[own] = (v[at] for v in areas(schedule, lambda_))
    return s1, s2
