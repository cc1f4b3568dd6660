"""How well a law predicts models larger than those it was fitted to, measured the way the Hitchhiker's Guide does.

Fit on the small runs, score at the largest: ARE = |L_fit - L| / L averaged over the target's last checkpoints, with the
coverage and the width of the interval beside it. Order is by size, never at random: a random hold-out interpolates.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ConfigurationError, FitError
from . import caveats
from .base import IdentificationWarning, ScalingLaw
from .hold_out import COMPUTE, OrderedRuns
from .regression import RegressionLaw
from .together import estimate_together

LAST = 0.3  #: share of a target's training that is scored, the Guide's


@dataclass(frozen=True)
class Target:
    """One held-out run: `loss` and `predicted` are means over the checkpoints scored, nats per token.

    `are` is the mean |L_fit - L| / L there, `coverage` the share of them inside [`low`, `high`] (means too),
    `extrapolation` how many times larger N is than the largest fitted (`NaN` when the table has no N).
    """

    run: str
    N: float
    loss: float
    predicted: float
    low: float
    high: float
    are: float
    coverage: float
    extrapolation: float
    checkpoints: int
    models: int

    @property
    def half_width(self) -> float:
        """Half of the interval's width over the predicted loss."""
        return 0.5 * (self.high - self.low) / self.predicted


@dataclass(frozen=True)
class Extrapolation:
    """What `evaluate_extrapolation` found: means over targets, each target counting the same.

    `are` (mean |L_fit - L| / L), `coverage` (share of scored checkpoints inside the interval), `half_width` (median
    over targets, relative to the prediction; NaN without intervals), `targets`, `skipped` (origins that could not be
    fitted, with the reason), `law` (fitted, of the last origin), `order` (what runs are small or large by).
    """

    are: float
    coverage: float
    half_width: float
    level: float
    targets: tuple[Target, ...]
    skipped: tuple[str, ...]
    law: ScalingLaw
    order: str = "N"

    def __str__(self) -> str:
        lines = [
            f"{type(self.law).__name__}: ARE {100 * self.are:.2f} % over {len(self.targets)} target"
            f"{'s' * (len(self.targets) > 1)}"
        ]
        if np.isfinite(self.half_width):
            lines[0] += (
                f", {100 * self.coverage:.0f} % inside the {100 * self.level:g} % interval, "
                f"median half-width {100 * self.half_width:.2f} %"
            )
        for t in self.targets[:20]:
            interval = f" [{t.low:.4f}, {t.high:.4f}]" if np.isfinite(t.low) else ""
            size = f" (N {t.N:.4g}, {t.extrapolation:.3g} × the largest fitted)" if np.isfinite(t.N) else ""
            lines.append(
                f"  {t.run}{size}: predicted {t.predicted:.4f}{interval}, actual {t.loss:.4f}, "
                f"ARE {100 * t.are:.2f} %, from {t.models} {'sizes' if np.isfinite(t.N) else f'distinct {self.order}'}"
            )
        if len(self.targets) > 20:
            lines.append(f"  … and {len(self.targets) - 20} more")
        return "\n".join([*lines, *(f"  skipped: {reason}" for reason in self.skipped)])


def evaluate_extrapolation(
    table: Any,
    law: ScalingLaw | type[ScalingLaw],
    target: Any = "largest",
    *,
    seen: float = 1.0,
    models: int | None = None,
    last: float = LAST,
    level: float | None = 0.9,
    smallest: int = 3,
) -> Extrapolation:
    """Fit a law on the small runs of a table and score it on larger ones it has not seen.

    * `table`: as for `law.fit`; rows that share a `run_id` are checkpoints of one run. One family only;
    * `law`: a law to copy (unfitted or not, its settings count), or a class;
    * `target`: "largest" (default; every run of the largest N), "rolling" (ordered hold-out: each size in turn is
      predicted from the smaller ones), a number (every run of at least that N), or a run_id or list of them. Fitted
      are always the runs smaller than the smallest target. "largest_compute" orders by training FLOPs instead (C, or
      6·N·D at a run's end): targets are the runs of at least half the largest, fitted are those of less;
    * `seen`: fit on this first share of each small run's training (the Guide's percentage of training);
    * `models`: fit on this many of the smallest models only (the Guide's number of models);
    * `last`: score the checkpoints in this last share of a target's training, by tokens (of a law that does not know
      how long a run was, such as L(N), the last one);
    * `level`: of the interval; None skips intervals (1000 laws in seconds) and leaves coverage NaN;
    * `smallest`: fewest sizes an origin of "rolling" may have.

    Size is N where the law uses it or the table has it, otherwise the law's own variable. Raises `ConfigurationError`
    for an impossible option, `FitError` when nothing is left to fit or to score.

    Source: Choshen et al. 2024, A Hitchhiker's Guide to Scaling Law Estimation (ARE at the largest model; a target's
    last 30 % is what its published code scores).

    >>> from hf_muscaling.laws import ChinchillaLaw
    >>> n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 3e10, 6)))
    >>> runs = {"N": n, "D": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37}
    >>> found = evaluate_extrapolation(runs, ChinchillaLaw("huber"), level=None)
    >>> len(found.targets), found.are < 1e-4
    (6, True)
    """
    unfitted = prototype(law)
    _check_options(seen, models, last, level, smallest)
    runs = OrderedRuns.of(table, unfitted)
    unfitted._warn_of_table(runs.raw)
    if isinstance(target, str) and target == COMPUTE:
        runs = runs.by_compute()
    if isinstance(target, str) and target == "rolling":
        origins = [np.flatnonzero(runs.size == size) for size in np.unique(runs.size)[smallest:]]
        if not origins:
            raise FitError(
                f"A rolling hold-out needs more than {smallest} sizes, the table has {len(np.unique(runs.size))}. "
                "Add sizes, or lower smallest=."
            )
    else:
        origins = [runs.targets(target)]
    found: list[Target] = []
    skipped: list[str] = []
    fitted = None
    for rows in origins:
        try:
            train = runs.before(rows, seen, models)
            fitted = _fit(prototype(unfitted), runs.take(train))
            found += _score(fitted, runs, rows, train, last, level)
        except FitError as error:
            if len(origins) == 1:
                raise
            skipped.append(f"target {runs.key} {runs.size[rows[0]]:.4g}: {error}")
    if fitted is None or not found:
        raise FitError(f"No origin of the table could be fitted. The last reason: {skipped[-1]}")
    for message in caveats.scatter(fitted):
        warnings.warn(message, IdentificationWarning, stacklevel=2)
    return _summed(found, skipped, fitted, level, runs.key)


