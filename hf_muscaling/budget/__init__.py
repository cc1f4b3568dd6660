"""What to train for a budget: expected intervals, designs that make them narrow, advice after each finished run.

No torch here: options and costs come in as numbers (`ProxyOption`); `budget.experiment` counts them for an experiment.
"""

from .advice import Advice, advise
from .belief import Assumptions, PowerBelief
from .design import Design, ProxyOption, equal_spacing
from .expected import ExpectedInterval, expected_interval, half_width
from .horizons import plan_horizons
from .plan import BudgetPlan, plan_budget

__all__ = [
    "Advice",
    "Assumptions",
    "BudgetPlan",
    "Design",
    "ExpectedInterval",
    "PowerBelief",
    "ProxyOption",
    "advise",
    "equal_spacing",
    "expected_interval",
    "half_width",
    "plan_budget",
    "plan_horizons",
]
