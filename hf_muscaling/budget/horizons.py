"""Proxies that train for fewer steps than the target: designs of widths, seeds and steps under L(N, D).

A law in N compares runs at one horizon, so that each of its proxies trains for the target's steps. Shorter proxies are
cheaper and need a law that knows tokens, Hoffmann et al.'s `L(N, D) = E + A/N^alpha + B/D^beta`, with two more
parameters to pay for. `plan_horizons` searches designs of points (width, steps) under that law's sensitivities and
scores them by the interval of `ChinchillaLaw` itself; beside `plan_budget` it says which of the two a budget should go
to. A shorter run must have its own schedule, annealed at its own end: an intermediate checkpoint is not one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from ..errors import ConfigurationError
from ..laws import ChinchillaLaw
from ..laws.base import check_level
from .belief import Assumptions, Belief, Points
from .design import Menu, ProxyOption
from .plan import BudgetPlan, check_budget
from .search import Question, best_design

SEARCHED, SCORED = 32, 8
"""Draws of the fast criterion, and of the simulated series: a bootstrap of ChinchillaLaw takes a second."""
DRIFT, DRIFT_RANGE, DRIFT_WIDTH, DRIFT_POWER = 0.3, (7e-3, 0.02), 1.0, 1.0
"""What is believed of the law's misfit before any run: N(0, tau²·d²) a log distance d beyond them, tau log-normal about
0.3 sigma, at least 0.7 %. Finished runs say more: `laws.misfit`."""
SHARE = (0.3, 0.7)  #: of the reducible loss that is the size's, the rest the tokens', at the smallest size


@dataclass(frozen=True)
class ChinchillaBelief(Belief):
    """Draws of L = E + A·(N/N0)^-alpha + B·(D/D0)^-beta with sigma, rho, tau: arrays (M,).

    Source of the exponents: `ChinchillaLaw`'s weak prior, 0.36 ± 0.12 and 0.36 ± 0.16.
    """

    variables: ClassVar[tuple[str, ...]] = ("N", "D")
    E: np.ndarray
    A: np.ndarray
    B: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    sigma: np.ndarray
    rho: np.ndarray
    tau: np.ndarray
    origin: tuple[float, float]
    power: float = DRIFT_POWER

    @classmethod
    def assumed(
        cls, origin: tuple[float, float], assumptions: Assumptions | None = None, draws: int = SEARCHED
    ) -> ChinchillaBelief:
        """Return draws of what is assumed before any run; the loss at the smallest size and horizon is 1."""
        given = assumptions or Assumptions()
        u = qmc.Halton(7, scramble=False).random(draws + 1)[1:].T
        z = ndtri(u)
        floor = given.floor[0] + u[0] * (given.floor[1] - given.floor[0])
        size = SHARE[0] + u[1] * (SHARE[1] - SHARE[0])
        prior = ChinchillaLaw.weak_prior
        alpha, beta = (
            centre * np.exp(sd / centre * z[k]) for k, (centre, sd) in zip((2, 3), prior.values(), strict=True)
        )
        noise, misfit = given.log_normal("noise"), given.log_normal("misfit")
        sigma = np.exp(noise[0] + noise[1] * z[4])
        return cls(
            floor, (1 - floor) * size, (1 - floor) * (1 - size), alpha, beta, sigma,
            (np.exp(misfit[0] + misfit[1] * z[5]) / sigma) ** 2,
            np.clip(DRIFT * sigma, *DRIFT_RANGE) * np.exp(DRIFT_WIDTH * z[6]), origin,
        )  # fmt: skip

    def _terms(self, at: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        n, d = (np.log(np.asarray(at[name], float) / start) for name, start in zip("ND", self.origin, strict=True))
        return (
            n,
            d,
            self.A[:, None] * np.exp(-self.alpha[:, None] * n),
            self.B[:, None] * np.exp(-self.beta[:, None] * d),
        )

    def loss(self, at: Points) -> np.ndarray:
        """Return the loss (M, k) of every draw at every point."""
        _, _, by_size, by_tokens = self._terms(at)
        return self.E[:, None] + by_size + by_tokens

    def slopes(self, at: Points) -> np.ndarray:
        """Return d log L / d (log E, log A, alpha, log B, beta), (M, k, 5)."""
        n, d, by_size, by_tokens = self._terms(at)
        loss = self.E[:, None] + by_size + by_tokens
        parts = (np.broadcast_to(self.E[:, None], loss.shape), by_size, -by_size * n, by_tokens, -by_tokens * d)
        return np.stack(parts, -1) / loss[..., None]

    def precision(self, at: Points) -> np.ndarray:
        """Return the precision (M, 5): the exponents' weak prior, and next to nothing for the scales."""
        alpha, beta = (sd**-2 for _, sd in ChinchillaLaw.weak_prior.values())
        return np.tile([0.1, 0.1, alpha, 0.1, beta], (len(self.sigma), 1))

    def misfit(self, at: Points, trained: np.ndarray) -> np.ndarray:
        """Return rho·d², d the log distance in compute below the largest run of the design."""
        log = np.sum([np.log(np.asarray(values, float)) for values in at.values()], 0)
        largest = np.where(trained, log, -np.inf).max(1)
        return self.rho[:, None] * np.maximum(largest[:, None] - log, 0.0)[:, None, :] ** 2

    def stray(self, away: np.ndarray) -> np.ndarray:
        """Return 0: beyond the runs this law strays by its drift alone."""
        return np.zeros((len(away), len(self.sigma)))


