"""Regressions on the log loss with exact derivatives: sums of power laws, and laws that give their own expansion.

Every term of a power law is `exp(x·theta)` with known covariates x (1 or -log of a variable), so `log L` is a
log-sum-exp of linear forms and gradient and Hessian of every objective are exact and short. All arrays carry a
leading axis `m` of independent problems (grid points, resamples), worked through in blocks that stay in the
processor's cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

DELTA = 1e-3
PLAIN, SCALE, RATE = 0, 1, 2
BLOCK = 16_000  #: rows × regressions evaluated at a time
REACH = {"f": 80.0, "d": 300.0}  #: exponents safe without a shift, in single and in double precision

Derivatives = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Problem:
    """Regressions on the same rows: covariates `x` (n, p), the term `term[j]` that parameter j belongs to, losses (n,),
    weights (n,) or, one set for each regression, (m, n), and bounds of theta; likewise the prior's `centre` and
    `precision`, (p,) or (m, p).

    Regressions on rows of their own are stacked by `laws.stacked`: `x` is (m, p, n) then, and all else (m, …).
    """

    x: np.ndarray
    term: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    low: np.ndarray
    high: np.ndarray
    centre: np.ndarray | None = None
    precision: np.ndarray | None = None
    count: float = 0.0  #: independent observations behind the rows; 0: as many as rows
    origin: Any = 0.0  #: log loss at which a law that contains the loss takes its coordinates

    _of_rows: ClassVar[tuple[str, ...]] = ("log_measured", "_blocks", "_reach", "bend")
    _of_stack: ClassVar[tuple[str, ...]] = ()

    def varied(self, **changes: Any) -> Any:
        """The same rows under other weights, bounds or prior; what was worked out from the rows is kept."""
        other = replace(self, **changes)
        other.__dict__.update({name: getattr(self, name) for name in self._of_rows})
        return other

    @property
    def stacked(self) -> bool:
        """Whether each regression has rows of its own."""
        return self.x.ndim == 3

    @property
    def covariates(self) -> np.ndarray:
        """The covariates one by one: (p, n) or, stacked, (p, m, n)."""
        return self.x.swapaxes(0, 1)

    def take(self, rows: Any) -> Any:
        """Some of stacked regressions, in any order and as often as asked."""
        names = ("x", "loss", "weight", "low", "high", "centre", "precision", "origin")
        other = replace(self, **{n: v[rows] for n in names if (v := getattr(self, n)) is not None})
        other.__dict__.update({name: getattr(self, name) for name in self._of_stack})
        other.__dict__["log_measured"] = self.log_measured[rows]
        return other

    @cached_property
    def single(self) -> Any:
        """The same in single precision, which finds the way at a fifth of the cost; theta stays double."""
        short = {name: getattr(self, name).astype(np.float32) for name in ("x", "loss", "weight")}
        return replace(self, **short)

    def part(self, rows: slice) -> Any:
        """Some of the regressions, where each has its own weights."""
        centre = self.centre if self.centre is None or self.centre.ndim == 1 else self.centre[rows]
        return self.varied(weight=self.weight[rows], centre=centre)

    def repeated(self, times: int) -> Any:
        """Each of the regressions so many times, for as many starts."""
        if times == 1:
            return self
        centre = self.centre if self.centre is None or self.centre.ndim == 1 else np.repeat(self.centre, times, 0)
        return self.varied(weight=np.repeat(self.weight, times, 0), centre=centre)

    def compared(self, theta: np.ndarray, delta: float | None) -> np.ndarray:
        """The value (m, k) of each of k parameters (k, p) in each of the m regressions: one matrix product."""
        log = self.log_loss(theta)
        one = np.ones(1, log.dtype)
        cost = np.exp(log) - self.loss if delta is None else log - self.log_measured
        if delta is None:
            cost *= cost
        else:
            _, clipped, _ = huber(cost, delta, one)
            cost = clipped * (cost - 0.5 * clipped)
        value = np.atleast_2d(self.weight) @ cost.T
        if self.precision is not None and self.centre is not None:
            scale = np.sqrt(self.precision)
            away = (theta * scale)[None] - (np.atleast_2d(self.centre) * scale)[:, None]
            value = value + 0.5 * np.einsum("mkp,mkp->mk", away, away)
        return value

    @cached_property
    def log_measured(self) -> np.ndarray:
        """log of the measured losses (n,)."""
        return np.log(self.loss)

    def value(self, theta: np.ndarray, objective: str) -> np.ndarray:
        """The objective itself (m,), for parameters (m, p), with the penalty where there is one."""
        value = objective_value(objective, self.log_loss(theta), self.loss, self.weight)
        return value + self.penalty(theta) if self.precision is not None else value

    def log_loss(self, theta: np.ndarray) -> np.ndarray:
        """log L (m, n) of parameters (m, p)."""
        top, total, _ = self._terms(theta)
        return np.log(total) if top is None else top + np.log(total)

    def penalty(self, theta: np.ndarray) -> np.ndarray:
        """Half the precision-weighted squared distance from `centre` (m,)."""
        return 0.5 * ((theta - self.centre) ** 2 * self.precision).sum(-1)

    def slopes(self, theta: np.ndarray) -> np.ndarray:
        """d log L / d theta (p, n) at one theta (p,)."""
        _, total, terms = self._terms(theta[None])
        return np.concatenate([term / total * block.x.T for term, block in zip(terms, self._blocks, strict=True)])

    def derivatives(self, theta: np.ndarray, delta: float | None, rows: np.ndarray | None = None) -> Derivatives:
        """Value (m,), gradient (m, p) and exact Hessian (m, p, p); delta None means least squares on the loss.

        `rows` says which of the regressions the rows of theta belong to, where each has its own weights or centre.
        """
        m, p = theta.shape
        at_once = max(BLOCK // self.loss.shape[-1], 1)
        if m <= at_once:
            value, gradient, hessian = self._some(theta, delta, rows)
        else:
            value, gradient, hessian = np.empty(m), np.empty((m, p)), np.empty((m, p, p))
            for begin in range(0, m, at_once):
                part = slice(begin, begin + at_once)
                found = self._some(theta[part], delta, part if rows is None else rows[part])
                value[part], gradient[part], hessian[part] = found
        if self.precision is not None and self.centre is not None:
            away = theta - (self.centre if rows is None or self.centre.ndim == 1 else self.centre[rows])
            precision = self.precision if rows is None or self.precision.ndim == 1 else self.precision[rows]
            pulled = away * precision
            value = value + 0.5 * (away * pulled).sum(-1)
            gradient = gradient + pulled
            hessian = hessian + precision[..., None] * np.eye(p)
        return value, gradient, hessian

    def _some(self, theta: np.ndarray, delta: float | None, rows: Any) -> Derivatives:
        """The same without the penalty, for those of the regressions; None: for all."""
        if rows is None or (self.weight.ndim == 1 and not self.stacked):
            return self._derivatives(theta, delta, self.weight)
        own = self.take(rows) if self.stacked else self
        return own._derivatives(theta, delta, own.weight if self.stacked else self.weight[rows])

    def _pull(self, top: np.ndarray | None, total: np.ndarray, delta: float | None, weight: np.ndarray) -> Derivatives:
        """The objective of L = total·exp(top) (m,), its derivative r1 in log L per row (m, n), and r2 - r1."""
        if delta is None:
            value, first, outer = squares(total if top is None else total * np.exp(top), self.loss, weight)
        else:
            residual = np.log(total)
            residual -= self.log_measured if top is None else self.log_measured - top
            value, first, outer = huber(residual, delta, weight)
        outer -= first
        return value, first, outer

    def _derivatives(self, theta: np.ndarray, delta: float | None, weight: np.ndarray) -> Derivatives:
        """The same for a sum of power laws.

        With shares s_k of the terms and r1, r2 the objective's derivatives in log L per row, the Hessian's block (k, l)
        is `sum_n (r2 - r1) s_k s_l x_k x_lᵀ`, plus `sum_n r1 s_k x_k x_kᵀ` on the diagonal: products of rows (m, n)
        with the few columns x_k x_l, the same for every regression.
        """
        top, total, share = self._terms(theta)
        value, first, outer = self._pull(top, total, delta, weight)
        inverse = np.divide(1.0, total, out=total)
        m, p = theta.shape
        gradient, hessian = np.empty((m, p)), np.empty((m, p, p))
        for k, block in enumerate(self._blocks):
            own, width = block.own, block.x.shape[1]
            share[k] = share[k] * inverse
            gradient[:, own] = (share[k] * first) @ block.x
            weighted = share[k] * outer
            for other, products in enumerate(block.products):
                columns = self._blocks[other].own
                corner = ((weighted * share[other]) @ products).reshape(m, width, -1)
                hessian[:, own, columns] = corner
                hessian[:, columns, own] = corner.transpose(0, 2, 1)
            weighted += first
            weighted *= share[k]
            hessian[:, own, own] = (weighted @ block.squares).reshape(m, width, width)
        return value, gradient, hessian

    def _terms(self, theta: np.ndarray) -> tuple[np.ndarray | None, np.ndarray, list[np.ndarray]]:
        """A shift of all exponents where they are large, the sum of the terms (m, n), and each term: (m, n) or, where
        it is the same in every row, (m, 1).
        """
        theta = theta.astype(self.x.dtype, copy=False)
        terms = [theta[:, block.own] @ block.rows.T for block in self._blocks]
        top = None
        if not float(np.abs(theta).max(0) @ self._reach) < REACH[self.x.dtype.char]:
            top = np.max(np.broadcast_arrays(*terms), 0)
            terms = [term - top for term in terms]
        total = np.zeros((len(theta), len(self.loss)), self.x.dtype)
        for term in terms:
            total += np.exp(term, out=term)
        return top, total, terms

    @cached_property
    def bend(self) -> np.ndarray:
        """What each parameter is to the law (p,): `SCALE`, the log of a factor, `RATE`, an exponent, or `PLAIN`."""
        return np.where((self.x == self.x[:1]).all(0), SCALE, RATE)

    @cached_property
    def _reach(self) -> np.ndarray:
        """The largest size of each covariate."""
        return np.abs(self.x).max(0)

    @cached_property
    def _blocks(self) -> list[Block]:
        blocks: list[Block] = []
        for k in range(int(self.term.max()) + 1):
            own = np.flatnonzero(self.term == k)
            x = np.ascontiguousarray(self.x[:, own])
            rows = x[:1] if (x == x[:1]).all() else x
            products = [_outer(x, earlier.x) for earlier in blocks]
            blocks.append(Block(slice(int(own[0]), int(own[-1]) + 1), x, rows, _outer(x, x), products))
        return blocks


@dataclass(frozen=True)
class Block:
    """One term of a power law: its parameters (neighbours), its covariates (n, a), the rows of them that differ, and
    their products with themselves and with those of every earlier term (n, a·b).
    """

    own: slice
    x: np.ndarray
    rows: np.ndarray
    squares: np.ndarray
    products: list[np.ndarray]


def _outer(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x[:, :, None] * y[:, None, :]).reshape(len(x), -1)


class CurvedProblem(Problem, ABC):
    """A regression whose log L is no log-sum-exp of linear forms: a law gives `expansion`, the rest follows."""

    _of_rows: ClassVar[tuple[str, ...]] = ("log_measured",)

    @abstractmethod
    def expansion(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """log L (m, n), its gradient (m, p, n), and the sum of its Hessians weighted by rows: (m, n) → (m, p, p)."""

    @property
    def bend(self) -> np.ndarray:
        """`PLAIN` for every parameter."""
        return np.full(self.low.shape[-1], PLAIN)

    @property
    def single(self) -> Any:
        """Itself: implicit equations need the digits."""
        return self

    def log_loss(self, theta: np.ndarray) -> np.ndarray:
        """log L (m, n) of parameters (m, p)."""
        return self.expansion(theta)[0]

    def slopes(self, theta: np.ndarray) -> np.ndarray:
        """d log L / d theta (p, n) at one theta (p,)."""
        return self.expansion(theta[None])[1][0]

    def _derivatives(self, theta: np.ndarray, delta: float | None, weight: np.ndarray) -> Derivatives:
        log, v, second = self.expansion(theta)
        if delta is None:
            value, first, outer = squares(np.exp(log), self.loss, weight)
        else:
            value, first, outer = huber(log - self.log_measured, delta, weight)
        hessian = (v * outer[:, None]) @ v.transpose(0, 2, 1) + second(first)
        return value, (v * first[:, None]).sum(2), hessian


def huber(residual: np.ndarray, delta: float, weight: np.ndarray) -> Derivatives:
    """Huber's function summed over rows (m,), and its first and second derivative (m, n) in each row's log L."""
    clipped = np.minimum(residual, delta)
    np.maximum(clipped, -delta, out=clipped)
    second = (clipped == residual) * weight
    first = clipped * weight
    clipped *= -0.5
    clipped += residual
    return np.einsum("mn,mn->m", first, clipped), first, second


def squares(fit: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> Derivatives:
    """Squares of the residuals of the loss summed over rows (m,), and derivatives (m, n) in each row's log L."""
    residual = fit - loss
    pulled = 2 * fit * weight
    first = residual * pulled
    residual *= residual
    return np.einsum("mn,mn->m", residual, np.broadcast_to(weight, residual.shape)), first, fit * pulled + first


def objective_value(objective: str, log_fit: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What an objective makes of fitted log losses (…, n): a weighted sum over the rows (see `fitting.OBJECTIVES`)."""
    if objective == "least_squares":
        return ((np.exp(log_fit) - loss) ** 2 * weight).sum(-1)
    r = np.abs(log_fit - np.log(loss))
    if objective == "lad":
        return (r * weight).sum(-1)
    if objective == "huber":
        return (np.where(r <= DELTA, 0.5 * r * r, DELTA * (r - 0.5 * DELTA)) * weight).sum(-1)
    return (r * r * weight).sum(-1)
