"""What the runs say about each parameter: profile likelihood, and the direction they leave open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import chi2

from .fitting import POLISH, PROFILE, newton
from .problem import objective_value
from .regression import _negative_log_posterior, posterior_mode
from .selection import run_index

if TYPE_CHECKING:
    from .bootstrap import BootstrapLaw

LAPLACE = np.pi / 2  #: mean deviance of a least-absolute fit under normal noise, in units of chi² with 1 degree


@dataclass(frozen=True)
class Flat:
    """The direction the runs determine least: where it leads from `low` to `high`, one standard deviation each way,
    and how many material changes that is (above 1: not identified).
    """

    size: float
    low: dict[str, float]
    high: dict[str, float]
    letters: tuple[str, ...]


def flat_direction(law: BootstrapLaw) -> Flat:
    """The eigenvector of the data's Hessian (Gauss-Newton, prior left out) with the smallest curvature.

    Coordinates are measured in material changes (`_material`: half of an exponent, a fifth of E, …), so that the
    answer does not depend on units.
    """
    problem, origin, theta = law._fitted
    sigma = law._local.sigma
    free = (problem.high > problem.low) & (theta > problem.low + 1e-9) & (theta < problem.high - 1e-9)
    if not free.any():  # published constants
        return Flat(0.0, {}, {}, law.parameters[:1])
    unit = law._material(theta)
    slopes = problem.slopes(theta) * unit[:, None]
    run = run_index(law._columns)
    share = problem.weight / np.bincount(run)[run] if run.max() + 1 < len(run) else problem.weight
    information = ((slopes * share) @ slopes.T / sigma**2)[np.ix_(free, free)]
    values, vectors = np.linalg.eigh(information)
    size = float(1 / np.sqrt(max(values[0], 1e-12)))
    step = np.zeros(len(theta))
    step[free] = vectors[:, 0] * min(size, 3.0) * unit[free]
    ends = np.clip(np.stack([theta - step, theta + step]), problem.low, problem.high)
    named = law._named(ends, origin)
    low, high = ({name: float(v[i]) for name, v in named.items()} for i in (0, 1))
    strength = np.zeros(len(theta))
    strength[free] = np.abs(vectors[:, 0])
    letters = tuple(n for n, j in zip(law.parameters, law._coordinates(), strict=True) if strength[j] > 0.4)
    return Flat(size, low, high, letters or law.parameters[:1])


def profile(law: BootstrapLaw, name: str, level: float) -> tuple[float, float]:
    """Ends of the values of a parameter that the runs do not reject: the objective, minimised over all others, rises
    by less than a chi² quantile allows.
    """
    best = law.params_[name]
    rise = _deviance(law, name)
    limit = float(chi2.ppf(level, 1))
    low, high = law.bounds.get(name, (0.0, np.inf))
    ends = []
    for sign in (-1, 1):
        inside, outside, step = 0.0, None, 0.05
        for _ in range(24):
            value = best * np.exp(sign * step)
            if not low < value < high or step > 60:
                break
            if rise(value) > limit:
                outside = step
                break
            inside, step = step, step * 1.8
        if outside is None:
            ends.append(low if sign < 0 else high)
            continue
        for _ in range(18):
            middle = 0.5 * (inside + outside)
            inside, outside = (inside, middle) if rise(best * np.exp(sign * middle)) > limit else (middle, outside)
        ends.append(float(best * np.exp(sign * 0.5 * (inside + outside))))
    return ends[0], ends[1]


def _deviance(law: BootstrapLaw, name: str) -> Callable[[float], float]:
    """Rise of twice the negative log likelihood when a parameter is held at a value, the others refitted."""
    columns = law._columns
    runs = int(run_index(columns).max()) + 1
    settings = law.settings()
    prior = law.prior_.get(name)

    def held(value: float) -> tuple[Any, np.ndarray]:
        fixed = settings["fixed"] | {name: value}
        clone = type(law)(
            **(settings | {"fixed": fixed, "prior": {k: v for k, v in settings["prior"].items() if k not in fixed}})
        )
        clone._hold(law)
        problem, origin = clone._build(columns)
        start = np.clip(clone._internal(law.params_ | {name: value}, origin), problem.low, problem.high)
        return problem, np.concatenate([start, clone._first(columns, problem, origin)])

    def objective(value: float) -> float:
        problem, starts = held(value)
        if law.objective == "bayes":
            theta = posterior_mode(problem, starts)[None]
            bare = replace(problem, precision=None)
            found = float(_negative_log_posterior(problem, theta, bare.value(theta, "huber"))[0])
            return found + (0.5 * ((value - prior[0]) / prior[1]) ** 2 if prior else 0.0)
        theta = starts
        for delta in (*PROFILE[law.objective], *POLISH[law.objective]):
            theta = newton(problem, theta, delta)
        values = objective_value(law.objective, problem.log_loss(theta), problem.loss, problem.weight)
        return float(np.nanmin(values))

    least = objective(law.params_[name])
    if law.objective == "bayes":
        return lambda value: 2 * (objective(value) - least) / LAPLACE * runs / len(columns["loss"])
    if law.objective == "least_squares":
        return lambda value: runs * np.log(max(objective(value), 1e-300) / max(least, 1e-300))
    return lambda value: 2 * runs * np.log(max(objective(value), 1e-300) / max(least, 1e-300)) / LAPLACE
