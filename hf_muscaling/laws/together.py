"""Many fits of one law to parts of one table, all at once: what a heat map needs.

Every part is the whole table with weights, 0 for the rows that it lacks, so the posterior modes of all parts are one
batch of Newton's method. The objective of each is that of `laws.regression`; only the coordinates' origin differs,
which moves no optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np

from ..errors import FitError
from .fitting import distinct, newton
from .noise import FLOOR
from .problem import DELTA, Problem
from .regression import ROUNDS, RegressionLaw
from .selection import Columns

AT_ONCE = 4e6  #: rows × starts held at a time
KEPT = 3  #: starts that go on from a wide Huber width


def batched(law: Any) -> TypeGuard[RegressionLaw]:
    """Whether `estimate_together` can fit this law: objective "bayes", and no choice of form before the fit."""
    return (
        isinstance(law, RegressionLaw)
        and law.objective == "bayes"
        and type(law)._estimate is RegressionLaw._estimate
        and type(law)._refit is RegressionLaw._refit
    )


def estimate_together(law: RegressionLaw, parts: Sequence[Columns]) -> list[dict[str, float] | None]:
    """The parameters of `law` fitted to each of several tables that share rows; None where it cannot be fitted.

    `parts` are validated and selected columns, as `law.fit` gets them.
    """
    found: list[dict[str, float] | None] = [None] * len(parts)
    able = [i for i, columns in enumerate(parts) if _fits(law, columns)]
    rows = sum(len(parts[i]["loss"]) for i in able)
    size = max(int(AT_ONCE / max(9 * rows / max(len(able), 1), 1)), 1)
    for begin in range(0, len(able), size):
        chunk = able[begin : begin + size]
        for i, params in zip(chunk, _estimate(law, [parts[i] for i in chunk]), strict=True):
            found[i] = params
    return found


def _fits(law: RegressionLaw, columns: Columns) -> bool:
    try:
        law._check_columns(columns)
    except FitError:
        return False
    return bool(law.fixed.get("E", 0.0) < columns["loss"].min())


def _estimate(law: RegressionLaw, parts: Sequence[Columns]) -> list[dict[str, float] | None]:
    names = [*law.columns.values(), "loss"]
    rows = np.concatenate([np.stack([columns[name] for name in names], 1) for columns in parts])
    shared, place = np.unique(rows, axis=0, return_inverse=True)
    whole = dict(zip(names, np.ascontiguousarray(shared.T), strict=True))
    owner = np.repeat(np.arange(len(parts)), [len(columns["loss"]) for columns in parts])
    own = [law._row_weights(columns) for columns in parts]
    weight = np.zeros((len(parts), len(shared)))
    np.add.at(weight, (owner, place.ravel()), np.concatenate(own))
    problem, origin = law._build(whole, np.ones(len(shared)))
    starts = []
    for columns, w in zip(parts, own, strict=True):
        at = law._origin(columns)
        plain = law._problem(columns, w, at)
        theta = law._internal(law._named(law._starts(plain), at), origin)
        starts.append(np.clip(np.nan_to_num(theta), problem.low, problem.high))
    count = np.array([law._count(columns) for columns in parts])
    theta = posterior_modes(problem, weight, count, starts)
    found: list[dict[str, float] | None] = []
    for i in range(len(parts)):
        params = {name: float(v[0]) for name, v in law._named(theta[i : i + 1], origin).items()} | law.fixed
        good = all(np.isfinite(v) for v in params.values())
        found.append({name: params[name] for name in law.parameters} if good else None)
    return found


def posterior_modes(
    problem: Problem, weight: np.ndarray, count: np.ndarray, starts: Sequence[np.ndarray]
) -> np.ndarray:
    """The modes (m, p) of m posteriors on the same rows, with weights (m, n) that sum to each one's rows and `count`
    (m,) independent observations, each from its own starts. The steps are those of `regression.posterior_mode`.
    """
    size = weight.sum(1)
    prior = np.zeros(len(problem.low)) if problem.precision is None else problem.precision
    bare = problem.varied(precision=None)

    def scale(theta: np.ndarray, owner: np.ndarray) -> np.ndarray:
        value = replace(bare, weight=weight[owner]).value(theta, "huber")
        return value / (DELTA * size[owner]) + FLOOR

    def coolest(theta: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """The smallest temperature among each part's rows of theta."""
        found = np.full(len(weight), np.inf)
        np.minimum.at(found, owner, DELTA * scale(theta, owner) * (size / count)[owner])
        return found

    def own(owner: np.ndarray) -> Problem:
        varied: Problem = problem.varied(weight=weight[owner], precision=prior * temperature[owner, None])
        return varied

    owner = np.repeat(np.arange(len(weight)), [len(s) for s in starts])
    theta = np.concatenate(starts)
    temperature = coolest(theta, owner)
    for delta in (0.03, 0.005):
        part = own(owner)
        theta = newton(part, theta, delta, steps=12 if problem.bend.any() else 40, tolerance=1e-3, bent=False)
        theta, owner = _best(theta, owner, part.derivatives(theta, delta)[0], len(weight))
        temperature = coolest(theta, owner)
    found = np.empty((len(weight), theta.shape[1]))
    last = np.full(len(weight), np.nan)  # of the round before: none
    for _ in range(ROUNDS):
        theta = newton(own(owner), theta, DELTA, tolerance=1e-9)
        s = scale(theta, owner)
        target = count[owner] * np.log(s) + problem.varied(precision=prior).penalty(theta)
        order = np.lexsort((target, owner))
        first = order[np.unique(owner[order], return_index=True)[1]]
        theta, owner, target = theta[first], owner[first], target[first]
        found[owner] = theta
        temperature[owner] = DELTA * s[first] * (size / count)[owner]
        live = ~(target >= last[owner] - 1e-9 * np.abs(last[owner]))
        last[owner] = target
        theta, owner = theta[live], owner[live]
        if not len(owner):
            break
    return found


def _best(theta: np.ndarray, owner: np.ndarray, value: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Each part's few best ends that differ."""
    order = np.lexsort((value, owner))
    bounds = np.searchsorted(owner[order], np.arange(parts + 1))
    kept = [distinct(theta[order[a:b]])[:KEPT] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return np.concatenate(kept), np.repeat(np.arange(parts), [len(rows) for rows in kept])
