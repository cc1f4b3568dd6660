"""Regressions that share no rows as one problem, so that Newton's method steps in all of them at once.

The shorter ones are filled up with rows of weight 0. Nothing else changes: each keeps its coordinates, bounds and
prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from .problem import RATE, REACH, SCALE, CurvedProblem, Derivatives, Problem


def stack(problems: Sequence[Problem]) -> Problem:
    """One problem of regressions of one law, each on its own rows: `x` (m, p, n), all else (m, …)."""
    first = problems[0]
    rows = np.array([len(one.loss) for one in problems])
    place = np.arange(rows.max())
    own = [np.where(place < k, place, 0) for k in rows]  # filled up with copies of the first row that count nothing
    each = list(zip(problems, own, strict=True))
    changes: dict[str, Any] = {
        "x": np.stack([one.x[index].T for one, index in each]),
        "loss": np.stack([one.loss[index] for one, index in each]),
        "weight": np.stack([one.weight[index] for one, index in each])
        * (place < rows[:, None]),  # … that count nothing
        "origin": np.array([[one.origin] for one in problems]),
    }
    for name in ("low", "high", "centre", "precision"):
        if getattr(first, name) is not None:
            changes[name] = np.stack([getattr(one, name) for one in problems])
    if isinstance(first, CurvedProblem):
        return replace(first, **changes)
    return StackedPowers(**{f.name: getattr(first, f.name) for f in fields(Problem)} | changes)


class StackedPowers(Problem):
    """Stacked sums of power laws: the same derivatives, covariate by covariate, since no matrix serves them all."""

    _of_stack: ClassVar[tuple[str, ...]] = ("_reach", "_blocks", "_ones", "bend")

    def log_loss(self, theta: np.ndarray) -> np.ndarray:
        """log L (m, n) of parameters (m, p)."""
        top, terms = self._powers(theta)
        log = np.log(self._total(terms))
        return log if top is None else log + top

    @cached_property
    def bend(self) -> np.ndarray:
        """What each parameter is to the law (p,), see `Problem`."""
        same = (self.x == self.x[..., :1]).all((0, 2))
        return np.where(same, SCALE, RATE)

    @cached_property
    def _reach(self) -> np.ndarray:
        return np.abs(self.x).max((0, 2))

    @cached_property
    def _ones(self) -> np.ndarray:
        """Which covariates are 1 throughout (p,)."""
        return (self.x == 1).all((0, 2))

    @cached_property
    def _blocks(self) -> list[list[int]]:  # type: ignore[override]
        """The parameters of each term."""
        return [np.flatnonzero(self.term == k).tolist() for k in range(int(self.term.max()) + 1)]

    def _times(self, row: np.ndarray, j: int) -> np.ndarray:
        return row if self._ones[j] else row * self.x[:, j]

    def _sum(self, row: np.ndarray, j: int) -> np.ndarray:
        found: np.ndarray = row.sum(1) if self._ones[j] else np.einsum("mn,mn->m", row, self.x[:, j])
        return found

    def _powers(self, theta: np.ndarray) -> tuple[np.ndarray | None, list[np.ndarray]]:
        """A shift of all exponents where they are large, and each term (m, n) or, the same in every row, (m, 1)."""
        terms = []
        for own in self._blocks:
            term = self._times(theta[:, own[0], None], own[0])
            for j in own[1:]:
                term = term + self._times(theta[:, j, None], j)
            terms.append(term)
        top = None
        if not float(np.abs(theta).max(0) @ self._reach) < REACH["d"]:
            top = np.max(np.broadcast_arrays(*terms), 0)
            terms = [term - top for term in terms]
        return top, [np.exp(term) for term in terms]

    def _total(self, terms: list[np.ndarray]) -> np.ndarray:
        total = np.zeros(self.loss.shape)
        for term in terms:
            total += term
        return total

    def _derivatives(self, theta: np.ndarray, delta: float | None, weight: np.ndarray) -> Derivatives:
        top, terms = self._powers(theta)
        total = self._total(terms)
        value, first, outer = self._pull(top, total, delta, weight)
        inverse = np.divide(1.0, total, out=total)
        shares = [term * inverse for term in terms]
        m, p = theta.shape
        gradient, hessian = np.empty((m, p)), np.empty((m, p, p))
        for k, share in enumerate(shares):
            pulled, spread = share * first, share * outer
            for j in self._blocks[k]:
                gradient[:, j] = self._sum(pulled, j)
            for other in range(k + 1):
                corner = spread * shares[other]
                if other == k:
                    corner += pulled
                for j in self._blocks[k]:
                    row = self._times(corner, j)
                    for i in self._blocks[other]:
                        if i <= j:
                            hessian[:, i, j] = hessian[:, j, i] = self._sum(row, i)
        return value, gradient, hessian
