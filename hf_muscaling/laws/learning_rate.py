"""How the best learning rate moves with token horizon and batch size."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import brentq
from scipy.stats import t as student

from ..errors import ConfigurationError, FitError, MuScalingError
from .answers import plain, positive
from .base import ExtrapolationWarning, IdentificationWarning, check_level
from .optimum import (
    ALIKE,
    SHARE,
    Optimum,
    Window,
    cells_of,
    common_skew,
    dependence,
    edge,
    landscape_of,
    noise_of,
    one_row_a_run,
    optimum_of,
)
from .store import check_format, lists, mapping, number, parse, refuse, written
from .table import _columns, read_table

FORMAT, FORMAT_VERSION = "hf_muscaling.learning_rate_law", 1
_KEYS = ("format", "format_version", "equation", "settings", "units", "params", "rows")
BEYOND = 1.05  #: times outside the fitted horizons or batch sizes past which `predict` warns


@dataclass(frozen=True)
class LearningRatePrediction:
    """The learning rate at base width for a horizon D and a batch size B (tokens), scalars or arrays as these.

    `low` and `high` bound the best rate there with probability `level`; `beyond` says how many times outside the
    fitted range D and B lie, on either side (1: inside).
    """

    lr: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    level: float
    D: float | np.ndarray
    B: float | np.ndarray
    beyond: Mapping[str, float | np.ndarray]

    def __str__(self) -> str:
        lines = []
        for i in np.ndindex(*np.shape(self.lr)):
            D, B, lr, low, high = (float(np.asarray(v)[i]) for v in (self.D, self.B, self.lr, self.low, self.high))
            out = [f"{n} {float(np.asarray(v)[i]):.3g} × outside" for n, v in self.beyond.items()
                   if np.asarray(v)[i] > BEYOND]  # fmt: skip
            lines.append(
                f"D = {D:.4g}, B = {B:.4g}: learning rate {lr:.3g}, {100 * self.level:g} % interval [{low:.3g}, "
                f"{high:.3g}]" + "".join(f", {text} the fitted range" for text in out)
            )
        return "\n".join(lines)


class LearningRateLaw:
    """The best learning rate at base width, `lr*(D, B) = lr0·(D/D0)^-gamma·(B/B0)^delta`.

    D is the token horizon (tokens of the whole run, whose schedule ends there), B the batch size (tokens per optimizer
    step), D0 and B0 the geometric means of those fitted. First stage: in every cell (D, B) a quadratic in log lr around
    the lowest loss (rates up to 3 % above it), with one skew that all cells share; a cell whose lowest loss lies at the
    end of its rates, or whose curve is not surely convex, has no optimum and is left out. Second stage: log lr* over
    log D and log B, each cell weighted by its standard error and by a scatter about the law that all share
    (random-effects regression: the scatter by Paule and Mandel's equation, the standard errors after Knapp and
    Hartung), with t intervals.

    `gamma` and `delta` are estimated unless given. Given a number they are fixed: `delta=0.5` is the square-root rule
    for Adam (Malladi et al. 2022), which needs no runs at several batch sizes. An exponent that is neither given nor
    varied in the table stays unknown, and `predict` then takes the fitted D or B only.

    Sources: power laws in D for the best rate: Bjorck et al. 2025, Scaling Optimal LR Across Token Horizons (falling
    with D at fixed batch size); in N and D: Li et al. 2025, Step Law (N^-0.713·D^0.307, rising with D because the batch
    grows along). The form with a separate batch exponent, the window of rates and the tests are this project's choices.
    The law holds for the recipe it was fitted to: base width, schedule (warm-up as the same share), optimizer.

    Raises `FitError` when the losses do not depend on the rate or too few cells have an optimum ("not identified");
    warns `IdentificationWarning` for cells that were left out.

    >>> rates = 0.01 * 2.0 ** np.arange(-3, 4)
    >>> best = lambda d, b: 0.02 * (d / 1e6) ** -0.3 * (b / 1e3) ** 0.5
    >>> runs = [{"D": d, "B": b, "lr": lr, "loss": 3 + 0.02 * np.log(lr / best(d, b)) ** 2}
    ...         for d in (5e5, 1e6, 2e6) for b in (5e2, 1e3, 2e3) for lr in rates]
    >>> law = LearningRateLaw().fit(runs)
    >>> round(law.params_["gamma"], 3), round(law.params_["delta"], 3)
    (0.3, 0.5)
    >>> round(law.predict(D=1e6, B=1e3).lr, 4)
    0.02
    """

    equation: ClassVar[str] = "lr* = lr0·(D/D0)^-gamma·(B/B0)^delta"
    units: ClassVar[dict[str, str]] = {
        "lr": "learning rate at base width", "D": "training tokens", "B": "tokens per batch", "loss": "nats per token",
    }  # fmt: skip
    params_: dict[str, float]
    range_: dict[str, tuple[float, float]]
    cells_: list[Optimum]

    def __init__(self, gamma: float | None = None, delta: float | None = None):
        for name, value in (("gamma", gamma), ("delta", delta)):
            good = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)
            if value is not None and not good:
                raise ConfigurationError(f"{name}={value!r} must be a number, or None to estimate it.")
        self.gamma = None if gamma is None else float(gamma)
        self.delta = None if delta is None else float(delta)

    # -- fit and use ---------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as stored in JSON."""
        return {"gamma": self.gamma, "delta": self.delta}

    def fit(self, table: Any) -> LearningRateLaw:
        """Estimate the law from a table of runs and return self; see the class.

        Columns `lr` (at base width), `D`, `B`, `loss`; `seed` is used when present. Rows that share a `run_id` are one
        run's checkpoints: its peak rate and its last loss count. All runs are of one width and recipe.
        """
        columns = self._read(table)
        cells = cells_of(columns)
        usable = [rows for rows in cells if len(np.unique(np.round(np.log(columns["lr"][rows]), 6))) >= 3]
        if not usable:
            raise FitError(
                "No horizon and batch size has runs at three learning rates or more. Sweep the rate at each: "
                "recipes/horizon.py does."
            )
        landscapes = [landscape_of(columns, rows) for rows in usable]
        few = (
            "Not identified: three rates a cell and one seed leave nothing to tell the noise from. Add rates or seeds."
        )
        if all(len(one.loss) < 4 for one in landscapes):
            raise FitError(few)
        self.chance_ = dependence(landscapes)
        if self.chance_ > SHARE:
            raise FitError(
                f"Not identified: the loss does not depend on the learning rate beyond chance (probability "
                f"{self.chance_:.2f} of so much dependence in a flat table). Train longer, spread the rates wider, or "
                "add seeds."
            )
        inner = [k for k, one in enumerate(landscapes) if not edge(one)]
        windows = [Window(landscapes[k]) for k in inner]
        log_D = np.log([float(np.median(columns["D"][usable[k]])) for k in inner])
        skew, doubt = common_skew(windows, log_D)
        curves = [window.quadratic(skew) for window in windows]
        found = dict(zip(inner, curves, strict=True))
        noise, dof = noise_of(curves, log_D)
        if found and not any(q.dof for q in curves):
            raise FitError(few)
        known = {k: (float(s), float(d)) for k, s, d in zip(inner, noise, dof, strict=True)}
        self.noise_ = float(np.median(noise)) if inner else math.nan
        self.cells_ = [
            optimum_of(columns, rows, one, found.get(k), *known.get(k, (math.inf, 1.0)))
            for k, (rows, one) in enumerate(zip(usable, landscapes, strict=True))
        ]
        self._columns = columns
        moved = [window.quadratic(skew + doubt).away - window.quadratic(skew).away for window in windows]
        self._doubt = float(np.nanmean(np.abs(moved))) if np.isfinite(moved).any() else 0.0
        self._regress()
        for message in self.caveats():
            warnings.warn(message, IdentificationWarning, stacklevel=2)
        return self

    def predict(self, *, D: Any, B: Any, level: float = 0.9) -> LearningRatePrediction:
        """The best learning rate for a token horizon D at batch size B (tokens per step), with its interval.

        Warns `ExtrapolationWarning` outside the fitted horizons and batch sizes. Raises `ConfigurationError` for values
        that are not positive numbers, and for a D or B other than the fitted one where its exponent is unknown.
        """
        self._check_fitted()
        level = check_level(level)
        D, B = positive("D", D, "training tokens"), positive("B", B, "tokens per batch")
        try:
            D, B = np.broadcast_arrays(D, B)
        except ValueError:
            raise ConfigurationError(f"predict() got arrays of D {D.shape} and B {B.shape}.") from None
        beyond = {}
        for name, value in (("D", D), ("B", B)):
            low, high = self.range_[name]
            factor = np.maximum(np.maximum(value / high, low / value), 1.0)
            beyond[name] = plain(factor)
            exponent = "gamma" if name == "D" else "delta"
            if exponent not in self.params_ and (factor > math.exp(ALIKE)).any():
                rule = " (0.5 is the square-root rule for Adam)" if name == "B" else ""
                raise ConfigurationError(
                    f"The runs all have {name} ≈ {high:.4g}, so {exponent} is unknown and {name} = "
                    f"{float(np.ravel(value)[np.argmax(factor)]):.4g} cannot be predicted. Add runs at another "
                    f"{name}, or state LearningRateLaw({exponent}=…){rule}."
                )
            if (factor > BEYOND).any():
                warnings.warn(
                    f"{name} lies {float(factor.max()):.3g} times outside the fitted range ({low:.4g} to {high:.4g}): "
                    f"the rate there rests on the power law. Add a horizon nearer to it, or search around it.",
                    ExtrapolationWarning,
                    stacklevel=2,
                )
        at = self._design(np.log(D).ravel(), np.log(B).ravel())
        mean = at @ self._beta + self._offset(np.log(D).ravel(), np.log(B).ravel())
        spread = np.sqrt(np.einsum("ij,jk,ik->i", at, self._covariance, at) + self.scatter_**2)
        half = student.ppf(0.5 + level / 2, self._dof) * spread

        def as_given(value: np.ndarray) -> Any:
            return plain(value.reshape(D.shape))

        return LearningRatePrediction(
            as_given(np.exp(mean)), as_given(np.exp(mean - half)), as_given(np.exp(mean + half)), level,
            plain(D), plain(B), beyond,
        )  # fmt: skip

    def parameter_interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """The interval of an exponent, `gamma` or `delta`, or of `lr0`; a fixed one is its value twice."""
        self._check_fitted()
        level = check_level(level)
        if name not in self.params_:
            raise ConfigurationError(f"{name!r} is not among the parameters {', '.join(self.params_)}.")
        if name not in self._names:
            return self.params_[name], self.params_[name]
        k = self._names.index(name)
        half = student.ppf(0.5 + level / 2, self._dof) * math.sqrt(self._covariance[k, k])
        middle = float(self._beta[k])
        ends = (middle - half, middle + half)
        if name == "gamma":
            ends = (-ends[1], -ends[0])
        return (math.exp(ends[0]), math.exp(ends[1])) if name == "lr0" else ends

    def penalty(self, factor: float) -> float:
        """The share by which the loss rises at a rate off its best one by a factor, from the cells' median curvature.

        A quadratic in log lr: right for factors up to 2, too low for rates that are far too large.
        """
        self._check_fitted()
        curves = [cell.curve for cell in self.cells_ if cell.lr is not None]
        return float(np.median(curves)) * math.log(float(positive("factor", factor, "a ratio of rates"))) ** 2

    def summary(self) -> str:
        """The fit in words: exponents with intervals, every cell's optimum, what was left out and why."""
        self._check_fitted()
        lines = [f"LearningRateLaw: {self.equation}"]
        for name, value in self.params_.items():
            low, high = self.parameter_interval(name)
            how = f", 90 % interval [{low:.4g}, {high:.4g}]" if name in self._names else " (stated)"
            lines.append(f"  {name} = {value:.6g}" + ("" if name in ("D0", "B0") else how))
        for name, letter in (("gamma", "D"), ("delta", "B")):
            if name not in self.params_:
                lines.append(f"  {name} is unknown: the runs all have one {letter}")
        lines += [
            f"  scatter of the optima about the law: a factor of {math.exp(self.scatter_):.3g}",
            f"  noise of one run's loss, at the median cell, {100 * self.noise_:.2g} %; a rate off by 2 costs "
            f"{100 * self.penalty(2):.2g} %",
            f"  {len(self._columns['loss'])} runs; the loss depends on the rate (chance {self.chance_:.3f})",
        ]
        for c in self.cells_:
            best = f"lr* = {c.lr:.3g}, ± {100 * c.error:.0f} %" if c.lr is not None else c.status
            lines.append(f"  D = {c.D:.4g}, B = {c.B:.4g}: {best} ({c.runs} runs)")
        return "\n".join([*lines, *(f"  note: {message}" for message in self.caveats())])

    def plot(self, kind: str = "fit", *, level: float = 0.9, reach: float = 4.0) -> Any:
        """A matplotlib figure: "fit" (optima over D with the law, `reach` times beyond shaded) or "landscapes"."""
        from .learning_rate_plots import plot_learning_rates

        return plot_learning_rates(self, kind, level, reach)

    # -- JSON ----------------------------------------------------------------------------------------------------------

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The fitted law as JSON text with the rows it was fitted to, written to `path` when given."""
        self._check_fitted()
        record: dict[str, Any] = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "equation": self.equation, "settings": self.settings(),
            "units": self.units, "params": self.params_, "rows": lists(self._columns),
        }  # fmt: skip
        return written(record, path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> LearningRateLaw:
        """The law stored by `to_json`: its rows are fitted again and must give the parameters stored.

        Raises `RecordError` when the text is no such record or was edited.
        """
        record, where = parse(source)
        check_format(record, where, FORMAT, FORMAT_VERSION, _KEYS)
        settings, params = mapping(record, "settings", where), mapping(record, "params", where)
        try:
            law = cls(**settings)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said when it was fitted; `summary` says it again
                law.fit(dict(mapping(record, "rows", where)))
        except (TypeError, MuScalingError, ValueError, OverflowError) as error:
            refuse(where, f"its settings and rows do not give a learning-rate law ({error})")
        if set(params) != set(law.params_):
            refuse(where, f"its params are not {', '.join(law.params_)}")
        for name, own in law.params_.items():
            value = number(params[name], f"params[{name!r}]", where)
            if not math.isclose(value, own, rel_tol=1e-6, abs_tol=1e-9):
                refuse(where, f"params do not go with the rows: {name} is {own:.6g} and not {value:.6g}")
        return law

    # -- inside --------------------------------------------------------------------------------------------------------

    def _read(self, table: Any) -> dict[str, np.ndarray]:
        raw = dict(_columns(table))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two seeds may agree, and small models see few tokens
            columns = read_table(raw, ["lr", "D", "B", "loss"], ["seed", "run_id"])
        if "run_id" in columns:
            columns = one_row_a_run(columns)
        columns.setdefault("seed", np.zeros(len(columns["loss"]), object))
        columns["seed"] = np.array([str(v) for v in columns["seed"]], object)
        if not (columns["lr"] > 0).all():
            raise FitError("Column 'lr' holds 0: give every run its peak learning rate at base width.")
        return {name: columns[name] for name in ("lr", "D", "B", "loss", "seed")}

    def _regress(self) -> None:
        """The second stage, over the cells that have an optimum."""
        good = [c for c in self.cells_ if c.lr is not None]
        if good:
            D, B = (np.log([getattr(c, name) for c in good]) for name in ("D", "B"))
            self._centre = {"D": float(D.mean()), "B": float(B.mean())}
            varied = {"gamma": bool(np.ptp(D) > ALIKE), "delta": bool(np.ptp(B) > ALIKE)}
            self._names = ["lr0", *(n for n in varied if getattr(self, n) is None and varied[n])]
        if not good or len(good) <= len(self._names):
            reasons = "; ".join(f"D = {c.D:.4g}, B = {c.B:.4g}: {c.status}" for c in self.cells_ if c.lr is None)
            raise FitError(
                f"Not identified: {len(good)} of {len(self.cells_)} horizons and batch sizes have an optimum, and the "
                f"law needs {len(self._names) + 1 if good else 3} ({reasons or 'no other was swept'}). Extend the "
                "rates there, or add seeds."
            )
        y = np.log(np.array([c.lr for c in good], float)) - self._offset(D, B)
        X, variance = self._design(D, B), np.array([c.error**2 for c in good])
        if np.linalg.matrix_rank(X) < X.shape[1]:
            raise FitError(
                "Not identified: in these runs D and B move together, so that gamma and delta cannot be told apart. "
                "Add a batch size at one horizon, or state one of them."
            )
        self._dof = len(good) - X.shape[1]

        def solved(tau2: float) -> tuple[np.ndarray, np.ndarray, float]:
            weight = 1 / (variance + tau2)
            inverse = np.linalg.inv((X.T * weight) @ X)
            beta = inverse @ (X.T @ (weight * y))
            return beta, inverse, float((weight * (y - X @ beta) ** 2).sum())

        tau2 = 0.0
        if solved(0.0)[2] > self._dof:
            tau2 = brentq(lambda t: solved(t)[2] - self._dof, 0.0, 10 * float(np.ptp(y)) ** 2 + 1e-9)
        self._beta, inverse, rest = solved(tau2)
        self._covariance = inverse * max(rest / self._dof, 1.0)
        self._covariance[0, 0] += self._doubt**2  # the skew moves all optima together
        self.scatter_ = math.sqrt(tau2)
        values = dict(zip(self._names, map(float, self._beta), strict=True))
        self.params_ = {"lr0": math.exp(values["lr0"])}
        stated = {"gamma": self.gamma, "delta": self.delta}
        for name, sign in (("gamma", -1.0), ("delta", 1.0)):
            if name in values:
                self.params_[name] = sign * values[name]
            elif stated[name] is not None:
                self.params_[name] = float(stated[name])  # type: ignore[arg-type]
        self.params_ |= {f"{n}0": math.exp(self._centre[n]) for n in ("D", "B")}
        self.range_ = {n: (float(np.exp(v.min())), float(np.exp(v.max()))) for n, v in (("D", D), ("B", B))}

    def _design(self, log_D: np.ndarray, log_B: np.ndarray) -> np.ndarray:
        terms = {"lr0": np.ones_like(log_D), "gamma": log_D - self._centre["D"], "delta": log_B - self._centre["B"]}
        return np.column_stack([terms[name] for name in self._names])

    def _offset(self, log_D: np.ndarray, log_B: np.ndarray) -> np.ndarray:
        """What stated exponents add."""
        return -(self.gamma or 0.0) * (log_D - self._centre["D"]) + (self.delta or 0.0) * (log_B - self._centre["B"])

    def caveats(self) -> list[str]:
        """The cells left out, one sentence each: what `fit` warned of and `summary` notes."""
        self._check_fitted()
        lost = [c for c in self.cells_ if c.lr is None]
        return [f"Left out: D = {c.D:.4g}, B = {c.B:.4g}: {c.status}." for c in lost]

    def _check_fitted(self) -> None:
        if not hasattr(self, "params_"):
            raise FitError("This LearningRateLaw is not fitted yet. Call .fit(table) first, or .from_json(path).")
