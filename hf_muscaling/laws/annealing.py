"""The regression behind `AnnealingLaw`, with exact derivatives and starts from linear fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .problem import CurvedProblem
from .selection import Columns

ALPHAS = np.geomspace(0.03, 3.0, 16)
FLATTEST, STEEPEST = 1e-3, 4.0


class AnnealingProblem(CurvedProblem):
    """`log(l + exp(a - alpha·x) - c·y)` with its exact derivatives; x = log(S1/S1_0), y = S2 over its largest."""

    @classmethod
    def of(cls, columns: Columns) -> AnnealingProblem:
        """The problem of validated rows; without annealing c is held at 0."""
        x = np.log(columns["S1"])
        y = columns["S2"] / _scale(columns)
        top = float(columns["loss"].max())
        high = np.array([top, np.log(top) + 30, STEEPEST, 10 * top if np.any(y > 0) else 0.0])
        low = np.array([0.0, -30.0, FLATTEST, 0.0])
        problem = cls(
            np.stack([x - x.mean(), y], 1), np.zeros(4, int), columns["loss"], row_weights(columns), low, high
        )  # fmt: skip
        object.__setattr__(problem, "units", (float(x.mean()), _scale(columns)))
        return problem

    def named(self, theta: np.ndarray) -> dict[str, float]:
        """The paper's letters, without lambda_."""
        return {name: float(v[0]) for name, v in self.named_draws(theta[None]).items()}

    def named_draws(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """The paper's letters (m,) of theta (m, 4)."""
        origin, scale = self.units  # type: ignore[attr-defined]
        l0, a, alpha, c = theta.T
        return {"L0": l0, "A": np.exp(a + alpha * origin), "alpha": alpha, "C": c / scale}

    def internal(self, params: Mapping[str, float]) -> np.ndarray:
        """Theta (4,) from the paper's letters."""
        origin, scale = self.units  # type: ignore[attr-defined]
        a = np.log(max(params["A"], 1e-300)) - params["alpha"] * origin
        theta = np.array([params["L0"], a, params["alpha"], params["C"] * scale])
        return np.clip(theta, self.low, self.high)

    def starts(self) -> np.ndarray:
        """Linear fits of l, e^a and c over a grid of alpha."""
        root = np.sqrt(self.weight) / self.loss
        rows = []
        for alpha in ALPHAS:
            terms = np.stack([np.ones_like(self.loss), np.exp(-alpha * self.x[:, 0]), -self.x[:, 1]], 1)
            l0, power, c = np.linalg.lstsq(terms * root[:, None], self.loss * root, rcond=None)[0]
            rows.append([l0, np.log(max(power, 1e-3 * self.loss.min())), alpha, c])
        found = np.clip(rows, self.low, self.high)
        return found[np.argsort(self.value(found, "least_squares"))[:3]]

    def expansion(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """log L, its gradient and its weighted Hessians; see `CurvedProblem`."""
        l0, a, alpha, c = (theta[:, j, None] for j in range(4))
        x, y = self.covariates
        power = np.exp(a - alpha * x)
        loss = l0 + power - c * y
        floor = 1e-3 * self.loss.min(-1, keepdims=True)
        inside = loss > floor
        loss = np.where(inside, loss, floor)
        parts = np.stack([np.ones_like(power), power, -x * power, -y + 0 * power], 1)
        gradient = parts * (inside / loss)[:, None]

        def second(row: np.ndarray) -> np.ndarray:
            row = row * inside
            hessian = -(gradient * row[:, None]) @ gradient.transpose(0, 2, 1)
            bent = row * power / loss
            hessian[:, 1, 1] += bent.sum(1)
            cross = -(bent * x).sum(1)
            hessian[:, 1, 2] += cross
            hessian[:, 2, 1] += cross
            hessian[:, 2, 2] += (bent * x * x).sum(1)
            return hessian

        return np.log(loss), gradient, second


def _scale(columns: Columns) -> float:
    return float(np.abs(columns["S2"]).max()) or 1.0


def row_weights(columns: Columns) -> np.ndarray:
    """The weights given, mean 1."""
    weight = columns.get("weight")
    return np.ones_like(columns["loss"]) if weight is None else weight / weight.mean()
