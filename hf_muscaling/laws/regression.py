"""Laws in several variables: from validated columns to the global optimum, with a prior or fixed parameters if asked.

A law supplies four short things: `_problem` (the regression in internal coordinates theta), `_starts` (linear fits
over a grid of exponents), `_named` and `_internal` (theta ↔ the paper's letters). Everything else is here.

Objective "bayes", the default, is the mode of a posterior:

    n · log(mean_i w_i · |log L_fit - log L|_i + FLOOR) + 1/2 · sum_j ((theta_j - centre_j) / sd_j)²

that is, a Laplace likelihood whose scale is estimated too (|·| is Huber's function with delta 1e-3, over delta) and a
weak prior on the exponents. Rows count less the more compute they lie below the largest run,
w = 1 / (1 + (log(C_max/C)/reach)²): a law is a local description, and the target lies beyond the large end.

How the weights, the widths of the priors and the window of curves were chosen: `ChinchillaLaw`.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigurationError, FitError
from .base import ScalingLaw
from .fitting import OBJECTIVES, minimise, newton, way
from .noise import FLOOR
from .problem import DELTA, Problem, objective_value
from .selection import WINDOW, Columns, run_index
from .table import short

ROUNDS = 30
HELD_OUT = 0.4  #: share of the rows by which a law's form is chosen
PER_RUN = 2.0  #: a curve tells its level and its slope; more of its rows err together

Origin = dict[str, float]
Pin = tuple[Origin, int, float]


class RegressionLaw(ScalingLaw):
    """A law fitted by `laws.fitting`; `prior` and `fixed` borrow from other families.

    `prior={"alpha": (0.36, 0.06)}` adds to (and overrides) the law's own weak prior: centre and standard deviation,
    the latter relative for parameters that are scales (E, A, …). It acts under objective "bayes" only.
    `fixed={"alpha": 0.35, "A": 480.0}` holds parameters at given values under every objective.
    """

    objectives: ClassVar[tuple[str, ...]] = ("bayes", *OBJECTIVES)
    labels: ClassVar[tuple[str, ...]] = ("run_id",)
    weak_prior: ClassVar[dict[str, tuple[float, float]]] = {}  #: letter → centre and standard deviation
    scales: ClassVar[tuple[str, ...]] = ()  #: letters whose coordinate is a logarithm
    reach: ClassVar[float] = 1.0  #: log distance in compute below the largest at which a row's weight is a half

    def __init__(
        self,
        objective: str = "bayes",
        window: float = WINDOW,
        rows: str = "all",
        prior: Mapping[str, Any] | None = None,
        fixed: Mapping[str, float] | None = None,
    ):
        super().__init__(objective, window, rows)
        self._check_letters()
        for name, given in (("prior", prior), ("fixed", fixed)):
            if given is not None and not isinstance(given, Mapping):
                raise ConfigurationError(f"{name}={str(given)[:40]!r} must be a mapping from parameters to values.")
        self.prior = {name: self._check_prior(name, value) for name, value in (prior or {}).items()}
        self.fixed = {name: self._check_fixed(name, value) for name, value in (fixed or {}).items()}
        both = set(self.prior) & set(self.fixed)
        if both:
            raise ConfigurationError(f"{sorted(both)[0]!r} has both a prior and a fixed value. Give one of them.")
        if self.prior and objective != "bayes":
            raise ConfigurationError(
                f"A prior acts under objective='bayes' only, not {objective!r}. Use fixed=… there."
            )

    # -- what a law supplies -------------------------------------------------------------------------------------------

    @abstractmethod
    def _problem(self, columns: Columns, weight: np.ndarray, origin: Origin) -> Problem:
        """The regression; `origin` is the variables' log at which the coordinates are taken."""

    @abstractmethod
    def _starts(self, problem: Problem) -> np.ndarray:
        """Start points (m, p) of a problem at the columns' own origin."""

    @abstractmethod
    def _named(self, theta: np.ndarray, origin: Origin) -> dict[str, np.ndarray]:
        """The paper's letters → (m,), from theta (m, p)."""

    @abstractmethod
    def _internal(self, params: Mapping[str, Any], origin: Origin) -> np.ndarray:
        """Theta (m, p) from the paper's letters."""

    @abstractmethod
    def _pin(self, name: str, value: float, origin: Origin) -> Pin:
        """The origin at which a letter is one coordinate, which one, and its value there."""

    def _check_columns(self, columns: Columns) -> None:
        """Raise `FitError` for columns that cannot hold the law."""

    # -- estimation ----------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as stored in JSON."""
        prior = {name: list(value) for name, value in self.prior.items()}
        return super().settings() | {"prior": prior, "fixed": dict(self.fixed)}

    def summary(self) -> str:
        """The fit in words, with the prior and what was held fixed."""
        lines = [super().summary()]
        if self.prior_:
            prior = ", ".join(f"{name} {centre:.4g} ± {sd:.4g}" for name, (centre, sd) in self.prior_.items())
            lines.append(f"  prior {prior}; a row weighs 1/(1 + log(C_max/C)²), C_max the largest compute")
        if self.fixed:
            lines.append("  fixed " + ", ".join(f"{name} = {value:.6g}" for name, value in self.fixed.items()))
        return "\n".join(lines)

    @property
    def prior_(self) -> dict[str, tuple[float, float]]:
        """The prior in force: the law's own, what was given, less what is fixed."""
        if self.objective != "bayes":
            return {}
        return {k: v for k, v in (self.weak_prior | self.prior).items() if k not in self.fixed}

    def _origin(self, columns: Columns) -> Origin:
        own = {name: float(np.log(columns[column]).mean()) for name, column in self.columns.items()}
        own["L"] = float(np.log(columns["loss"]).mean())
        return own

    def _build(self, columns: Columns, weight: np.ndarray | None = None) -> tuple[Problem, Origin]:
        """The problem with fixed parameters held and the prior's centre and precision (not yet scaled) in place."""
        weight = self._row_weights(columns) if weight is None else weight
        origin = self._origin(columns)
        pins = {name: self._pin(name, value, origin) for name, value in self.fixed.items()}
        given = {name: self._pin(name, centre, origin) for name, (centre, _) in self.prior_.items()}
        for shift, _, _ in (*pins.values(), *given.values()):
            origin = origin | shift
        problem = self._problem(columns, weight, origin)
        low, high = problem.low.copy(), problem.high.copy()
        for name, value in self.fixed.items():
            _, j, at = self._pin(name, value, origin)
            low[j] = high[j] = at
        centre, precision = np.zeros(len(low)), np.zeros(len(low))
        for name, (value, sd) in self.prior_.items():
            _, j, centre[j] = self._pin(name, value, origin)
            precision[j] = self._spread(name, value, sd) ** -2
        given_prior = self.objective == "bayes"
        return replace(
            problem, low=low, high=high, centre=centre if given_prior else None,
            precision=precision if given_prior else None, count=self._count(columns),
        ), origin  # fmt: skip

    def _spread(self, name: str, value: float, sd: float) -> float:
        """The prior's standard deviation in the coordinate of a letter."""
        return sd

    def _first(self, columns: Columns, problem: Problem, origin: Origin) -> np.ndarray:
        """Starts in the coordinates of a problem of `_build`."""
        own = self._origin(columns)
        if origin == own:
            starts = self._starts(problem)
        else:
            plain = self._problem(columns, problem.weight, own)
            starts = self._internal(self._named(self._starts(plain), own), origin)
        return np.clip(starts, problem.low, problem.high)

    def _estimate(self, columns: Columns) -> tuple[dict[str, float], float]:
        forms = self._forms()
        if len(forms) == 1:
            return forms[0]._refit(columns)
        self._check_columns(columns)
        small, large = self._held_out(columns)
        found: list[dict[str, float] | None] = []
        for form in forms:
            try:
                found.append(form._refit(small)[0])
            except FitError:
                found.append(None)
        return forms[self._chosen(large, found)]._refit(columns)

    def _forms(self) -> Sequence[RegressionLaw]:
        """The forms that the law may take, the simplest first: the one is fitted that predicts larger runs better."""
        return (self,)

    def _held_out(self, columns: Columns) -> tuple[Columns, Columns]:
        """Ordered hold-out, to choose among forms: the rows of smallest compute, and the largest, `HELD_OUT` of all."""
        order = np.argsort(-self._below(columns), kind="stable")
        k = len(order) - int(HELD_OUT * len(order))
        small, large = ({name: v[rows] for name, v in columns.items()} for rows in (order[:k], order[k:]))
        return small, large

    def _chosen(self, large: Columns, found: Sequence[dict[str, float] | None]) -> int:
        """Which form errs least on held-out rows with the parameters found; the first if one could not be fitted."""
        at, weight = [large[column] for column in self.columns.values()], self._row_weights(large)
        off = [np.abs(np.log(self.loss(*at, **params) / large["loss"])) for params in found if params is not None]
        errors = [np.average(row, weights=weight) for row in off]
        best = int(np.argmin(errors)) if len(errors) == len(found) else 0
        return best if best and errors[best] < errors[0] - 1e-6 else 0

    def _refit(self, columns: Columns) -> tuple[dict[str, float], float]:
        """Parameters and objective, the law's form held as it is."""
        self._check_columns(columns)
        if self.fixed.get("E", 0.0) >= columns["loss"].min():
            raise FitError(
                f"fixed['E'] = {self.fixed['E']:g} is no irreducible loss of these runs: the lowest reaches "
                f"{columns['loss'].min():.4g}. Fix a smaller one, or leave it free."
            )
        problem, origin = self._build(columns)
        starts = self._first(columns, problem, origin)
        if self.objective == "bayes":
            theta = posterior_mode(problem, starts)
        else:
            theta, _ = minimise(problem, starts, self.objective, polish=False, lowering=True)
            if self.objective == "lad":
                theta, _ = minimise(problem, theta[None], self.objective)
        params = {name: float(v[0]) for name, v in self._named(theta[None], origin).items()} | self.fixed
        params = {name: params[name] for name in self.parameters}
        endless = [name for name, v in params.items() if not np.isfinite(v)]
        if endless:
            raise FitError(
                f"{self.equation} has no finite optimum on this table ({', '.join(endless)} overflows), as when the "
                f"loss does not fall with one of {', '.join(self.variables)}. Check for runs that diverged and for "
                "swapped columns; if it does fall, give the columns in other units, such as 1e6."
            )
        return params, self._score(columns, params)

    def _score(self, columns: Columns, params: dict[str, float]) -> float:
        at = [columns[c] for c in self.columns.values()]
        log = np.log(self.loss(*at, **params))
        weight = self._row_weights(columns)
        if self.objective != "bayes":
            return float(objective_value(self.objective, log, columns["loss"], weight))
        problem, origin = self._build(columns)
        theta = self._internal(params, origin)
        return float(_negative_log_posterior(problem, theta, objective_value("huber", log, columns["loss"], weight))[0])

    def _weights(self, columns: Columns) -> np.ndarray:
        """The weights given, mean 1."""
        weight = columns.get("weight")
        return np.ones_like(columns["loss"]) if weight is None else weight / weight.mean()

    def _row_weights(self, columns: Columns) -> np.ndarray:
        """The weights used: under "bayes", rows far below the largest compute count less."""
        weight = self._weights(columns)
        if self.objective != "bayes":
            return weight
        weight = weight / (1 + (self._below(columns) / self.reach) ** 2)
        return weight / weight.mean()

    def _count(self, columns: Columns) -> float:
        """Independent observations: rows of one run err together, so a run counts as `PER_RUN` of its rows."""
        rows = np.bincount(run_index(columns))
        return float(np.minimum(rows, PER_RUN).sum())

    def _below(self, columns: Columns) -> np.ndarray:
        """log(C_max / C) of every row."""
        compute = np.sum([np.log(columns[c]) for c in self.columns.values()], 0)
        return compute.max() - compute

    @cached_property
    def _fitted(self) -> tuple[Problem, Origin, np.ndarray]:
        """The problem at its optimum, the prior's precision in the objective's units."""
        problem, origin = self._build(self._columns)
        theta = np.clip(self._internal(self.params_, origin)[0], problem.low, problem.high)
        if problem.precision is not None:
            value = objective_value("huber", problem.log_loss(theta[None]), problem.loss, problem.weight)
            problem = replace(problem, precision=problem.precision * float(_temperature(problem, value)[0]))
        return problem, origin, theta

    def _set(self, columns: Columns, params: dict[str, float], value: float) -> None:
        super()._set(columns, params, value)
        self.__dict__.pop("_fitted", None)

    # -- checks --------------------------------------------------------------------------------------------------------

    def _check_letters(self) -> None:
        """What a class says of its parameters must be of those of its `loss`, not of the law it was derived from."""
        own = set(self.parameters)
        stated = {"bounds": self.bounds, "weak_prior": self.weak_prior, "scales": self.scales}
        foreign = [(what, name) for what, names in stated.items() for name in names if name not in own]
        missing = [("bounds", name) for name in self.parameters if name not in self.bounds]
        for what, name in [*foreign, *missing]:
            raise ConfigurationError(
                f"{type(self).__name__}.{what} {'lacks' if name in own else 'names'} {name!r}; the parameters of its "
                f"loss are {', '.join(self.parameters)}. Define {what} in the class."
            )

    def _known(self, name: Any, what: str) -> None:
        if name not in self.parameters:
            raise ConfigurationError(
                f"{what} names {name!r}; the parameters of {type(self).__name__} are {', '.join(self.parameters)}."
            )

    def _check_fixed(self, name: str, value: Any) -> float:
        self._known(name, "fixed")
        low, high = self.bounds.get(name, (0.0, np.inf))
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not number or not low < value < high or abs(value) > sys.float_info.max:
            raise ConfigurationError(f"fixed[{name!r}] = {short(value)} must be a number between {low:g} and {high:g}.")
        return float(value)

    def _check_prior(self, name: str, value: Any) -> tuple[float, float]:
        self._known(name, "prior")
        try:
            centre, sd = (float(v) for v in value)
        except (TypeError, ValueError, OverflowError):
            raise ConfigurationError(
                f"prior[{name!r}] = {short(value)} must be a pair (centre, standard deviation), such as (0.36, 0.06)."
            ) from None
        if not (np.isfinite(centre) and np.isfinite(sd) and centre > 0 and sd > 0):
            raise ConfigurationError(f"prior[{name!r}] = {value!r} must be two finite numbers > 0.")
        if name not in self.weak_prior and name not in self.scales:
            raise ConfigurationError(
                f"{type(self).__name__} takes no prior on {name}, only on "
                f"{', '.join(n for n in self.parameters if n in self.weak_prior or n in self.scales)}; "
                f"fixed={{{name!r}: …}} holds it at a value."
            )
        return centre, sd


