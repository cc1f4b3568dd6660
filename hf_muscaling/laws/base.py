"""What every scaling law shares: fit → predict with an interval → evaluate → summary → JSON.

A law is a small class. Its `loss` is a plain static function whose argument names say what is what: the names in
`VARIABLES` are columns of the table, the others are the parameters to estimate. It adds `_estimate` (parameters from
columns) and `_interval`.
"""

from __future__ import annotations

import inspect
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from itertools import takewhile
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigurationError, FitError
from . import answers, caveats, store
from .fitting import check_objective
from .interval_data import IntervalData
from .prediction import Evaluation, Prediction
from .selection import WINDOW, check_window, select
from .sharing import SharedLaw
from .table import ANY_SIGN, MEANING, _columns, read_table, run_labels, short

VARIABLES = ("N", "D", "S", "B", "C", "S1", "S2")
MANY = 4  #: rows a size from which a table without runs' names may hold curves


def check_level(level: Any) -> float:
    """A confidence level, or `ConfigurationError` unless it lies between 0 and 1."""
    number = isinstance(level, (int, float, np.number)) and not isinstance(level, bool)
    if not number or not 0 < level < 1:
        raise ConfigurationError(f"level={short(level)} must lie between 0 and 1, for example 0.9.")
    return float(level)


class IdentificationWarning(UserWarning):
    """The runs do not determine a parameter: another value fits them as well."""


class ExtrapolationWarning(UserWarning):
    """A prediction lies far outside the fitted range."""


