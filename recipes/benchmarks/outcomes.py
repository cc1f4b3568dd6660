"""What a design came to at a target whose loss is known, and two designs side by side; `budget.py` prints them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hf_muscaling import PowerLaw
from hf_muscaling.budget import half_width


class Outcome(NamedTuple):
    """What one design came to at one target; `unit` names the target's run, `half` is relative to the loss."""

    unit: object
    predicted: float
    loss: float
    half: float
    inside: bool
    cost: float

    @property
    def error(self) -> float:
        """Return |predicted / loss - 1|."""
        return abs(self.predicted / self.loss - 1)


def measured(law: PowerLaw, rows: dict, target: float, loss: float, cost: float, unit: object = None) -> Outcome:
    """Return the prediction at the target; the interval, the same for every objective, lies about that of "bayes"."""
    predicted = float(law.fit(rows).predict(N=target).loss)
    middle = predicted
    if law.objective != "bayes":
        law = PowerLaw(count=law.count).fit(rows)
        middle = float(law.predict(N=target).loss)
    half = half_width(law, {"N": target})
    return Outcome(unit, predicted, loss, half, abs(middle - loss) <= half * middle, cost)


def line(name: str, found: Sequence[Outcome], note: str = "") -> str:
    """Return a row of the table: errors, half-width, coverage."""
    error = np.array([o.error for o in found])
    return (
        f"  {name:26s} cost {100 * np.mean([o.cost for o in found]):6.2f} %  mean |error| {100 * error.mean():5.2f} %  "
        f"median {100 * np.median(error):5.2f} %  half-width {100 * np.median([o.half for o in found]):5.2f} %  inside "
        f"{100 * np.mean([o.inside for o in found]):3.0f} %  {note}"
    )


def paired(own: Sequence[Outcome], other: Sequence[Outcome]) -> str:
    """Return the mean difference of |error|, with a standard error that takes units as independent."""
    sums: dict[object, list[float]] = defaultdict(list)
    for a, b in zip(own, other, strict=True):
        sums[a.unit].append(a.error - b.error)
    mean = np.mean([d for values in sums.values() for d in values])
    off = np.array([sum(d - mean for d in values) for values in sums.values()])
    se = np.sqrt((off**2).sum() * len(off) / max(len(off) - 1, 1)) / len(own)
    wins, losses = (sum(k * (a.error - b.error) < -1e-9 for a, b in zip(own, other, strict=True)) for k in (1, -1))
    return (
        f"  difference {100 * mean:+.2f} ± {100 * se:.2f} % ({len(own)} pairs, {len(off)} targets; smaller at {wins}, "
        f"larger at {losses})"
    )
