"""Many fits of one law to parts of one table, all at once: what a heat map needs.

Every part stays the regression that `laws.regression` would solve alone, with its coordinates, bounds, prior and
starts. They are stacked (`laws.stacked`), so that Newton's method steps in all of them at once, and a row of theta
belongs to the part that `owner` says. What is left to differ is rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np

from ..errors import FitError
from .fitting import HOP, HOPS, POLISH, PROFILE, SMALL, distinct, newton
from .noise import FLOOR
from .problem import DELTA, Problem
from .regression import ROUNDS, Origin, RegressionLaw
from .selection import Columns
from .stacked import stack

AT_ONCE = 4e6  #: rows × starts held at a time
LONGER = 1.4  #: how much longer than the shortest the longest part may be
KEPT = 3  #: starts that go on from a wide Huber width
OBJECTIVES = ("bayes", "huber", "least_squares")  #: "lad" ends with a simplex search, each fit alone


def batched(law: Any) -> TypeGuard[RegressionLaw]:
    """Whether `estimate_together` can fit this law: one estimated as all regressions are, by Newton's method."""
    return (
        isinstance(law, RegressionLaw)
        and law.objective in OBJECTIVES
        and type(law)._estimate is RegressionLaw._estimate
        and type(law)._refit is RegressionLaw._refit
    )


def estimate_together(law: RegressionLaw, parts: Sequence[Columns]) -> list[dict[str, float] | None]:
    """The parameters of `law` fitted to each of several tables; None where it cannot be fitted.

    `parts` are validated and selected columns, as `law.fit` gets them. Of a law with several forms each part gets the
    one that predicts its largest runs best.
    """
    forms = law._forms()
    if len(forms) == 1:
        return _fitted(law, parts)
    able = [i for i, columns in enumerate(parts) if _fits(law, columns)]
    halves = [law._held_out(parts[i]) for i in able]
    tries = [_fitted(form, [small for small, _ in halves]) for form in forms]
    found: list[dict[str, float] | None] = [None] * len(parts)
    taken: dict[int, list[int]] = {}
    for k, (i, (_, large)) in enumerate(zip(able, halves, strict=True)):
        taken.setdefault(law._chosen(large, [params[k] for params in tries]), []).append(i)
    for form, own in taken.items():
        for i, params in zip(own, _fitted(forms[form], [parts[i] for i in own]), strict=True):
            found[i] = params
    return found


def _fitted(law: RegressionLaw, parts: Sequence[Columns]) -> list[dict[str, float] | None]:
    """The same for a law of one form."""
    found: list[dict[str, float] | None] = [None] * len(parts)
    able = [i for i, columns in enumerate(parts) if _fits(law, columns)]
    for chunk in _alike([len(parts[i]["loss"]) for i in able]):
        own = [able[k] for k in chunk]
        for i, params in zip(own, _estimate(law, [parts[i] for i in own]), strict=True):
            found[i] = params
    return found


def _alike(rows: Sequence[int]) -> Iterator[np.ndarray]:
    """Parts of about the same length, so that little is filled up, and not too many at once."""
    order = np.argsort(rows, kind="stable")
    lengths = np.asarray(rows)[order]
    begin = 0
    while begin < len(order):
        most = max(int(AT_ONCE / (9 * lengths[begin])), 1)
        end = min(int(np.searchsorted(lengths, LONGER * lengths[begin], "right")), begin + most)
        yield order[begin:end]
        begin = end


def _fits(law: RegressionLaw, columns: Columns) -> bool:
    try:
        law._check_columns(columns)
    except FitError:
        return False
    return bool(law.fixed.get("E", 0.0) < columns["loss"].min())


def _estimate(law: RegressionLaw, parts: Sequence[Columns]) -> list[dict[str, float] | None]:
    built = [law._build(columns) for columns in parts]
    starts = [law._first(columns, problem, origin) for columns, (problem, origin) in zip(parts, built, strict=True)]
    stack = Stack.of([problem for problem, _ in built])
    theta = stack.posterior_modes(starts) if law.objective == "bayes" else stack.minima(starts, law.objective)
    return [_parameters(law, row, origin) for row, (_, origin) in zip(theta, built, strict=True)]


def _parameters(law: RegressionLaw, theta: np.ndarray, origin: Origin) -> dict[str, float] | None:
    params = {name: float(v[0]) for name, v in law._named(theta[None], origin).items()} | law.fixed
    good = all(np.isfinite(v) for v in params.values())
    return {name: params[name] for name in law.parameters} if good else None