def _scale(problem: Problem, value: np.ndarray) -> np.ndarray:
    """Mean absolute log residual (m,) of Huber sums, with the floor of the noise between runs."""
    return value / (DELTA * len(problem.loss)) + FLOOR


def _temperature(problem: Problem, value: np.ndarray) -> np.ndarray:
    """Derivative of the Huber sum by the likelihood's n · log(scale): what a unit of the prior weighs."""
    return DELTA * _scale(problem, value) * len(problem.loss) / (problem.count or len(problem.loss))


def _negative_log_posterior(problem: Problem, theta: np.ndarray, value: np.ndarray) -> np.ndarray:
    return (problem.count or len(problem.loss)) * np.log(_scale(problem, value)) + problem.penalty(theta)


def posterior_mode(problem: Problem, starts: np.ndarray) -> np.ndarray:
    """The mode (p,) of the posterior: Newton's method at a fixed noise scale, the scale refreshed until it stays.

    Each round lowers the objective: n·log(scale) lies below its tangent, and the round minimises the tangent.
    """
    prior = problem.precision if problem.precision is not None else np.zeros(starts.shape[1])
    bare = problem.varied(precision=None)
    theta, temperature = starts, _temperature(problem, bare.value(starts, "huber")).min()
    for delta in (0.03, 0.005):
        theta = way(problem.varied(precision=prior * temperature), theta, delta)
        temperature = _temperature(problem, bare.value(theta, "huber")).min()
    last = np.inf
    for _ in range(ROUNDS):
        theta = newton(problem.varied(precision=prior * temperature), theta, DELTA, tolerance=1e-9)
        value = bare.value(theta, "huber")
        target = _negative_log_posterior(problem, theta, value)
        best = int(np.nanargmin(target))
        theta, temperature = theta[best][None], float(_temperature(problem, value[best]))
        if not target[best] < last - 1e-9 * abs(last) and np.isfinite(last):
            break
        last = float(target[best])
    return theta[0]
