"""The power law in one variable, nanoLM's `L(N) = a·N^b + c`."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigurationError, FitError
from .base import ScalingLaw, check_level
from .fitting import OBJECTIVES
from .interval_data import IntervalData
from .intervals import DRIFT_POWER, drift_quantiles, mixture_intervals, rolling_origin
from .posterior import QUIET, Groups, Posterior
from .power_fit import fit_power
from .problem import objective_value
from .selection import WINDOW

STEEPEST, FLATTEST = -8.0, -1e-3
DRAWS = 2048
OPEN = 0.2  #: c counts as open when its 90 % range is wider than this share of the smallest loss
MAX_ORIGINS = 24
EXACT = 3  #: runs that a law of three parameters passes through


class PowerLaw(ScalingLaw):
    """Loss as a power of one variable above an irreducible part: `L(N) = a·N^b + c`, a > 0, b < 0, c ≥ 0, nats per
    token.

    `objective` chooses the estimator:

    * `"bayes"` (default): posterior mean of b under a weak prior, sizes far below the largest trusted less
      (`laws.posterior`);
    * `"least_squares"`: sum of (L_fit - L)², nanoLM's `curve_fit`, but global; `"huber"`: Huber(1e-3) on log loss, as
      Hoffmann et al. 2022; `"lad"`: least absolute log error.

    The default is what extrapolates best from few sizes. Windows of 5 to 8 neighbouring sizes predicting every size 1.8
    to 60 times larger, 513 targets of 27 tables at fixed horizon (nanoLM; Porian et al. 2024 at equal tokens and their
    compute envelopes; one μP series of this project), mean over tables of the ARE: 1.12 % against 1.65 % for least
    squares. The priors were settled on these same tables (neighbouring choices score alike), so expect a little less
    elsewhere. What the interval holds after 3 to 8 sizes, simulated and public, is measured by
    `recipes/benchmarks/few_runs.py`; see the docs page `intervals`.

    `variable` is "N" (parameters), "D" (tokens) or "C" (FLOPs). Of whole curves, a law in N takes each run's last
    checkpoint, a law in D or C all but the first `window`. `count="non_embedding"` reads the column
    `N_non_embedding`, and then `predict(N=…)` means parameters without embeddings.

    The interval of `predict` is the same for every objective: posterior, noise of the target run, drift
    (`laws.intervals`). Its posterior expects noise (`laws.posterior.NOISE`); that of the point does not, so that exact
    runs give their law exactly.

    Source: nanoLM (μScaling), L(N) = a·N^b + c with N including embeddings. Raises `ConfigurationError` for an
    unknown option, `FitError` for a table with fewer than three sizes or whose loss does not fall.

    >>> runs = {"N": [1e6, 2e6, 4e6, 8e6, 16e6], "loss": [2 + 40 * n**-0.25 for n in (1e6, 2e6, 4e6, 8e6, 16e6)]}
    >>> law = PowerLaw(objective="least_squares").fit(runs)
    >>> {name: round(value, 3) for name, value in law.params_.items()}
    {'a': 40.0, 'b': -0.25, 'c': 2.0}
    >>> law.predict(N=32e6).extrapolation
    2.0
    """

    objectives: ClassVar[tuple[str, ...]] = ("bayes", *OBJECTIVES)
    equation: ClassVar[str] = "L(N) = a·N^b + c"
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"a": (0.0, np.inf), "b": (STEEPEST, 0.0), "c": (0.0, np.inf)}

    def __init__(self, objective: str = "bayes", count: str = "total", variable: str = "N", window: float = WINDOW):
        super().__init__(objective, window)
        if variable not in ("N", "D", "C"):
            raise ConfigurationError(f"variable={variable!r} is not known. Choose one of: N, D, C.")
        if count not in ("total", "non_embedding"):
            raise ConfigurationError(f"count={count!r} is not known. Choose one of: total, non_embedding.")
        if count == "non_embedding" and variable != "N":
            raise ConfigurationError(
                f"count='non_embedding' counts parameters, but variable={variable!r}. Leave count='total'."
            )
        self.count, self.variable = count, variable

    @staticmethod
    def loss(N: Any, a: float, b: float, c: float) -> Any:
        """`a·N^b + c`, nats per token."""
        return a * np.asarray(N, float) ** b + c

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as stored in JSON."""
        return {
            "objective": self.objective,
            "count": self.count,
            "variable": self.variable,
            "window": self.window,
        }

    @property
    def last_only(self) -> bool:  # type: ignore[override]
        """L(N) compares runs at one horizon, so of a curve it takes the last checkpoint only."""
        return self.variable == "N"

    @property
    def variables(self) -> tuple[str, ...]:
        """The one variable, as `predict` takes it."""
        return (self.variable,)

    @property
    def columns(self) -> dict[str, str]:
        """Variable → the column of the table that holds it."""
        return {self.variable: "N_non_embedding" if self.count == "non_embedding" else self.variable}

    @property
    def equation_text(self) -> str:
        """The equation with this law's variable."""
        return f"L({self.variable}) = a·{self.variable}^b + c"

    def _sizes(self, columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, loss and weight (mean 1) of every row."""
        x, y = columns[self.columns[self.variable]], columns["loss"]
        w = columns.get("weight", np.ones_like(y))
        return x, y, w / w.mean()

    def _estimate(self, columns: dict[str, np.ndarray]) -> tuple[dict[str, float], float]:
        x, y, w = self._sizes(columns)
        sizes = np.unique(x)
        if len(sizes) < 3:
            raise FitError(
                f"L = a·{self.variable}^b + c has three parameters and the table has {len(sizes)} distinct "
                f"{self.columns[self.variable]}{'' if len(sizes) == 1 else 's'}. Train at least 3 sizes, better 5 to 8."
            )
        if sizes[-1] / sizes[0] < 1 + 1e-6:
            raise FitError(
                f"The {self.variable} of the table differ by less than 1e-6. Train sizes that span a factor of 4 or "
                f"more."
            )
        if self.objective == "bayes":
            posterior = Posterior(Groups.of(x, y, w), noise=QUIET)
            a, b, c = posterior.curve()
            scale = posterior.scale
        else:
            a, b, c, _ = fit_power(x, y, w, self.objective, (STEEPEST, FLATTEST))
            scale = float(np.exp(np.log(x).mean()))
        if not a * (sizes[0] / scale) ** b > 1e-5 * y.mean():
            raise FitError(
                f"The loss does not fall as {self.variable} grows (from {y[x == sizes[0]].mean():.4g} at "
                f"{sizes[0]:.4g} to "
                f"{y[x == sizes[-1]].mean():.4g} at {sizes[-1]:.4g}): no power law with b < 0 to fit. Check for runs "
                f"that diverged, "
                "a learning rate that does not transfer, or swapped columns."
            )
        params = {"a": float(np.exp(np.log(a) - b * np.log(scale))), "b": b, "c": c}
        if not np.isfinite(params["a"]):
            raise FitError(
                f"a overflows with {self.variable} in these units and b = {b:.3g}. Give {self.variable} in millions."
            )
        return params, self._score(columns, params)

    def _score(self, columns: dict[str, np.ndarray], params: dict[str, float]) -> float:
        x, y, w = self._sizes(columns)
        return float(objective_value(self.objective, np.log(self.loss(x, **params)), y, w))

    def _set(self, columns: dict[str, np.ndarray], params: dict[str, float], value: float) -> None:
        super()._set(columns, params, value)
        for name in ("_posterior", "_draws"):
            self.__dict__.pop(name, None)

    @cached_property
    def _posterior(self) -> Posterior:
        return Posterior(Groups.of(*self._sizes(self._columns)))

    @cached_property
    def _draws(self) -> dict[str, np.ndarray]:
        """Posterior draws and, beside them, draws of the drift tau.

        The drift is measured with next to no prior of the noise: what the larger sizes err by counts as drift, even
        where noise might explain it. Few sizes cannot tell the two apart, and a drift is the worse one to miss.
        """
        groups = self._posterior.groups

        def score(k: int) -> tuple[np.ndarray, np.ndarray]:
            return _forecast(Posterior(groups.first(k), QUIET), groups.x[k:], groups.loss[k:])

        draws = self._posterior.draws(DRAWS)
        turn = (0.5 + np.arange(DRAWS) * 0.6180339887498949) % 1
        first = max(4, len(groups.x) - MAX_ORIGINS)
        return draws | {"tau": drift_quantiles(rolling_origin(groups.x, score, first), turn)}

    def _interval(self, at: dict[str, np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
        draws, sizes = self._draws, at[self.variable]
        smallest, largest = self._posterior.groups.x[[0, -1]]

        def mixture(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            x = sizes[rows, None]
            inside = np.log(largest / x)
            outside = np.maximum(np.maximum(-inside, np.log(smallest / x)), 0.0)
            variance = draws["sigma"] ** 2 * (1 + draws["rho"] * inside**2)
            variance += draws["tau"] ** 2 * outside ** (2 * DRIFT_POWER)
            return np.log(np.maximum(self._curves(x), 1e-300)), np.sqrt(variance)

        low, high = mixture_intervals(mixture, len(sizes), DRAWS, level)
        return np.exp(low), np.exp(high)

    def interval_data(self) -> IntervalData:
        """Posterior draws of the parameters (`a` for x as it is), noise and drift: see `IntervalData`."""
        self._check_fitted()
        draws, posterior = self._draws, self._posterior
        smallest, largest = posterior.groups.x[[0, -1]]
        a = draws["a"] * np.exp(-draws["b"] * np.log(posterior.scale))
        return IntervalData(
            {"a": a, "b": draws["b"], "c": draws["c"]}, draws["sigma"], draws["tau"],
            {self.variable: (float(smallest), float(largest))}, draws["rho"],
        )  # fmt: skip

    def _curves(self, x: Any) -> np.ndarray:
        """The loss at x, one or (n, 1), under every posterior draw."""
        d = self._draws
        return d["a"] * np.exp(d["b"] * np.log(x / self._posterior.scale)) + d["c"]

    def parameter_interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """Posterior interval of a parameter, the same for every objective, as that of `predict`.

        Raises `ConfigurationError` for an unknown parameter.
        """
        self._check_fitted()
        check_level(level)
        if name not in self.parameters:
            raise ConfigurationError(f"{name!r} is no parameter of a PowerLaw: {', '.join(self.parameters)}.")
        draws = self._draws
        values = draws["a"] * np.exp(-draws["b"] * np.log(self._posterior.scale)) if name == "a" else draws[name]
        low, high = np.quantile(values, (0.5 * (1 - level), 0.5 * (1 + level)))
        return float(low), float(high)

    def _weaknesses(self) -> list[str]:
        """Which direction the runs leave open: a steep law with a high floor fits as well as a flat one with a low
        floor.
        """
        c, name, found = self.params_["c"], self.variable, []
        if self.params_["b"] <= STEEPEST * 0.999 or self.params_["b"] >= FLATTEST * 1.001:
            found.append(
                f"b = {self.params_['b']:.4g} lies at its bound ({STEEPEST:g} to {FLATTEST:g}): the runs do not show "
                f"a power law in {name}."
            )
        if self.n_runs_ <= EXACT:
            found.append(
                "Three single runs fix three parameters and leave no residual to measure noise with: the interval "
                "rests on the prior of the noise, 0.15 to 2 % of the loss. It held in simulation where seeds differ by "
                "0.1 to 1 %, but is wider than need be where they differ by less. Add a size or seeds."
            )
        steep, flat = self._posterior.ends(0.9)
        largest = float(self._posterior.groups.loss[-1])
        if c == 0.0:
            found.append(
                f"c is at its bound 0: the runs fit a pure power law, so they do not say where the loss stops "
                f"falling. Add sizes above {self.range_[name][1]:.4g}."
            )
        elif steep[1] - flat[1] > OPEN * largest:
            found.append(
                f"c is not identified by these runs: from (b = {steep[0]:.3f}, c = {steep[1]:.3f}) to (b = "
                f"{flat[0]:.3f}, c = {flat[1]:.3f}) "
                f"the fit is as good (90 % of the posterior); a smaller |b| with a smaller c is the flat direction. "
                f"Add sizes further apart or more seeds."
            )
        return found


def _forecast(posterior: Posterior, x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log errors of the posterior's curve at larger sizes, and the standard deviations it expected."""
    a, b, c = posterior.curve()
    draws = posterior.draws(256)
    ratio = np.log(x / posterior.scale)[:, None]
    log = np.log(draws["a"] * np.exp(draws["b"] * ratio) + draws["c"])
    low, high = np.quantile(log, (0.05, 0.95), axis=1)
    distance = np.log(x / posterior.groups.x[-1])[:, None]
    noise = np.mean(draws["sigma"] ** 2 * (1 + draws["rho"] * distance**2), 1)
    centre = np.log(a * np.exp(b * ratio[:, 0]) + c)
    return np.log(loss) - centre, np.sqrt(((high - low) / 3.29) ** 2 + noise)
