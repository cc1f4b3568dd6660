"""The interval that runs not yet trained will give: the law's own, averaged over runs simulated from a belief.

For each draw of the belief (a curve, the noise between seeds, the misfit) the planned runs are simulated, the law is
fitted to them together with the finished runs, and its interval at the target is read off (`half_width`). Their
geometric mean is the preposterior expectation of the interval (Raiffa and Schlaifer 1961), in logs, since a few draws
with much noise would rule a mean: no formula stands between the plan and what the law will say.

The interval must hold after few runs too, or a planner that minimised it would look for designs whose runs may happen
to lie on a curve; `laws.posterior.NOISE` sees to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigurationError, FitError
from ..laws import PowerLaw, ScalingLaw
from ..laws.base import check_level
from .belief import DRAWS, Assumptions, Belief, Points, belief_of

Columns = Mapping[str, np.ndarray]
WORST = 1.0  #: what a simulated series that the law refuses counts: nothing was learnt


@dataclass(frozen=True)
class ExpectedInterval:
    """The expected half-width of the interval at the target, as a share of the loss.

    `half_width` is the geometric mean over `draws` simulated series, `low` and `high` hold 80 % of them, `error` is its
    standard error; `refused` is the share of series that the law could not be fitted to (each counted as 100 %).
    """

    half_width: float
    low: float
    high: float
    error: float
    refused: float
    level: float
    draws: int

    def __str__(self) -> str:
        return (
            f"{100 * self.level:g} % interval ± {100 * self.half_width:.2f} % expected (80 % of outcomes between "
            f"{100 * self.low:.2f} and {100 * self.high:.2f} %)"
        )


def half_width(law: ScalingLaw, target: Mapping[str, float], level: float = 0.9) -> float:
    """Return the half-width of a fitted law's interval at a target, as a share of the loss.

    >>> runs = {"N": [1e6, 2e6, 4e6, 8e6], "loss": [2 + 40 * n**-0.25 for n in (1e6, 2e6, 4e6, 8e6)]}
    >>> law = PowerLaw().fit(runs)
    >>> half_width(law, {"N": 1.6e7}) < half_width(law, {"N": 6.4e7})
    True
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how far the target lies: the interval says it
        p = law.predict(level=level, **target)
    return float((p.high - p.low) / (2 * p.loss))


def expected_interval(
    belief: Any,
    sizes: Sequence[float],
    seeds: int | Sequence[int],
    target: float,
    *,
    level: float = 0.9,
    keep: bool = True,
    draws: int = DRAWS,
    law: PowerLaw | None = None,
    assumptions: Assumptions | None = None,
) -> ExpectedInterval:
    """Return the interval to expect at `target` after training `seeds` more runs at each of `sizes`.

    `belief` is a `PowerLaw` fitted to the runs that are finished, `Assumptions`, or None for the default ones. The
    finished runs of a law stay part of the series; `keep=False` asks what a fresh series would give instead, the law
    saying only what is believed. `assumptions` temper what few runs seem to say of the noise. `sizes` and `target` are
    in the law's variable, for L(N) parameters. `law` is what the series will be fitted with, by default one like the
    belief's. The same question has the same answer: runs are simulated with fixed random numbers, those of one size
    being the same in every design.

    Raises ConfigurationError for a design that could not be fitted (fewer than three sizes, all runs at one size) or
    sizes that are no positive numbers.

    >>> few = expected_interval(None, [1e6, 2e6, 4e6, 8e6], seeds=1, target=3.2e7, draws=16)
    >>> many = expected_interval(None, [1e6, 2e6, 4e6, 8e6], seeds=4, target=3.2e7, draws=16)
    >>> many.half_width < few.half_width
    True
    """
    level = check_level(level)
    x = np.asarray(sizes, float).ravel()
    counts = np.broadcast_to(np.asarray(seeds), x.shape)
    if not (np.isfinite(x).all() and (x > 0).all() and np.isfinite(target) and target > 0):
        raise ConfigurationError(f"sizes={list(x)} and target={target} must be positive numbers, such as 2.5e6.")
    if (counts < 0).any() or (counts != np.floor(counts)).any():
        raise ConfigurationError(f"seeds={list(counts)} must be whole numbers ≥ 0, one for each size or one for all.")
    assumptions = belief if isinstance(belief, Assumptions) else assumptions
    found = belief_of(belief, float(x.min()) if len(x) else 1.0, draws, assumptions)
    name = found.variable
    own = law or (type(belief)(**belief.settings()) if isinstance(belief, PowerLaw) else PowerLaw(variable=name))
    none = {name: np.empty(0), "loss": np.empty(0)}
    finished = finished_runs(belief) if keep and isinstance(belief, PowerLaw) else none
    together = np.unique(np.concatenate([finished[name], x[counts > 0]]))
    if len(together) < 3:
        raise ConfigurationError(
            f"A design of {len(together)} distinct sizes gives no interval: L = a·{name}^b + c has three parameters. "
            "Plan at least 3 sizes, better 4 to 6."
        )
    return simulated_interval(found, {name: x}, counts.astype(int), {name: float(target)}, own, finished, level)


