"""What a law predicts, loss or score, and how its predictions compare with what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """A predicted loss and its interval, in nats per token; scalars or arrays, as the variables were given.

    `low` and `high` bound the measured loss of one new run at confidence `level`. `extrapolation` says how many times
    the largest fitted value the point is; with several variables it is the largest of the factors in `beyond`. `below`
    holds how many times smaller than the smallest fitted value it is (1 or less: no smaller).
    """

    loss: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    level: float
    extrapolation: float | np.ndarray
    beyond: Mapping[str, float | np.ndarray] = field(default_factory=dict)
    at: Mapping[str, float | np.ndarray] = field(default_factory=dict)
    below: Mapping[str, float | np.ndarray] = field(default_factory=dict)

    def __str__(self) -> str:
        shape = np.broadcast_shapes(np.shape(self.loss), *(np.shape(v) for v in self.at.values()))
        lines = []
        for i in np.ndindex(*shape):

            def pick(value: float | np.ndarray, i: tuple[int, ...] = i) -> float:
                return float(np.broadcast_to(value, shape)[i])

            place = ", ".join(f"{name} = {pick(value):.4g}" for name, value in self.at.items())
            far = ", ".join(
                f"{pick(self.below[name]):.3g} times below the smallest fitted {name}"
                if pick(self.below.get(name, 1.0)) > 1
                else f"{pick(value):.3g} × the largest fitted {name}"
                for name, value in self.beyond.items()
            )
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


@dataclass(frozen=True)
class ScorePrediction:
    """A predicted task score and its interval, shares of 1; scalars or arrays as the losses were given.

    `low` and `high` bound the score of one new checkpoint with probability `level`; `loss` is the loss it was read off
    at. `extrapolation` says how far below the lowest fitted loss that lies, in widths of the fitted range (0: inside).
    """

    score: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray
    level: float
    extrapolation: float | np.ndarray
    loss: float | np.ndarray
    at: Mapping[str, float | np.ndarray] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        shape = np.shape(self.score)
        for i in np.ndindex(*shape):
            pick = [float(np.asarray(v)[i]) for v in (self.loss, self.score, self.low, self.high, self.extrapolation)]
            place = "".join(
                f"{n} = {float(np.broadcast_to(v, np.shape(self.score))[i]):.4g}, " for n, v in self.at.items()
            )
            lines.append(
                f"{place}loss {pick[0]:.4f}: score {pick[1]:.4f}, {100 * self.level:g} % interval "
                f"[{pick[2]:.4f}, {pick[3]:.4f}]" + (f", {pick[4]:.2g} ranges below the fitted losses" * (pick[4] > 0))
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class ScoreEvaluation:
    """How a downstream law did: `mae` mean |score_fit - score|, signed `errors`, `coverage` inside the interval."""

    mae: float
    coverage: float
    level: float
    errors: np.ndarray
    prediction: ScorePrediction

    def __str__(self) -> str:
        return (
            f"mean error {100 * self.mae:.2f} points over {len(self.errors)} rows, {100 * self.coverage:.0f} % inside "
            f"the {100 * self.level:g} % interval"
        )
