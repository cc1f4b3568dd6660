"""Hoffmann et al.'s `L(N, D) = E + A/N^alpha + B/D^beta`, and what it says about spending a budget."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigurationError, FitError
from .bootstrap import BootstrapLaw, log_covariates
from .fitting import OBJECTIVES, Problem, minimise, objective_value, resampled

STEEPEST, FLATTEST = 4.0, 1e-3
GRID = np.exp(np.linspace(np.log(0.03), np.log(2.0), 18))


class ChinchillaLaw(BootstrapLaw):
    """Loss from parameters and tokens: `L(N, D) = E + A/N^alpha + B/D^beta`, nats per token.

    `objective` is "huber" (Huber(1e-3) on log loss, the paper's Eq. 3 and the default), "least_squares" (on the loss)
    or "lad". The global optimum is found without start values: linear fits of (E, A, B) over a grid of (alpha, beta),
    then Newton's method with the exact Hessian, Huber's width lowered step by step.

    The interval of `predict` resamples runs (all rows of one `run_id` together), adds the noise of one run and a
    drift measured by refitting on smaller compute (`laws.intervals`).

    Source: Hoffmann et al. 2022, Approach 3; Besiroglu et al. 2024 for the replication. Raises `FitError` for a table
    with fewer than 5 rows, or fewer than 3 distinct N or D.

    >>> n, d = np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5))
    >>> runs = {"N": n.ravel(), "D": d.ravel(), "loss": (1.8 + 480 / n**0.35 + 2100 / d**0.37).ravel()}
    >>> law = ChinchillaLaw().fit(runs)
    >>> {name: round(value, 3) for name, value in law.params_.items()}
    {'E': 1.8, 'A': 480.0, 'B': 2100.0, 'alpha': 0.35, 'beta': 0.37}
    >>> n, d = law.compute_optimal(C=1e21)
    >>> round(6 * n * d / 1e21, 9)
    1.0
    """

    objectives: ClassVar[tuple[str, ...]] = tuple(OBJECTIVES)
    equation: ClassVar[str] = "L(N, D) = E + A/N^alpha + B/D^beta"
    bounds: ClassVar[dict[str, tuple[float, float]]] = {
        "E": (0.0, np.inf),
        "A": (0.0, np.inf),
        "B": (0.0, np.inf),
        "alpha": (0.0, STEEPEST),
        "beta": (0.0, STEEPEST),
    }

    def __init__(self, objective: str = "huber"):
        super().__init__(objective)

    @staticmethod
    def loss(N: Any, D: Any, E: float, A: float, B: float, alpha: float, beta: float) -> Any:
        """`E + A/N^alpha + B/D^beta`, nats per token."""
        return E + A * np.asarray(N, float) ** -alpha + B * np.asarray(D, float) ** -beta

    def compute_optimal(self, C: Any) -> tuple[Any, Any]:
        """The N and D of lowest loss for C = 6·N·D training FLOPs.

        `N = G·(C/6)^(beta/(alpha+beta))`, `D = C/(6·N)`, `G = (alpha·A/(beta·B))^(1/(alpha+beta))` (Hoffmann et al.
        2022, Eq. 4). Raises `ConfigurationError` when C is not a positive number.
        """
        self._check_fitted()
        budget = np.asarray(C)
        if budget.dtype.kind not in "iuf" or not (np.isfinite(budget) & (budget > 0)).all():
            raise ConfigurationError(f"C={str(C)[:40]!r} must be a finite number of FLOPs > 0.")
        p = self.params_
        total = p["alpha"] + p["beta"]
        scale = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / total)
        n = scale * (budget / 6) ** (p["beta"] / total)
        d = budget / (6 * n)
        return (float(n), float(d)) if budget.ndim == 0 else (n, d)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _estimate(self, columns: dict[str, np.ndarray]) -> tuple[dict[str, float], float]:
        for name in ("N", "D"):
            found = len(np.unique(columns[name]))
            if found < 3:
                raise FitError(
                    f"{self.equation} needs at least 3 distinct {name}, the table has {found}. Train more sizes and "
                    f"horizons, or fit "
                    "a PowerLaw in the variable that changes."
                )
        if len(columns["loss"]) < 5:
            raise FitError(f"{self.equation} has 5 parameters and the table {len(columns['loss'])} rows. Add runs.")
        problem = self._problem(columns)
        theta, value = minimise(problem, _starts(problem), self.objective, polish=False, lowering=True)
        if self.objective == "lad":
            theta, value = minimise(problem, theta[None], self.objective)
        params = {name: float(v[0]) for name, v in self._named(theta[None], columns).items()}
        return params, self._score(columns, params)

    def _score(self, columns: dict[str, np.ndarray], params: dict[str, float]) -> float:
        log = np.log(self.loss(columns["N"], columns["D"], **params))
        return float(objective_value(self.objective, log, columns["loss"], self._weights(columns)))

    def _problem(self, columns: dict[str, np.ndarray], weight: np.ndarray | None = None) -> Problem:
        """theta = (log E, log A', alpha, log B', beta), A' and B' at the geometric means of N and D."""
        loss = columns["loss"]
        one = np.ones_like(loss)
        x = np.stack([one, one, -log_covariates(columns["N"]), one, -log_covariates(columns["D"])], 1)
        top, bottom = np.log(loss.max()), np.log(loss.min())
        low = np.array([bottom - 25, bottom - 30, FLATTEST, bottom - 30, FLATTEST])
        high = np.array([top, top + 60, STEEPEST, top + 60, STEEPEST])
        weight = self._weights(columns) if weight is None else weight
        return Problem(x, np.array([0, 1, 1, 2, 2]), loss, weight, low, high)

    def _named(self, theta: np.ndarray, columns: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        columns = self._columns if columns is None else columns
        n, d = (np.log(columns[name]).mean() for name in ("N", "D"))
        e, a, alpha, b, beta = theta.T
        return {"E": np.exp(e), "A": np.exp(a + alpha * n), "B": np.exp(b + beta * d), "alpha": alpha, "beta": beta}

    @cached_property
    def _theta(self) -> np.ndarray:
        p = self.params_
        n, d = (np.log(self._columns[name]).mean() for name in ("N", "D"))
        tiny = 1e-300
        return np.array(
            [
                np.log(p["E"] + tiny),
                np.log(p["A"] + tiny) - p["alpha"] * n,
                p["alpha"],
                np.log(p["B"] + tiny) - p["beta"] * d,
                p["beta"],
            ]
        )

    def _resample(self, n: int, seed: int) -> np.ndarray:
        counts = self._counts(n, seed)
        return resampled(self._problem(self._columns, counts), self._theta, self.objective)


def _starts(problem: Problem, kept: int = 3) -> np.ndarray:
    """Variable projection: for each (alpha, beta) the linear fit of (E, A, B) to the relative residuals; the best few
    local minima.
    """
    y, w = problem.loss, problem.weight / problem.loss**2
    p, q = np.exp(GRID[:, None] * problem.x[:, 2]), np.exp(GRID[:, None] * problem.x[:, 4])
    k = len(GRID)
    gram = np.empty((k, k, 3, 3))
    gram[..., 0, 0] = w.sum()
    gram[..., 0, 1] = gram[..., 1, 0] = (p @ w)[:, None]
    gram[..., 0, 2] = gram[..., 2, 0] = (q @ w)[None, :]
    gram[..., 1, 1] = ((p * p) @ w)[:, None]
    gram[..., 2, 2] = ((q * q) @ w)[None, :]
    gram[..., 1, 2] = gram[..., 2, 1] = (p * w) @ q.T
    right = np.empty((k, k, 3))
    right[..., 0] = w @ y
    right[..., 1] = (p @ (w * y))[:, None]
    right[..., 2] = (q @ (w * y))[None, :]
    gram += 1e-12 * np.einsum("abii->ab", gram)[..., None, None] * np.eye(3)
    solved = np.linalg.solve(gram, right[..., None])[..., 0]
    tiny = 1e-3 * y.min()
    solved = np.maximum(solved, tiny)
    cost = np.einsum("abi,abij,abj->ab", solved, gram, solved) - 2 * np.einsum("abi,abi->ab", solved, right)
    padded = np.pad(cost, 1, constant_values=np.inf)
    around = np.min([padded[1 + i : k + 1 + i, 1 + j : k + 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)], 0)
    rows, cols = np.nonzero(cost <= around)
    order = np.argsort(cost[rows, cols])[:kept]
    rows, cols = rows[order], cols[order]
    e, a, b = np.log(solved[rows, cols]).T
    return np.stack([e, a, GRID[rows], b, GRID[cols]], 1)