def finished_runs(law: PowerLaw) -> dict[str, np.ndarray]:
    """Return the runs a law was fitted to, its variable under the variable's name."""
    columns = law._columns
    rows = {law.variable: columns[law.columns[law.variable]], "loss": columns["loss"]}
    return rows | ({"weight": columns["weight"] / columns["weight"].mean()} if "weight" in columns else {})


def simulated_interval(
    belief: Belief,
    points: Points,
    counts: np.ndarray,
    target: Mapping[str, float],
    law: ScalingLaw,
    finished: Columns,
    level: float = 0.9,
    draws: int | None = None,
) -> ExpectedInterval:
    """Return the expected interval of `law` on `finished` runs and `counts` (k,) simulated ones at each point."""
    names = tuple(points)
    series = simulate(belief, points, counts, finished)[:draws]
    at = {name: np.repeat(np.asarray(points[name], float), counts) for name in names}
    table = {name: np.concatenate([finished[name], at[name]]) for name in names}
    table = {law.columns[name]: values for name, values in table.items()}
    if "weight" in finished:
        table["weight"] = np.concatenate([finished["weight"], np.ones(len(series[0]))])
    half = np.empty(len(series))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a simulated series: which parameters stay open, how far the target lies
        for m, losses in enumerate(series):
            try:
                law.fit(table | {"loss": np.concatenate([finished["loss"], losses])})
                half[m] = half_width(law, target, level)
            except FitError:
                half[m] = np.nan
    refused = np.isnan(half)
    half = np.where(refused, WORST, half)
    low, high = np.quantile(half, (0.1, 0.9))
    typical = float(np.exp(np.log(half).mean()))
    error = float(typical * np.log(half).std() / np.sqrt(len(half)))
    return ExpectedInterval(typical, float(low), float(high), error, float(refused.mean()), level, len(half))


def simulate(belief: Belief, points: Points, counts: np.ndarray, finished: Columns) -> np.ndarray:
    """Return the losses (M, runs) of new runs, one series a draw, the runs of a point one after another.

    A point that has finished runs keeps its own deviation from each draw's curve, as far as those runs tell it.
    """
    names, total = tuple(points), int(counts.sum())
    curve = belief.loss(points)
    done, mean = np.zeros(len(counts), int), np.zeros(len(counts))
    for j in range(len(counts)):
        same = np.all([np.isclose(finished[name], points[name][j], rtol=1e-9) for name in names], 0)
        done[j] = int(same.sum())
        mean[j] = float(np.mean(finished["loss"][same])) if done[j] else 0.0
    others = {name: np.concatenate([np.asarray(points[name], float), finished[name]]) for name in names}
    trained = np.concatenate([counts > 0, np.ones(len(finished["loss"]), bool)])[None]
    misfit = belief.misfit(others, trained)[0][:, : len(counts)]
    losses, at = np.empty((belief.draws, total)), 0
    for j, n in enumerate(counts):
        if not n:
            continue
        z = _normal([points[name][j] for name in names], n + 1, belief.draws)
        known = misfit[:, j] * done[j] / (1 + misfit[:, j] * done[j])
        delta = belief.sigma * np.sqrt(misfit[:, j] * (1 - known)) * z[0]
        if done[j]:
            delta = delta + known * (mean[j] / curve[:, j] - 1)
        # a relative deviation of -1 or less is no loss; it takes a noise of tens of percent to get there
        relative = np.maximum(1 + delta[:, None] + belief.sigma[:, None] * z[1:].T, 1e-3)
        losses[:, at : at + n] = curve[:, j, None] * relative
        at += n
    return losses


def _normal(at: Sequence[float], rows: int, draws: int) -> np.ndarray:
    """Return fixed standard normal numbers (rows, draws) for a point: the same in every design it is part of."""
    key = [int(round(1e6 * float(np.log(value)))) % 2**32 for value in at]
    return np.random.default_rng(key).normal(size=(rows, draws))
