"""What to do after each finished proxy: stop, or the run that is worth most, with what it is expected to bring."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ConfigurationError, FitError
from ..laws import PowerLaw
from ..laws.base import check_level
from .belief import Assumptions, PowerBelief
from .design import Design, Menu, ProxyOption
from .expected import Columns, half_width
from .plan import check_budget
from .search import Question, best_design

DRAWS = 24
WORTH = 0.02
"""A plan for all that is left of a budget that narrows the interval by less than this share is not worth it."""


@dataclass(frozen=True)
class Advice:
    """What to do next. `action` is "add", or "stop" with the `reason`: "tight" (within the tolerance), "budget" (what
    is left buys nothing more) or "worth" (what it buys would hardly narrow the interval).

    `now` is the half-width at the target with the finished runs, as a report gives it, None before a law can be
    fitted. `after` is what is expected once the run `add` is there, `plan` the runs for the whole budget. All are
    shares (of the loss; costs of the target's FLOPs).
    """

    action: str
    reason: str
    now: float | None
    spent: float
    budget: float
    add: ProxyOption | None = None
    after: float | None = None
    plan: Design | None = None

    @property
    def stop(self) -> bool:
        """Whether nothing more should be trained."""
        return self.action == "stop"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "action": self.action, "reason": self.reason, "half_width": self.now,
            "spent": self.spent, "budget": self.budget, "width": self.add.width if self.add else None,
            "steps": self.add.steps if self.add else None, "expected_half_width": self.after,
            "plan": self.plan.to_dict() if self.plan else None,
        }  # fmt: skip

    def __str__(self) -> str:
        now = "not known yet" if self.now is None else f"{100 * self.now:.2f} %"
        spent = f"{100 * self.spent:.2f} % of the target spent"
        if self.add is not None:
            after = "" if self.after is None else f" → {100 * self.after:.2f} %"
            whole = f"; the whole plan {100 * self.plan.half_width:.2f} %" if self.plan else ""
            seed = f", seed {self.add.finished + 1}" if self.add.finished else ""
            return (
                f"add {self.add.label}{seed}: interval {now}{after}{whole} (costs {100 * self.add.cost:.2f} %, {spent})"
            )
        why = {
            "tight": f"interval is tight enough, {now}",
            "budget": f"the budget of {100 * self.budget:.3g} % buys no further run; interval {now}",
            "worth": f"what the budget still buys would hardly narrow the interval, {now}",
        }[self.reason]
        return f"stop: {why} ({spent})"


def advise(
    runs: Any,
    options: Sequence[ProxyOption],
    target: float,
    budget: float,
    *,
    tolerance: float | None = None,
    overhead: float = 0.0,
    assumptions: Assumptions | None = None,
    law: PowerLaw | None = None,
    max_seeds: int = 8,
    level: float = 0.9,
    draws: int = DRAWS,
) -> Advice:
    """Return what to do after the `runs` finished so far: stop, or which run to add.

    `runs` is any table a `PowerLaw` fits (a `Series`, rows with N and loss); it may be empty. With it the law, its
    sensitivities and the noise between seeds are measured; while fewer than three sizes are finished, `assumptions`
    stand in; later they temper what few runs seem to say of the noise. `options`, `overhead`, `budget` and `tolerance`
    are those of `plan_budget`: shares of the target's FLOPs and of its loss; how often each option is finished is
    counted here. Of the runs in the best plan for the rest of the budget, the one to add is the cheapest that is
    expected to reach the tolerance alone, otherwise the one that narrows the interval most for its cost. Raises
    ConfigurationError as `plan_budget` does.

    >>> options = [ProxyOption(w, 12.0 * w**2, (w / 256) ** 2) for w in (16, 24, 32, 48, 64, 96)]
    >>> print(str(advise([], options, 12.0 * 256**2, budget=0.3, draws=8))[:12])
    add width 16
    """
    check_budget(budget, tolerance)
    level = check_level(level)
    own = law or PowerLaw()
    finished = _table(runs, own)
    usable = sorted((o for o in options if target > o.N), key=lambda o: o.N)
    counted = [int(np.isclose(finished["N"], o.N, rtol=1e-6).sum()) for o in usable]
    free = [max(o.paid, o.finished) for o in usable]
    usable = [replace(o, finished=n, paid=max(n, o.paid)) for o, n in zip(usable, counted, strict=True)]
    if not usable:
        raise ConfigurationError(f"No option is smaller than the target's N = {target:.4g}.")
    # What is finished has been paid for: by the overhead (a trial of the grid), or run by run.
    spent = overhead + sum(o.cost * max(n - f, 0) for o, n, f in zip(usable, counted, free, strict=True))
    now, belief = _current(finished, own, float(target), level, draws, assumptions, usable[0].N)
    if tolerance is not None and now is not None and now <= tolerance:
        return Advice("stop", "tight", now, spent, budget)
    menu = Menu(tuple(usable), spent, max_seeds)
    question = Question(belief, menu, {"N": float(target)}, type(own)(**own.settings()), finished, level)
    plan = best_design(question, budget)
    extra = [] if plan is None else [o for o, n in plan.runs if n > o.finished]
    if plan is None or not extra:
        return Advice("stop", "budget", now, spent, budget, plan=plan)
    if now is None:
        first = min(extra, key=lambda o: (o.finished > 0, o.cost))  # new sizes first: a law needs three
        return Advice("add", "plan", None, spent, budget, first, None, plan)
    if plan.half_width > (1 - WORTH) * now:
        return Advice("stop", "worth", now, spent, budget, plan=plan)
    after = {o.label: question.interval(_one_more(menu, o)).half_width for o in extra}
    enough = [o for o in extra if tolerance is not None and after[o.label] <= tolerance]
    if enough:
        chosen = min(enough, key=lambda o: o.cost)
    else:
        chosen = max(extra, key=lambda o: np.log(now / after[o.label]) / o.cost)
    return Advice("add", "plan", now, spent, budget, chosen, after[chosen.label], plan)


def _one_more(menu: Menu, option: ProxyOption) -> np.ndarray:
    counts = menu.finished.copy()
    counts[menu.options.index(option)] += 1
    return counts


def _table(runs: Any, law: PowerLaw) -> dict[str, np.ndarray]:
    """Return N (the one the law reads) and loss of the finished runs."""
    if isinstance(runs, (list, tuple)) and not runs:
        return {"N": np.empty(0), "loss": np.empty(0)}
    if isinstance(runs, Mapping) or not isinstance(runs, Iterable) or len(runs):  # type: ignore[arg-type]
        columns, _ = law._selected(runs)
        return {"N": columns[law.columns["N"]], "loss": columns["loss"]}
    return {"N": np.empty(0), "loss": np.empty(0)}


def _current(
    finished: Columns,
    law: PowerLaw,
    target: float,
    level: float,
    draws: int,
    assumptions: Assumptions | None,
    smallest: float,
) -> tuple[float | None, PowerBelief]:
    """Return the half-width at the target now, and what is believed: the law, or the assumptions."""
    if len(np.unique(finished["N"])) >= 3:
        own = type(law)(**law.settings())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which parameters stay open, how far the target lies: the interval says it
            try:
                own.fit({law.columns["N"]: finished["N"], "loss": finished["loss"]})
                return half_width(own, {"N": target}, level), PowerBelief.measured(own, assumptions, draws)
            except FitError:
                pass  # the loss does not fall yet: more runs may show that it does, so that the assumptions stand
    belief = PowerBelief.assumed(smallest, assumptions, draws)
    if len(finished["N"]):  # losses in the units of the finished runs
        level_of = np.mean(finished["loss"] / belief.loss({"N": finished["N"]}).mean(0))
        belief = replace(belief, a=belief.a * level_of, c=belief.c * level_of)
    return None, belief
