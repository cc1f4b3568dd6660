"""What a law predicts, and how its predictions compare with what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """A predicted loss and its interval, in nats per token; scalars or arrays, as the variables were given.

    `low` and `high` bound the measured loss of one new run at confidence `level`. `extrapolation` says how many times
    beyond the largest fitted value the point lies (below 1: inside); with several variables it is the largest of the
    factors in `beyond`.
    """

    loss: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    level: float
    extrapolation: float | np.ndarray
    beyond: Mapping[str, float | np.ndarray] = field(default_factory=dict)
    at: Mapping[str, float | np.ndarray] = field(default_factory=dict)

    def __str__(self) -> str:
        shape = np.broadcast_shapes(np.shape(self.loss), *(np.shape(v) for v in self.at.values()))
        lines = []
        for i in np.ndindex(*shape):

            def pick(value: float | np.ndarray, i: tuple[int, ...] = i) -> float:
                return float(np.broadcast_to(value, shape)[i])

            place = ", ".join(f"{name} = {pick(value):.4g}" for name, value in self.at.items())
            far = ", ".join(f"{pick(value):.3g} × the largest fitted {name}" for name, value in self.beyond.items())
            lines.append(
                f"{place}: loss {pick(self.loss):.4f} nats per token, {100 * self.level:g} % interval "
                f"[{pick(self.low):.4f}, {pick(self.high):.4f}], {far}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Evaluation:
    """How a law did on runs: `are` mean |L_fit - L| / L, `errors` signed per row, `coverage` the share inside the
    interval.
    """

    are: float
    coverage: float
    level: float
    errors: np.ndarray
    prediction: Prediction

    def __str__(self) -> str:
        n, worst = len(self.errors), float(np.max(np.abs(self.errors)))
        return (
            f"ARE {100 * self.are:.2f} % over {n} run{'s' * (n > 1)} (worst {100 * worst:.2f} %), "
            f"{100 * self.coverage:.0f} % inside the {100 * self.level:g} % interval"
        )