def evaluate_together(
    table: Any, law: RegressionLaw, target: Any, settings: Sequence[tuple[float, float, int]], last: float = LAST
) -> list[float]:
    """The ARE that `evaluate_extrapolation` gives for each (window, seen, models) without intervals, NaN where no law
    can be fitted; for the laws of `together.batched`.
    """
    found = [float("nan")] * len(settings)
    try:
        runs = OrderedRuns.of(table, law)
        runs = runs.by_compute() if isinstance(target, str) and target == COMPUTE else runs
        targets = runs.targets(target)
    except FitError:
        return found
    able, parts = [], []
    for i, (window, seen, models) in enumerate(settings):
        one = type(law)(**{**law.settings(), "window": window})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                train = runs.before(targets, seen, models)
                columns = one._selected(runs.take(train))[0]
            except FitError:
                continue
        able.append((i, one, train))
        parts.append(columns)
    for (i, one, train), columns, params in zip(able, parts, estimate_together(law, parts), strict=True):
        if params is not None:
            one._set(columns, params, float("nan"))
            found[i] = float(np.mean([t.are for t in _score(one, runs, targets, train, last, None)]))
    return found


def _summed(
    found: Sequence[Target], skipped: Sequence[str], law: ScalingLaw, level: float | None, order: str
) -> Extrapolation:
    return Extrapolation(
        float(np.mean([t.are for t in found])),
        float(np.mean([t.coverage for t in found])),
        float(np.median([t.half_width for t in found])),
        float("nan") if level is None else float(level),
        tuple(found),
        tuple(skipped),
        law,
        order,
    )


def prototype(law: Any) -> ScalingLaw:
    """A fresh, unfitted law with the same settings."""
    if inspect.isclass(law) and issubclass(law, ScalingLaw) and law.objectives:
        build: Any = law
        return build()
    if isinstance(law, ScalingLaw):
        return type(law)(**law.settings())
    raise ConfigurationError(
        f"law={str(law)[:60]!r} is not a law. Pass one, such as ChinchillaLaw() or the class ChinchillaLaw."
    )


def _check_options(seen: Any, models: Any, last: Any, level: Any, smallest: Any) -> None:
    for name, value, open_end in (("seen", seen, False), ("last", last, False), ("level", level, True)):
        if name == "level" and value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= 1 or (open_end and value == 1):
            raise ConfigurationError(f"{name}={value!r} must be a share above 0 and up to 1, for example 0.3.")
    for name, value in (("models", models), ("smallest", smallest)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError(f"{name}={value!r} must be a whole number of at least 1.")


def _fit(law: ScalingLaw, rows: dict[str, Any]) -> ScalingLaw:
    with warnings.catch_warnings():  # a fold of the table warns of what its owner already knows
        warnings.simplefilter("ignore", UserWarning)
        return law.fit(rows)


def _score(
    law: ScalingLaw, runs: OrderedRuns, targets: np.ndarray, train: np.ndarray, last: float, level: float | None
) -> list[Target]:
    rows = runs.scored(targets, 0.0 if law.last_only else last)
    at = {name: runs.column(column)[rows] for name, column in law.columns.items()}
    actual = runs.numbers["loss"][rows]
    predicted = np.asarray(law.loss(*at.values(), *law.params_.values()), float)
    low = high = np.full(len(rows), np.nan)
    if level is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            p = law.predict(level=level, **at)
        predicted, low, high = (np.asarray(v, float) for v in (p.loss, p.low, p.high))
    inside = ((actual >= low) & (actual <= high)).astype(float) if level is not None else low
    sizes = np.unique(runs.size[train])
    found = []
    for run in dict.fromkeys(runs.run[rows]):
        own = runs.run[rows] == run
        size = float(runs.size[rows][own][0])
        means = (float(np.mean(v[own])) for v in (actual, predicted, low, high, np.abs(predicted / actual - 1), inside))
        loss, guess, lower, upper, are, coverage = means
        found.append(
            Target(run, size, loss, guess, lower, upper, are, coverage, size / sizes[-1], int(own.sum()), len(sizes))
        )
    return found if runs.key.startswith("N") else [replace(t, N=float("nan")) for t in found]
