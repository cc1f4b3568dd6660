"""Compute-optimal sizes read off the runs themselves, without a law: Hoffmann et al.'s Approaches 1 and 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigurationError, FitError
from .answers import plain, positive
from .selection import run_index
from .table import _columns, read_table, run_labels

SAME_BUDGET = 0.12  #: runs whose log C differ by less count as one budget
NEAR = 1.2  #: sizes within exp(±NEAR) of the best one enter a parabola, and at least the 5 nearest


@dataclass(frozen=True)
class Frontier:
    """The best size at each compute budget, and the power law through them: `N_opt = scale·C^exponent`.

    C in FLOPs (6·N·D), N and D at the optimum, the loss there; the exponent of D is 1 - exponent.
    """

    method: str
    C: np.ndarray
    N: np.ndarray
    D: np.ndarray
    loss: np.ndarray
    exponent: float
    scale: float

    def compute_optimal(self, C: Any) -> tuple[Any, Any]:
        """N and D for a budget of C = 6·N·D FLOPs on the fitted line."""
        budget = positive("C", C, "FLOPs")
        size = self.scale * budget**self.exponent
        return plain(size), plain(budget / (6 * size))

    def __str__(self) -> str:
        return f"{self.method}: N_opt = {self.scale:.4g}·C^{self.exponent:.4f} from {len(self.C)} budgets"


def isoflop(table: Any, budgets: Any = None) -> Frontier:
    """IsoFLOP estimate: at each budget a parabola of loss in log N about its lowest run, its minimum the best size.

    `table` has columns N, D, loss. Without `run_id` or `step` the runs are grouped by equal C = 6·N·D; with curves,
    each curve is read off at `budgets` (default: 8 between those that at least 4 sizes reach). A budget counts when at
    least 4 sizes are there and the parabola opens upwards with its minimum between the sizes.

    Source: Hoffmann et al. 2022, Approach 2. Raises `FitError` when fewer than 2 budgets are left.

    >>> n, c = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e10, 16), [1e19, 1e20, 1e21]))
    >>> frontier = isoflop({"N": n, "D": c / (6 * n), "loss": 1.8 + 400 / n**0.35 + 400 / (c / (6 * n)) ** 0.35})
    >>> round(frontier.exponent, 2)  # the truth is 0.5
    0.5
    """
    log_c, log_n, loss = _by_budget(table, budgets)
    found = []
    for c in np.unique(log_c):
        own = log_c == c
        n, y = log_n[own], loss[own]
        if len(np.unique(n)) < 4:
            continue
        away = np.abs(n - n[np.argmin(y)])  # far from its minimum the loss is no parabola
        near = away <= max(NEAR, np.sort(away)[min(4, len(n) - 1)])
        n, y = n[near], y[near]
        middle = n.mean()
        curve, slope, level = np.polyfit(n - middle, y, 2)
        best = -slope / (2 * curve) if curve > 0 else np.inf
        if curve > 0 and n.min() <= middle + best <= n.max():
            found.append((c, middle + best, level + 0.5 * slope * best))
    return _frontier("isoFLOP parabolas", found)


def envelope(table: Any, budgets: Any = None) -> Frontier:
    """Envelope estimate: the size with the lowest loss at each budget, read off training curves.

    Arguments as for `isoflop`; budgets at which the smallest or largest size wins are left out, since the true best
    may lie outside. Source: Hoffmann et al. 2022, Approach 1; Kaplan et al. 2020. Raises `FitError` when fewer than 2
    budgets are left.
    """
    log_c, log_n, loss = _by_budget(table, budgets)
    found = []
    for c in np.unique(log_c):
        own = np.flatnonzero(log_c == c)
        if len(np.unique(log_n[own])) < 3:
            continue
        best = own[np.argmin(loss[own])]
        if log_n[own].min() < log_n[best] < log_n[own].max():
            found.append((c, log_n[best], loss[best]))
    return _frontier("envelope of lowest losses", found)


def _by_budget(table: Any, budgets: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log C, log N and loss of runs at common budgets."""
    raw = dict(_columns(table))
    labels = run_labels(raw)
    if labels is not None:
        raw["run_id"] = labels
    columns = read_table(raw, ["N", "D", "loss"], ["run_id"])
    n, c = np.log(columns["N"]), np.log(6 * columns["N"] * columns["D"])
    run = run_index(columns)
    if int(run.max()) + 1 == len(run):
        if budgets is not None:
            raise ConfigurationError("budgets=… reads curves off, but every row of the table is a run of its own.")
        order = np.argsort(c)
        group = np.concatenate([[0], np.cumsum(np.diff(c[order]) > SAME_BUDGET)])
        centre = np.bincount(group, c[order]) / np.bincount(group)
        log_c = np.empty(len(c))
        log_c[order] = centre[group]
        return log_c, n, columns["loss"]
    ends = np.array([[c[run == r].min(), c[run == r].max()] for r in range(int(run.max()) + 1)])
    if budgets is None:
        low, high = np.sort(ends[:, 0])[min(3, len(ends) - 1)], np.sort(ends[:, 1])[max(len(ends) - 4, 0)]
        at = np.linspace(low, high, 8) if high > low else np.empty(0)
    else:
        at = np.log(np.atleast_1d(positive("budgets", budgets, "FLOPs")))
    rows = []
    for r, (start, end) in enumerate(ends):
        own = np.flatnonzero(run == r)
        own = own[np.argsort(c[own])]
        inside = at[(at >= start) & (at <= end)]
        read = np.exp(np.interp(inside, c[own], np.log(columns["loss"][own])))
        rows += [(budget, n[own[0]], y) for budget, y in zip(inside, read, strict=True)]
    return tuple(np.array(rows).T) if rows else (np.empty(0), np.empty(0), np.empty(0))  # type: ignore[return-value]


def _frontier(method: str, found: list[tuple[float, float, float]]) -> Frontier:
    if len(found) < 2:
        raise FitError(
            f"{method}: only {len(found)} budgets have a minimum between their sizes, 2 are needed. Train at least 4 "
            f"sizes at each of several budgets C = 6·N·D, on both sides of the best one."
        )
    log_c, log_n, loss = np.array(found).T
    exponent, level = np.polyfit(log_c - log_c.mean(), log_n, 1)
    scale = float(np.exp(level - exponent * log_c.mean()))
    size, budget = np.exp(log_n), np.exp(log_c)
    return Frontier(method, budget, size, budget / (6 * size), loss, float(exponent), scale)