@dataclass(frozen=True)
class Stack:
    """Regressions on rows of their own as one problem, with each one's number of rows and of observations."""

    problem: Problem
    rows: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Stack:
        """Stack them."""
        rows = np.array([len(one.loss) for one in problems])
        return cls(stack(problems), rows, np.array([one.count or len(one.loss) for one in problems], float))

    def posterior_modes(self, starts: Sequence[np.ndarray]) -> np.ndarray:
        """The mode (m, p) of each posterior, from its own starts: the steps of `regression.posterior_mode`."""
        prior = np.zeros(self.problem.low.shape) if self.problem.precision is None else self.problem.precision
        plain, bare = replace(self.problem, precision=prior), replace(self.problem, precision=None)

        def scale(theta: np.ndarray, owner: np.ndarray) -> np.ndarray:
            return _value(bare, theta, owner, "huber") / (DELTA * self.rows[owner]) + FLOOR

        def heat(s: np.ndarray, owner: np.ndarray) -> np.ndarray:
            """The temperature of each part: the lowest that its rows of theta give."""
            found = np.full(len(self.rows), np.inf)
            np.minimum.at(found, owner, DELTA * s * (self.rows / self.count)[owner])
            return np.where(np.isfinite(found), found, 0.0)  # a part that is done has none

        def tempered(temperature: np.ndarray, owner: np.ndarray) -> Problem:
            return replace(self.problem, precision=prior * temperature[:, None]).take(owner)

        owner = np.repeat(np.arange(len(starts)), [len(s) for s in starts])
        theta = np.concatenate(starts)
        temperature = heat(scale(theta, owner), owner)
        for delta in (0.03, 0.005):
            theta, owner = self._way(tempered(temperature, owner), theta, owner, delta)
            temperature = heat(scale(theta, owner), owner)
        found = np.empty(self.problem.low.shape)
        last = np.full(len(self.rows), np.nan)  # of the round before: none
        for _ in range(ROUNDS):
            theta = newton(tempered(temperature, owner), theta, DELTA, tolerance=1e-9)
            s = scale(theta, owner)
            target = self.count[owner] * np.log(s) + plain.take(owner).penalty(theta)
            first = _first(target, owner)
            theta, owner, target = theta[first], owner[first], target[first]
            found[owner] = theta
            temperature = heat(s[first], owner)
            live = ~(target >= last[owner] - 1e-9 * np.abs(last[owner]))
            last[owner] = target
            theta, owner = theta[live], owner[live]
            if not len(owner):
                break
        return found

    def minima(self, starts: Sequence[np.ndarray], objective: str) -> np.ndarray:
        """The minimum (m, p) of each under an objective without a prior: the steps of `fitting.minimise`."""
        *wide, last = dict.fromkeys((*PROFILE[objective], *POLISH[objective]))
        owner = begun = np.repeat(np.arange(len(starts)), [len(s) for s in starts])
        theta = np.concatenate(starts)
        small, ways = self.rows <= SMALL, []
        for delta in wide or (last,):
            theta, owner = self._way(self.problem.take(owner), theta, owner, delta)
            ways.append((theta, owner))
        for earlier, of in ways[-2::-1]:
            theta, owner = np.concatenate([theta, earlier[small[of]]]), np.concatenate([owner, of[small[of]]])
        theta, owner = _distinct(theta, owner)

        def polished(theta: np.ndarray, owner: np.ndarray) -> np.ndarray:
            return newton(self.problem.take(owner), theta, last, steps=40, tolerance=1e-12)

        theta = polished(theta, owner)
        theta = newton(self.problem.take(owner), theta, last, steps=40, tolerance=1e-12, bent=False)
        if small.any():
            best = _first(self.problem.take(owner).derivatives(theta, last)[0], owner)
            best = best[small[owner[best]]]
            spread = np.random.default_rng(0).normal(size=(HOPS, theta.shape[1])) * HOP[self.problem.bend]
            hops, of = (theta[best][:, None] + spread).reshape(-1, theta.shape[1]), np.repeat(owner[best], HOPS)
            for delta in PROFILE[objective]:
                hops = newton(self.problem.take(of), hops, delta, steps=40, tolerance=1e-6, bent=False)
                hops, of = _distinct(hops, of)
            theta, owner = np.concatenate([theta, polished(hops, of)]), np.concatenate([owner, of])
        theta, owner = np.concatenate([*starts, theta]), np.concatenate([begun, owner])
        return theta[_first(_value(self.problem, theta, owner, objective), owner)]

    def _way(
        self, problem: Problem, theta: np.ndarray, owner: np.ndarray, delta: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the starts lead under a wide Huber width, roughly: each part's few best that differ."""
        steps = 12 if problem.bend.any() else 40
        theta = newton(problem, theta, delta, steps=steps, tolerance=1e-3, bent=False)
        order = np.lexsort((problem.derivatives(theta, delta)[0], owner))
        return _distinct(theta[order], owner[order], KEPT)


def _value(problem: Problem, theta: np.ndarray, owner: np.ndarray, objective: str) -> np.ndarray:
    found: np.ndarray = problem.take(owner).value(theta, objective)
    return found


def _first(value: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Of each part in order the row of least value."""
    order = np.lexsort((value, owner))
    return order[np.unique(owner[order], return_index=True)[1]]


def _distinct(theta: np.ndarray, owner: np.ndarray, kept: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Each part's rows, in the order given, that are not the end of the same descent; the first `kept` of them."""
    parts = [(k, distinct(theta[owner == k])[:kept]) for k in np.unique(owner)]
    return np.concatenate([rows for _, rows in parts]), np.repeat([k for k, _ in parts], [len(r) for _, r in parts])
