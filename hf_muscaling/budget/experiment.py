"""The planner of an experiment: its widths as options with their cost, and its proxies in planned order.

Costs are FLOPs by nanoLM's formula over those of the target (Eq. 1): the grid's trials at base width are the overhead,
and the best of them is the base width's first proxy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigurationError
from ..runs import Run, Series
from .advice import Advice, advise
from .belief import Assumptions
from .design import ProxyOption
from .horizons import plan_horizons
from .plan import BudgetPlan, plan_budget
from .share import read_share

if TYPE_CHECKING:
    from ..configuration import ExperimentConfig
    from ..counting import Count
    from ..laws import PowerLaw

MOST = 16
"""Widths offered to a search, evenly spread in their logarithm."""
BEYOND = 3.0  #: the widths offered reach as far as so many times the budget does, for the trade-off
WHOLE = 1.0  #: the budget, if only a tolerance is given: the target's own cost


@dataclass(frozen=True)
class Offer:
    """What an experiment may train: `options` by width, `target` parameters, and the grid's cost as `overhead`."""

    options: tuple[ProxyOption, ...]
    target: float
    overhead: float
    budget: float
    tolerance: float | None
    level: float
    count: Count
    objective: str
    steps: int
    tokens_per_step: int

    @property
    def law(self) -> PowerLaw:
        """Return the law, not fitted, that the experiment fits."""
        from ..laws import PowerLaw

        return PowerLaw(objective=self.objective, count=self.count)

    def plan(self, **options: Any) -> BudgetPlan:
        """Return the plan before any run; further options are those of `plan_budget`."""
        given = {"overhead": self.overhead, "tolerance": self.tolerance, "level": self.level, "law": self.law}
        return plan_budget(self.options, self.target, self.budget, **(given | options))

    def plan_horizons(self, shares: Sequence[float], **options: Any) -> BudgetPlan:
        """Return the plan before any run of widths, seeds and steps, with runs of these shares of the target's steps
        too; further options are those of `plan_horizons`.

        Raises ConfigurationError for shares outside (0, 1).
        """
        if any(not 0 < share < 1 for share in shares):
            raise ConfigurationError(f"horizons={list(shares)} must be shares of the target's steps, between 0 and 1.")
        lengths = sorted({max(round(share * self.steps), 1) for share in (*shares, 1.0)})
        offered = [
            replace(o, steps=n, D=float(n * self.tokens_per_step), cost=o.cost * n / self.steps,
                    paid=o.paid * (n == self.steps))
            for o in self.options for n in lengths
        ]  # fmt: skip
        target = self.target, float(self.steps * self.tokens_per_step)
        given = {"overhead": self.overhead, "tolerance": self.tolerance, "level": self.level}
        return plan_horizons(offered, target, self.budget, **(given | options))

    def advise(self, runs: Iterable[Run], assumptions: Assumptions | None = None, **options: Any) -> Advice:
        """Return what to do after these runs; widths at which only diverged runs are known are offered no more."""
        runs = list(runs)
        diverged = {run.width for run in runs if not run.finished} - {run.width for run in runs if run.finished}
        offered = [option for option in self.options if option.width not in diverged]
        return advise(
            Series(runs).to_rows(), offered, self.target, self.budget, tolerance=self.tolerance, overhead=self.overhead,
            law=self.law, level=self.level, assumptions=assumptions, **options,
        )  # fmt: skip


