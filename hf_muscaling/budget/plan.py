"""The planner: the widths, seeds and steps whose interval at the target is expected to be narrowest for a budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from ..laws import PowerLaw
from ..laws.base import check_level
from .belief import Assumptions, PowerBelief, belief_of
from .design import Design, Menu, ProxyOption, equal_spacing
from .expected import finished_runs
from .search import Question, best_design, frontier

DRAWS = 32
STEPS_OF_CURVE = 7


@dataclass(frozen=True)
class BudgetPlan:
    """What to train for a budget: the chosen `design`, the trade-off `curve`, and equal spacing at the same cost.

    `cost` and `budget` are shares of the target's FLOPs, grid and finished runs included. `tight` says whether the
    expected half-width is within `tolerance`, if one was given.
    """

    design: Design
    curve: tuple[Design, ...]
    equal: Design | None
    target: dict[str, float]
    budget: float
    overhead: float
    tolerance: float | None
    beliefs: str
    level: float

    @property
    def tight(self) -> bool | None:
        """Return whether the interval is expected to be within the tolerance."""
        return None if self.tolerance is None else self.design.half_width <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "design": self.design.to_dict(), "curve": [d.to_dict() for d in self.curve],
            "equal_spacing": self.equal.to_dict() if self.equal else None, "target": self.target,
            "budget": self.budget, "overhead": self.overhead, "tolerance": self.tolerance, "tight": self.tight,
            "beliefs": self.beliefs, "level": self.level,
        }  # fmt: skip

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def __str__(self) -> str:
        lines = [["width", "steps", "N", "seeds", "finished", "cost of one"]]
        for option, count in self.design.runs:
            lines.append([
                str(option.width), str(option.steps or "the target's"), f"{option.N:.4g}", str(count),
                str(option.finished), f"{100 * option.cost:.2f} %",
            ])  # fmt: skip
        at = ", ".join(f"{name} = {value:.4g}" for name, value in self.target.items())
        parts = [f"Target {at}; budget {100 * self.budget:.3g} % of its FLOPs.", f"Beliefs: {self.beliefs}.", ""]
        parts += [_table(lines), ""]
        parts.append(
            f"Cost {100 * self.design.cost:.2f} % of the target, of which grid and finished runs "
            f"{100 * self.overhead:.2f} %; {self.design.interval}."
        )
        if self.equal is not None:
            parts.append(
                f"Equal spacing for the same budget ({self.equal}): ± {100 * self.equal.half_width:.2f} % expected."
            )
        if self.tolerance is not None:
            words = "reaches" if self.tight else "does not reach"
            parts.append(f"That {words} the tolerance of ± {100 * self.tolerance:.3g} %.")
        curve = [["cost", "interval", "runs"]]
        curve += [[f"{100 * d.cost:.2f} %", f"± {100 * d.half_width:.2f} %", str(d)] for d in self.curve]
        rest = ["", "What other budgets buy:", _table(curve, last_left=True)] if len(self.curve) > 1 else []
        return "\n".join([*parts, *rest])


def _table(lines: list[list[str]], last_left: bool = False) -> str:
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if last_left and k == len(line) - 1 else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def plan_budget(
    options: Sequence[ProxyOption],
    target: float,
    budget: float,
    *,
    belief: PowerLaw | Assumptions | PowerBelief | None = None,
    keep: bool = True,
    assumptions: Assumptions | None = None,
    overhead: float = 0.0,
    max_seeds: int = 8,
    tolerance: float | None = None,
    level: float = 0.9,
    draws: int = DRAWS,
    law: PowerLaw | None = None,
    curve: bool = True,
) -> BudgetPlan:
    """Return the runs whose interval at a target of `target` parameters is expected to be narrowest for a budget.

    `options` is what may be trained; every cost and `budget` are shares of the target's (0.05 is 5 %). `overhead` was
    spent before: the grid, finished runs. `belief` is a law fitted to the finished runs, which stay part of the series
    (`keep=False`: the law of other runs, believed only), or `Assumptions`; beside a law `assumptions` temper what few
    runs seem to say of the noise. With a `tolerance` (half-width as a share of
    the loss) the cheapest design expected to reach it is taken. `curve=False` leaves the trade-off out.

    All options are trained for the target's steps, as a law in N supposes.

    Raises ConfigurationError if the budget does not buy a design that can be fitted.

    >>> options = [ProxyOption(w, 12.0 * w**2, (w / 256) ** 2) for w in (16, 24, 32, 48, 64, 96)]
    >>> plan = plan_budget(options, 12.0 * 256**2, 0.3, draws=8, curve=False)
    >>> plan.design.cost <= 0.3 and plan.design.half_width < plan.equal.half_width
    True
    """
    check_budget(budget, tolerance)
    level = check_level(level)
    usable = tuple(sorted((o for o in options if target > o.N), key=lambda o: o.N))
    if not usable:
        raise ConfigurationError(f"No option is smaller than the target's N = {target:.4g}.")
    menu = Menu(usable, overhead, max_seeds)
    assumptions = belief if isinstance(belief, Assumptions) else assumptions
    found = belief_of(belief, menu.points["N"].min(), draws, assumptions)
    own = law or (type(belief)(**belief.settings()) if isinstance(belief, PowerLaw) else PowerLaw())
    none = {"N": np.empty(0), "loss": np.empty(0)}
    finished = finished_runs(belief) if isinstance(belief, PowerLaw) and keep else none
    question = Question(found, menu, {"N": float(target)}, own, finished, level)
    least = float(menu.cost(question.least()))
    chosen = best_design(question, budget)
    if chosen is None:
        raise ConfigurationError(
            f"The budget of {100 * budget:.3g} % does not buy three sizes: grid and the cheapest three cost "
            f"{100 * least:.3g} % of the target ({100 * overhead:.3g} % the grid). Raise it, take narrower widths, or "
            "search fewer learning rates."
        )
    budgets = np.geomspace(max(least, budget / 8) * 1.02, 3 * budget, STEPS_OF_CURVE if curve else 0).tolist()
    designs = _pareto([*(frontier(question, budgets)), chosen])
    if tolerance is not None:
        enough = [d for d in designs if d.half_width <= tolerance and d.cost <= budget * (1 + 1e-9)]
        chosen = enough[0] if enough else chosen
    counts = equal_spacing(usable, budget, overhead=overhead) if not finished["N"].size else None
    equal = None if counts is None else menu.design(counts, question.interval(counts))
    if isinstance(belief, PowerLaw):
        words = f"measured by {belief.n_runs_} runs"
    else:
        words = "given draws" if isinstance(belief, PowerBelief) else str(belief or assumptions or Assumptions())
    return BudgetPlan(
        chosen, tuple(designs), equal, {"N": float(target)}, float(budget), float(overhead), tolerance, words, level
    )


def _pareto(designs: Sequence[Design]) -> list[Design]:
    kept: list[Design] = []
    for design in sorted(designs, key=lambda d: (d.cost, d.half_width)):
        if not kept or design.half_width < kept[-1].half_width:
            kept.append(design)
    return kept


def check_budget(budget: float, tolerance: float | None) -> None:
    """Raise ConfigurationError unless both are shares: above 0 and finite, the tolerance below 1."""
    if not (np.isfinite(budget) and budget > 0):
        raise ConfigurationError(f"budget={budget} must be a positive share of the target's FLOPs, such as 0.05.")
    if tolerance is not None and not 0 < tolerance < 1:
        raise ConfigurationError(f"tolerance={tolerance} must be a share of the loss between 0 and 1, such as 0.01.")