@cache
def _arguments(law: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Variables and parameters of a law, from the signature of its loss function."""
    names = tuple(inspect.signature(law).parameters)
    variables = tuple(takewhile(VARIABLES.__contains__, names))
    return variables, names[len(variables) :]


class ScalingLaw(SharedLaw, ABC):
    """Base of the laws; see `PowerLaw` for one.

    After `fit`: `params_` (dict, the paper's letters), `objective_value_`, `range_` ({variable: (smallest,
    largest)}), `n_runs_`, `selection_` (which rows were fitted, in words).

    Arguments of every law: `objective`; `window`, the share of each run's training, by tokens, left out at its
    beginning when the table holds whole curves; `rows`, "all" or "upper_half" (by compute) when it holds final losses.
    """

    objectives: ClassVar[tuple[str, ...]] = ()
    equation: ClassVar[str] = ""
    bounds: ClassVar[dict[str, tuple[float, float]]] = {}
    meanings: ClassVar[dict[str, str]] = {}  #: what a variable means to this law, where it is not the column's meaning
    labels: ClassVar[tuple[str, ...]] = ()  #: label columns the law uses when present, such as run_id
    params_: dict[str, float]
    objective_value_: float
    range_: dict[str, tuple[float, float]]
    selection_: str

    def __init__(self, objective: str, window: float = WINDOW, rows: str = "all"):
        self.objective = check_objective(objective, self.objectives)
        check_window(window, rows)
        self.window, self.rows = float(window), rows

    # -- what a law supplies -------------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def loss(*args: Any) -> Any:
        """The law itself, a plain function of variables and parameters."""

    @abstractmethod
    def _estimate(self, columns: dict[str, np.ndarray]) -> tuple[dict[str, float], float]:
        """Parameters and objective from validated columns."""

    @abstractmethod
    def _score(self, columns: dict[str, np.ndarray], params: dict[str, float]) -> float:
        """The objective of given parameters on given columns."""

    @abstractmethod
    def _interval(self, at: dict[str, np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the loss of a new run at each (flat) point."""

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as stored in JSON."""
        return {"objective": self.objective, "window": self.window, "rows": self.rows}

    # -- names ---------------------------------------------------------------------------------------------------------

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables of `loss`, as `predict` takes them: its leading arguments named in `VARIABLES`."""
        return _arguments(type(self).loss)[0]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters of `loss`, the paper's letters (the B of Chinchilla is not the B of a batch)."""
        return self.parameters_of()

    @classmethod
    def parameters_of(cls) -> tuple[str, ...]:
        """Names of the parameters of every fit of this law."""
        return _arguments(cls.loss)[1]

    @property
    def columns(self) -> dict[str, str]:
        """Variable → the column of the table that holds it."""
        return {name: name for name in self.variables}

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that a table must have beside the loss."""
        return tuple(self.columns.values())

    @property
    def units(self) -> dict[str, str]:
        """Units of the loss and of each variable."""
        return {"loss": MEANING["loss"]} | {n: self.meanings.get(n, MEANING[c]) for n, c in self.columns.items()}

    # -- fit and use ---------------------------------------------------------------------------------------------------

    def fit(self, table: Any) -> Any:
        """Estimate the parameters from a table of runs and return self.

        `table` holds one row per run, or one per checkpoint: a `Series`, a pandas, pyarrow or datasets table, a dict
        of columns or a list of dicts, with a column per variable and `loss` (nats per token). `weight` is used when
        present. Rows that share a `run_id` are checkpoints of one run (without that column but with `step`: rows of
        the same N, B, seed and family); `window` says how many of the first are left out, and every run then weighs
        the same. Several runs of one size may differ in seed.

        Raises `FitError` for a table the law cannot be fitted to; warns `IdentificationWarning` when a parameter
        stays open.
        """
        columns, self.selection_ = self._selected(table)
        try:
            params, value = self._estimate(columns)
        except FitError as error:
            if not self.selection_.startswith("curves"):
                raise
            remedy = (
                f" window=0 keeps all of a run (window={self.window:g} here)." if "left out" in self.selection_ else ""
            )
            raise FitError(f"{error} The rows left are of {self.selection_.split(';')[0]}.{remedy}") from None
        self._set(columns, params, value)
        for message in self.caveats():
            warnings.warn(message, IdentificationWarning, stacklevel=2)
        return self

    def caveats(self) -> list[str]:
        """What the runs leave open or contradict, one sentence each: what `fit` warned of and `summary` notes."""
        self._check_fitted()
        return [*self._weaknesses(), *caveats.one_line(self), *caveats.scatter(self), *caveats.strays(self)]

    def predict(self, *, level: float = 0.9, **at: Any) -> Prediction:
        """The loss of a run that was not trained, with an interval that holds it with probability `level`.

        Variables are keywords (`N=7e9`), scalars or arrays that broadcast. Raises `ConfigurationError` for an unknown
        or missing variable, a value that is not a positive number, or a level outside (0, 1); warns
        `ExtrapolationWarning` past 10 times the fitted range, above its largest or below its smallest value, and off
        the one D/N that all runs had.
        """
        self._check_fitted()
        level = check_level(level)
        points = self._points(at)
        try:
            shape = np.broadcast_shapes(*(v.shape for v in points.values()))
        except ValueError:
            shapes = ", ".join(f"{name} {v.shape}" for name, v in points.items())
            raise ConfigurationError(f"predict() got arrays that do not go together: {shapes}.") from None
        flat = {name: np.broadcast_to(v, shape).ravel() for name, v in points.items()}
        loss = np.asarray(self.loss(*flat.values(), *self.params_.values()), float)
        low, high = self._interval(flat, level)
        low, high = np.minimum(low, loss), np.maximum(high, loss)
        beyond = {name: flat[name] / self.range_[name][1] for name in self.range_}
        below = {name: self.range_[name][0] / flat[name] for name in self.range_}
        factor = np.max(list(beyond.values()), axis=0)
        for message in [*caveats.far(self, beyond, below), *caveats.off_line(self, flat)]:
            warnings.warn(message, ExtrapolationWarning, stacklevel=2)

        def as_given(value: np.ndarray) -> float | np.ndarray:
            return float(value[0]) if shape == () else value.reshape(shape)

        return Prediction(
            as_given(loss),
            as_given(low),
            as_given(high),
            level,
            as_given(factor),
            {n: as_given(v) for n, v in beyond.items()},
            {n: as_given(v) for n, v in flat.items()},
            {n: as_given(v) for n, v in below.items()},
        )

    def interval_data(self) -> IntervalData:
        """What the interval of `predict` is computed from, as plain arrays: see `IntervalData`.

        Raises `ConfigurationError` for a law whose interval has another form.
        """
        raise ConfigurationError(
            f"A {type(self).__name__} does not give its interval as data: use PowerLaw, ChinchillaLaw, KaplanLaw or "
            f"KaplanStepLaw."
        )

    def minimum_loss(self, **at: Any) -> Any:
        """The loss, nats per token, with every variable that is not given at infinity: `minimum_loss(N=7e9)` is what a
        model of 7e9 parameters reaches at best, `minimum_loss()` what any model does.
        """
        self._check_fitted()
        return answers.minimum_loss(self, at)

    def solve(self, variable: str, *, loss: Any, **at: Any) -> Any:
        """The value of a variable at which the predicted loss is `loss`: "what N reaches 2.0?".

        `solve("N", loss=2.0, D=1e12)` gives parameters, `solve("D", loss=2.0, N=7e9)` tokens; inf where no value
        reaches the loss. Scalars or arrays that broadcast. Raises `ConfigurationError` for an unknown or missing
        variable.
        """
        self._check_fitted()
        return answers.solve(self, variable, loss, at)

    def evaluate(self, table: Any, level: float = 0.9) -> Evaluation:
        """Predict every run of a table and compare: ARE = mean |L_fit - L| / L (Hitchhiker's Guide) and coverage of
        the interval.
        """
        self._check_fitted()
        columns = self._read(table)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)
            p = self.predict(level=level, **{name: columns[column] for name, column in self.columns.items()})
        errors = p.loss / columns["loss"] - 1
        inside = (columns["loss"] >= p.low) & (columns["loss"] <= p.high)
        return Evaluation(float(np.mean(np.abs(errors))), float(np.mean(inside)), level, errors, p)

    def summary(self) -> str:
        """The fit in words: equation, parameters, what was minimised, range and residuals."""
        self._check_fitted()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the table: `fit` saw all of it, and said so
            own = self.evaluate(self._columns)
        lines = [f"{type(self).__name__}: {self.equation_text}", *(f"  {k} = {v:.6g}" for k, v in self.params_.items())]
        rows = "rows" if "weight" in self._columns else "runs"
        lines += [
            f"  objective {self.objective}: {self.objective_value_:.6g}",
            f"  fitted to {self.selection_}",
            f"  {self.n_runs_} {rows}, residuals: mean {100 * own.are:.2f} %, worst "
            f"{100 * float(np.max(np.abs(own.errors))):.2f} %",
        ]
        lines += [f"  {n} from {lo:.4g} to {hi:.4g} ({self.units[n]})" for n, (lo, hi) in self.range_.items()]
        lines += [f"  note: {message}" for message in self.caveats()]
        return "\n".join(lines)

    def plot(self, kind: str = "fit", *, level: float = 0.9, reach: float = 10.0) -> Any:
        """A matplotlib figure: "fit" (the rows, the law with its interval, extrapolation shaded), "residuals", or
        "contours" (laws with batch sizes: steps and tokens to several losses; laws in N and D: those of equal loss);
        see `laws.plots.plot`.
        """
        from .plots import plot

        return plot(self, kind, level, reach)

    # -- JSON ----------------------------------------------------------------------------------------------------------

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The fitted law as JSON text: parameters, units, range, objective and the rows fitted; written to `path`
        when given.
        """
        self._check_fitted()
        return store.write(self, path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Any:
        """The law stored by `to_json`, from a path, the text or the parsed dict; predictions are the same to the last
        bit.

        Raises `RecordError` when the text is not such a record, holds impossible values, or was edited by hand.
        """
        return store.read(cls, source)

    # -- inside --------------------------------------------------------------------------------------------------------

    @property
    def equation_text(self) -> str:
        """The equation, with this law's own variable."""
        return self.equation

    @property
    def n_runs_(self) -> int:
        """Number of rows fitted."""
        return len(self._columns["loss"])

    def _read(self, table: Any) -> dict[str, np.ndarray]:
        columns = read_table(table, [*self.columns.values(), "loss"], ["weight", *self.labels])
        if "weight" in columns and not columns["weight"].all():
            keep = columns["weight"] > 0
            columns = {name: values[keep] for name, values in columns.items()}
        return columns

    #: a law that does not know how long a run was keeps each run's last checkpoint only
    last_only: ClassVar[bool] = False

    def _selected(self, table: Any) -> tuple[dict[str, np.ndarray], str]:
        """The rows to fit, and which they are in words."""
        raw = dict(_columns(table))
        labels = run_labels(raw)
        repeated = labels is not None and len(set(labels)) < len(labels)
        if labels is not None and (repeated or "run_id" in self.labels):
            raw["run_id"] = labels
        extra = ["weight", *self.labels]
        if repeated:
            extra += ["run_id", next((name for name in ("D", "S", "step", "C") if name in raw), "run_id")]
        columns = read_table(raw, [*self.columns.values(), "loss"], extra)
        if "weight" in columns and not columns["weight"].all():
            keep = columns["weight"] > 0
            columns = {name: values[keep] for name, values in columns.items()}
        words = self._warn_of_table(raw)
        if labels is None and "N" in columns and len(np.unique(columns["N"])) * MANY <= len(columns["N"]):
            words += "; each counted as a run of its own, as no run_id or step says that some are checkpoints of one"
        selection = select(columns, self.window, self.rows, self.last_only)
        order = [*self.columns.values(), "loss", "weight", *self.labels]
        return {name: selection.columns[name] for name in order if name in selection.columns}, selection.text + words

    def _warn_of_table(self, raw: Mapping[str, Any]) -> str:
        """Warn of what no column of the law shows, and return the words that end the sentence on what was fitted."""
        found = [(caveats.families(raw), ""), caveats.precisions(raw)]
        if "D" in self.columns.values():
            found.append(caveats.repeated_data(raw))
        found += [
            caveats.magnitudes(raw, name) for name in self.columns.values() if name in ("N", "N_non_embedding", "D")
        ]
        if len(self.columns) == 1:
            found.append(caveats.horizons(raw, *self.columns))
        for messages, _ in found:
            for message in messages:
                warnings.warn(message, UserWarning, stacklevel=5)
        return "".join(words for _, words in found)

    def _set(self, columns: dict[str, np.ndarray], params: dict[str, float], value: float) -> None:
        """Take over a fit; also how a stored one comes back."""
        self._columns, self.params_, self.objective_value_ = columns, params, value
        self.range_ = {n: (float(columns[c].min()), float(columns[c].max())) for n, c in self.columns.items()}

    def _weaknesses(self) -> list[str]:
        """What the runs leave open, one sentence each."""
        return []

    def _check_fitted(self) -> None:
        if not hasattr(self, "params_"):
            raise FitError(
                f"This {type(self).__name__} is not fitted yet. Call .fit(table) first, or load one with "
                f".from_json(path)."
            )

    def _points(self, at: Mapping[str, Any]) -> dict[str, np.ndarray]:
        unknown, missing = set(at) - set(self.variables), [n for n in self.variables if n not in at]
        if unknown or missing:
            name = sorted(unknown)[0] if unknown else missing[0]
            raise ConfigurationError(
                f"predict() {'does not know' if unknown else 'needs'} {name!r}: this law takes "
                f"{', '.join(f'{n} ({self.units[n]})' for n in self.variables)}."
            )
        points = {}
        for name in self.variables:
            try:
                value = np.asarray(at[name])
                number = value.astype(float) if value.dtype.kind in "iufO" else None
            except (TypeError, ValueError, OverflowError):
                number = None
            good = number is not None and number.size and np.isfinite(number).all()
            if number is None or not good or not (name in ANY_SIGN or (number > 0).all()):
                raise ConfigurationError(
                    f"predict({name}=…) expects finite numbers > 0 ({self.units[name]}), found {short(at[name])}."
                )
            points[name] = number
        return points