def offer(config: ExperimentConfig, vocabulary: int, widths: Sequence[int] | None = None) -> Offer:
    """Return the options of an experiment within its `budget`, counted without allocating a model.

    `widths` are by default every multiple of the head size from the smallest of base width and `widths` up to the
    largest that the budget allows beside the cheapest two, thinned to `MOST`. Raises ConfigurationError for widths that
    are impossible or at least the target's, and for a budget that does not buy three.
    """
    from ..counting import count_parameters
    from ..experiment import experiment_step_flops

    budget = WHOLE if config.budget is None else read_share("budget", config.budget)
    tolerance = None if config.tolerance is None else read_share("tolerance", config.tolerance)
    count: Any = config.count
    base, top = config.base_config(vocabulary), config.target_width
    whole = experiment_step_flops(config, top, vocabulary)

    def cost(width: int) -> float:
        return experiment_step_flops(config, width, vocabulary) / whole

    if top <= config.base_width:
        raise ConfigurationError(
            f"The target's width {top} is not larger than the base width {config.base_width}, at which the grid is "
            "searched. Give a larger --target_width, or a smaller --base_width."
        )
    if config.budget is not None and budget > 1:
        warnings.warn(
            f"The budget of {100 * budget:.3g} % is more than training the target, which costs 100 %.",
            UserWarning,
            stacklevel=2,
        )
    cells = len(config.learning_rates) * len(config.init_stds) * len(config.output_multipliers)
    overhead = cells * cost(config.base_width)
    if widths is None:
        widths = _affordable(config, cost, budget, overhead)
    too_wide = [w for w in widths if w >= top]
    if too_wide:
        raise ConfigurationError(f"The width {too_wide[0]} is no proxy of a target of width {top}; leave it out.")
    options = [
        ProxyOption(w, count_parameters(base.at_width(w), count), cost(w), paid=int(w == config.base_width))
        for w in sorted(set(widths))
    ]
    target = count_parameters(base.at_width(top), count)
    return Offer(
        tuple(options), float(target), overhead, budget, tolerance, config.level, count, config.objective, config.steps,
        config.batch_size * config.sequence_length,
    )  # fmt: skip


def _affordable(config: ExperimentConfig, cost: Callable[[int], float], budget: float, overhead: float) -> list[int]:
    more = BEYOND * budget - overhead
    step, smallest = config.head_size, min(*config.widths, config.base_width)
    ladder = list(range(smallest, config.target_width, step))
    free = {config.base_width}
    cheapest = sum(sorted(0.0 if w in free else cost(w) for w in ladder)[:2])
    least = sum(sorted(0.0 if w in free else cost(w) for w in ladder)[:3])
    if len(ladder) < 3:
        raise ConfigurationError(
            f"Between {smallest} and the target's width {config.target_width} lie {len(ladder)} multiples of the head "
            f"size {step}, and a law needs three proxies. Take a larger target or a smaller --head_size."
        )
    if overhead + least > budget * (1 + 1e-9):
        raise ConfigurationError(
            f"The budget of {100 * budget:.3g} % is too small: the grid costs {100 * overhead:.3g} % of the target's "
            f"FLOPs and the cheapest three widths cost {100 * least:.3g} % beside it, so that --budget must be "
            f"{_up(overhead + least)} % or more. Raise it, search fewer learning rates, or take a larger target."
        )
    inside = [w for w in ladder if w in free or cheapest + cost(w) <= more * (1 + 1e-9)]
    if len(inside) <= MOST:
        return inside
    wanted = np.geomspace(inside[0], inside[-1], MOST)
    return sorted({inside[int(np.abs(np.array(inside) - w).argmin())] for w in wanted} | free)


def _up(share: float) -> str:
    """Return a share in percent, rounded up to three digits: a budget of so much is enough."""
    percent = 100 * share
    step = 10.0 ** (math.floor(math.log10(percent)) - 2)
    return f"{math.ceil(percent / step - 1e-9) * step:.10g}"


def train_planned(
    config: ExperimentConfig, offered: Offer, train: Callable[[int, int], Run], say: Callable[[Advice], None]
) -> list[Run]:
    """Train proxies one by one, `train(width, seed)` each, as advised after every one; return them by width.

    The base width's first run is the best of the grid and comes first. `say` is told every advice. The same runs are
    found again when the same experiment is continued, since advice follows from the runs before it alone.
    """
    runs = [train(config.base_width, config.seed)]
    while True:
        advice = offered.advise(runs)
        say(advice)
        if advice.add is None:
            return sorted(runs, key=lambda run: (run.width, run.seed))
        width = advice.add.width
        runs.append(train(width, config.seed + sum(run.width == width for run in runs)))