def plan_horizons(
    options: Sequence[ProxyOption],
    target: tuple[float, float],
    budget: float,
    *,
    overhead: float = 0.0,
    max_seeds: int = 2,
    tolerance: float | None = None,
    level: float = 0.9,
    assumptions: Assumptions | None = None,
    draws: int = SCORED,
) -> BudgetPlan:
    """Return the points (width, steps) whose interval under L(N, D) is expected to be narrowest for a budget.

    `options` have D; `target` is (N, D). The rest is as in `plan_budget`, before any run. The same options at the
    target's D alone are the business of `plan_budget`: compare the two plans' `design.half_width`.

    Raises ConfigurationError for options without D or at one horizon only, or a budget that buys no such design.

    >>> options = [ProxyOption(w, 12.0 * w**2, share * (w / 256) ** 2, D=share * 1e8, steps=int(400 * share))
    ...            for w in (16, 32, 64) for share in (0.25, 0.5, 1.0)]
    >>> plan = plan_horizons(options, (12.0 * 256**2, 1e8), 0.2, draws=2)
    >>> plan.design.cost <= 0.2 and len({option.steps for option, _ in plan.design.runs}) > 1
    True
    """
    check_budget(budget, tolerance)
    level = check_level(level)
    usable = tuple(sorted((o for o in options if target[0] > o.N), key=lambda o: (o.N, o.D or 0.0)))
    if len({o.D for o in usable}) < 2 or any(o.D is None for o in usable):
        raise ConfigurationError(
            "Designs under L(N, D) need options with D, the tokens of a run, at two horizons or more; at one horizon "
            "use plan_budget, a law in N."
        )
    menu = Menu(usable, overhead, max_seeds)
    points = menu.points
    origin = float(points["N"].min()), float(points["D"].min())
    belief = ChinchillaBelief.assumed(origin, assumptions)
    none = {"N": np.empty(0), "D": np.empty(0), "loss": np.empty(0)}
    where = {"N": float(target[0]), "D": float(target[1])}
    question = Question(belief, menu, where, ChinchillaLaw(), none, level, draws)
    chosen = best_design(question, budget)
    if chosen is None:
        raise ConfigurationError(
            f"The budget of {100 * budget:.3g} % does not buy three sizes at two horizons: they cost "
            f"{100 * float(menu.cost(question.least())):.3g} % of the target with the grid. Raise it."
        )
    words = str(assumptions or Assumptions())
    return BudgetPlan(chosen, (chosen,), None, where, budget, overhead, tolerance, words, level)
