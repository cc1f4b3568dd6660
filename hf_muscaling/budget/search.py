"""Search of designs within a budget, and the trade-off between cost and the interval to expect.

Designs are built by the criterion of `screening` (greedy additions by gain per cost, then exchanges: take one option
out, refill), from every largest size that the budget allows; the best few, which differ in their largest size, and
equal spacing are scored by the law's own interval on simulated runs (`expected`). The cheapest of those that are as
narrow as the narrowest, to what the simulation can tell, is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from ..laws import ScalingLaw
from .belief import Belief
from .design import Design, Menu, equal_spacing
from .expected import Columns, ExpectedInterval, simulated_interval
from .screening import Screen

SHORTLIST = 3
ALIKE = 0.03
"""Expected half-widths closer than this share are not told apart: the standard error of 32 draws is about as large."""
ROUNDS = 3


@dataclass(frozen=True)
class Question:
    """What a plan is for: beliefs, the options, the target, the law that will be fitted, the runs there are."""

    belief: Belief
    menu: Menu
    target: Mapping[str, float]
    law: ScalingLaw
    finished: Columns
    level: float
    draws: int | None = None  #: of the simulated series, where they are fewer than the belief's

    @property
    def screen(self) -> Screen:
        """Return the fast criterion."""
        return Screen(self.belief, self.menu.points, self.target, self.level)

    def interval(self, counts: np.ndarray) -> ExpectedInterval:
        """Return the interval of the law itself with the runs that are there and those still to do."""
        new = counts - self.menu.finished
        return simulated_interval(
            self.belief, self.menu.points, new, self.target, self.law, self.finished, self.level, self.draws,
        )  # fmt: skip

    def fits(self, counts: np.ndarray) -> bool:
        """Whether the law can be fitted to a design: three sizes; for L(N, D) two horizons and four points as well."""
        points, there = self.menu.points, counts > 0
        sizes = np.union1d(self.finished["N"], points["N"][there])
        if "D" not in points:
            return len(sizes) >= 3
        return len(sizes) >= 3 and len(np.unique(points["D"][there])) >= 2 and int(there.sum()) >= 4

    def least(self) -> np.ndarray:
        """Return a cheap design that can be fitted: the finished runs and the cheapest options at new sizes, then at
        any point, until it can.
        """
        counts, menu = self.menu.finished.copy(), self.menu
        paid = np.array([max(o.paid, o.finished) for o in menu.options])
        order = np.argsort(np.where(paid > counts, 0.0, menu.costs), kind="stable")
        for new_sizes in (True, False):  # of new sizes three, then whatever else the law needs
            for j in order:
                if self.fits(counts):
                    return counts
                there = np.union1d(self.finished["N"], menu.points["N"][counts > 0])
                wanted = len(there) < 3 and menu.options[j].N not in there if new_sizes else True
                counts[j] += int(wanted and not counts[j])
        if not self.fits(counts):
            raise ConfigurationError(
                f"The options have {len(np.unique(menu.points['N']))} distinct sizes; a law needs 3. Give more widths "
                "to choose from."
            )
        return counts


def search(question: Question, budget: float, shortlist: int = SHORTLIST) -> list[np.ndarray]:
    """Return the most promising designs of a budget as counts (k,), best first by the fast criterion.

    Returns [] if the budget does not buy a design that can be fitted.
    """
    menu, screen = question.menu, question.screen
    least = question.least()
    if menu.cost(least) > budget * (1 + 1e-9):
        return []
    sizes = menu.points["N"]
    found: dict[float, tuple[float, np.ndarray]] = {}
    for top in np.unique(sizes):
        inside = (sizes <= top) | (menu.finished > 0)
        start = least.copy()
        for j in np.flatnonzero(sizes == top):
            if not start[sizes == top].any():
                start[j] += 1
        if (start[~inside] > 0).any() or menu.cost(start) > budget * (1 + 1e-9):
            continue
        counts = _fill(screen, menu, start, budget, inside)
        found[top] = (float(screen.half_widths(counts)[0]), counts)
    best = sorted(found.values(), key=lambda pair: pair[0])[: 2 * shortlist]
    improved = [_exchange(question, screen, counts, budget) for _, counts in best]
    unique = {tuple(c): float(screen.half_widths(c)[0]) for c in (*improved, *(c for _, c in best))}
    ranked = sorted(unique, key=unique.__getitem__)
    kept: list[np.ndarray] = []
    for chosen in map(np.array, ranked):
        if all(_top(sizes, chosen) != _top(sizes, other) for other in kept):
            kept.append(chosen)
    return kept[:shortlist]


def _top(sizes: np.ndarray, counts: Sequence[int] | np.ndarray) -> float:
    return float(sizes[np.asarray(counts) > 0].max())


def _fill(screen: Screen, menu: Menu, counts: np.ndarray, budget: float, allowed: np.ndarray) -> np.ndarray:
    """Add runs, each the one that narrows the interval most for its cost, until the budget is spent."""
    now = float(screen.half_widths(counts)[0])
    while True:
        tried = counts + np.eye(len(counts), dtype=int)
        cost = menu.cost(tried)
        open_ = allowed & (counts < menu.limits) & (cost <= budget * (1 + 1e-9))
        if not open_.any():
            return counts
        half = np.full(len(counts), np.inf)
        half[open_] = screen.half_widths(tried[open_])
        price = np.maximum(cost - menu.cost(counts), 1e-3 * menu.costs)
        gain = np.full(len(counts), -np.inf)
        gain[open_] = np.log(now / half[open_]) / price[open_]
        j = int(gain.argmax())
        if not gain[j] > 0:
            return counts
        counts, now = tried[j], float(half[j])


def _exchange(question: Question, screen: Screen, counts: np.ndarray, budget: float) -> np.ndarray:
    """Take all or one of the new runs of an option out and refill, as long as that narrows the interval."""
    menu, floor, everything = question.menu, question.menu.finished, np.ones(len(counts), bool)
    now = float(screen.half_widths(counts)[0])
    for _ in range(ROUNDS):
        better = False
        for j in np.flatnonzero(counts > floor):
            for kept in {int(floor[j]), int(counts[j]) - 1}:
                without = counts.copy()
                without[j] = kept
                if not question.fits(without):
                    continue
                others = everything.copy()
                others[j] = False
                refilled = _fill(screen, menu, without, budget, others)
                half = float(screen.half_widths(refilled)[0])
                if half < now * (1 - 1e-6):
                    counts, now, better = refilled, half, True
                    break
        if not better:
            break
    return counts


def best_design(question: Question, budget: float, shortlist: int = SHORTLIST) -> Design | None:
    """Return the cheapest of the designs with the narrowest expected interval within a budget; None if it buys none."""
    menu = question.menu
    tried = search(question, budget, shortlist)
    if tried and not menu.finished.any() and "D" not in menu.points:
        usual = (equal_spacing(menu.options, budget, sizes=n, overhead=menu.overhead) for n in (4, 5))
        tried += [counts for counts in usual if counts is not None and question.fits(counts)]
    designs = [menu.design(counts, question.interval(counts)) for counts in tried]
    if not designs:
        return None
    narrowest = min(d.half_width for d in designs)
    return min((d for d in designs if d.half_width <= (1 + ALIKE) * narrowest), key=lambda d: d.cost)


def frontier(question: Question, budgets: Sequence[float]) -> list[Design]:
    """Return the designs that no cheaper one beats, by rising cost, from a search at each budget."""
    found: list[Any] = [best_design(question, budget, 2) for budget in budgets]
    kept: list[Design] = []
    for design in sorted((d for d in found if d is not None), key=lambda d: d.cost):
        if not kept or design.half_width < kept[-1].half_width:
            kept.append(design)
    return kept
