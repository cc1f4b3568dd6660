"""Kaplan et al.'s `L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ..errors import FitError
from .answers import plain, positive
from .bootstrap import BootstrapLaw
from .problem import CurvedProblem, Problem
from .regression import Origin, Pin
from .selection import Columns, count_distinct

STEEPEST, FLATTEST = 4.0, 1e-3
GRID_N = np.exp(np.linspace(np.log(0.02), np.log(1.5), 14))
GRID_D = np.exp(np.linspace(np.log(0.03), np.log(1.5), 14))


class KaplanLaw(BootstrapLaw):
    """Loss from parameters and tokens without an irreducible part: `L(N, D) = [(N_c/N)^(alpha_N/alpha_D) +
    D_c/D]^alpha_D`, nats per token.

    With unlimited data it is `(N_c/N)^alpha_N`, with an unlimited model `(D_c/D)^alpha_D`. The paper counts N without
    embeddings: put that count in the column `N`. Objectives, `window`, `prior` and `fixed` as in `ChinchillaLaw`.

    Source: Kaplan et al. 2020, Eq. 1.5. Raises `FitError` for a table with fewer than 2 distinct N or D, or fewer
    rows than free parameters.

    >>> n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
    >>> loss = ((8.8e13 / n) ** (0.076 / 0.095) + 5.4e13 / d) ** 0.095
    >>> law = KaplanLaw(objective="huber").fit({"N": n, "D": d, "loss": loss})
    >>> {name: float(f"{value:.3g}") for name, value in law.params_.items()}
    {'N_c': 88000000000000.0, 'alpha_N': 0.076, 'D_c': 54000000000000.0, 'alpha_D': 0.095}
    """

    equation: ClassVar[str] = "L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D"
    meanings: ClassVar[dict[str, str]] = {"N": "parameters, by the paper without embeddings"}
    bounds: ClassVar[dict[str, tuple[float, float]]] = {
        "N_c": (0.0, np.inf),
        "alpha_N": (0.0, STEEPEST),
        "D_c": (0.0, np.inf),
        "alpha_D": (0.0, STEEPEST),
    }
    weak_prior: ClassVar[dict[str, tuple[float, float]]] = {"alpha_N": (0.1, 0.1), "alpha_D": (0.15, 0.15)}

    @staticmethod
    def loss(N: Any, D: Any, N_c: float, alpha_N: float, D_c: float, alpha_D: float) -> Any:
        """`[(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D`, nats per token."""
        with np.errstate(divide="ignore"):  # N_c = 0: no effect of N
            by_size = alpha_N / alpha_D * (np.log(N_c) - np.log(np.asarray(N, float)))
        by_data = np.log(D_c) - np.log(np.asarray(D, float))
        return np.exp(alpha_D * np.logaddexp(by_size, by_data))

    def compute_optimal(self, C: Any) -> tuple[Any, Any]:
        """The N and D of lowest loss for C = 6·N·D training FLOPs.

        `N = (u·N_c^u·C/(6·D_c))^(1/(1+u))`, u = alpha_N/alpha_D, from setting the derivative along C to zero. Raises
        `ConfigurationError` when C is not a positive number.
        """
        self._check_fitted()
        budget = positive("C", C, "FLOPs")
        p = self.params_
        ratio = p["alpha_N"] / p["alpha_D"]
        log = (np.log(ratio) + ratio * np.log(p["N_c"]) + np.log(budget / 6) - np.log(p["D_c"])) / (1 + ratio)
        return plain(np.exp(log)), plain(budget / (6 * np.exp(log)))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _check_columns(self, columns: Columns) -> None:
        """With alpha_N (alpha_D) known, one N (D) is enough: the law's shape along the other variable tells the term's
        size. A single point tells one letter of the four.
        """
        several = {name: count_distinct(columns[name]) for name in ("N", "D")}
        for name, found in several.items():
            if found < 2 and f"alpha_{name}" not in self.fixed:
                raise FitError(
                    f"{self.equation} needs at least 2 distinct {name}, the table has 1. Train more sizes and "
                    f"horizons, or borrow from another family: fixed={{'alpha_{name}': …, '{name}_c': …}}."
                )
        alike = self.fixed.get("alpha_N") == self.fixed.get("alpha_D") is not None
        if alike and not self.fixed.keys() & {"N_c", "D_c"} and count_distinct(columns["D"] / columns["N"]) < 2:
            raise FitError(
                "D is proportional to N in these runs and alpha_N = alpha_D: N_c/N + D_c/D is then one term, which "
                "does not tell N_c and D_c apart. Train runs of another D/N, or borrow N_c or D_c too: "
                "fixed={'alpha_N': …, 'alpha_D': …, 'D_c': …}."
            )
        free = len(self.parameters) - len(self.fixed)
        points = len(np.unique(np.stack([columns["N"], columns["D"]]), axis=1).T)
        points = 1 if max(several.values()) < 2 else points
        if points < free:
            rows = len(columns["loss"])
            raise FitError(
                f"{self.equation} has {free} free parameters and {rows} rows"
                f"{f' at {points} distinct (N, D)' if points < rows else ''}. Add runs."
            )

    def _problem(self, columns: Columns, weight: np.ndarray, origin: Origin) -> Problem:
        """theta = (alpha_N·log(N_c/N_0), alpha_N, log(D_c/D_0), alpha_D), N_0 and D_0 the origin."""
        loss = columns["loss"]
        x = np.stack([np.log(columns["N"]) - origin["N"], np.log(columns["D"]) - origin["D"]], 1)
        edge = np.abs(np.log(loss)).max() + 40
        low = np.array([-edge, FLATTEST, -1e3, FLATTEST])
        high = np.array([edge, STEEPEST, 1e3, STEEPEST])
        return KaplanProblem(x, np.zeros(4, int), loss, weight, low, high)

    def _material(self, theta: np.ndarray) -> np.ndarray:
        return np.array([1.0, 0.5 * theta[1], 3.0, 0.5 * theta[3]])

    def _starts(self, problem: Problem, kept: int = 4) -> np.ndarray:
        """Linear fits: for each (alpha_N, alpha_D), `L^(1/alpha_D)` is linear in its two terms."""
        rows = []
        for alpha in GRID_D:
            p = np.exp(-GRID_N[:, None] / alpha * problem.x[:, 0] - np.log(problem.loss) / alpha)
            q = np.exp(-problem.x[:, 1] - np.log(problem.loss) / alpha)
            first, second, cost = positive_pair(p, q, problem.weight)
            a = alpha * np.log(first)
            rows.append(np.stack([a, GRID_N, np.log(second), np.full(len(GRID_N), alpha), cost * alpha**2], 1))
        found = np.concatenate(rows)
        return found[np.argsort(found[:, 4])[: 8 * kept : 8], :4]

    def _named(self, theta: np.ndarray, origin: Origin) -> dict[str, np.ndarray]:
        a, alpha_n, q, alpha_d = theta.T
        with np.errstate(over="ignore"):
            return {
                "N_c": np.exp(a / alpha_n + origin["N"]),
                "alpha_N": alpha_n,
                "D_c": np.exp(q + origin["D"]),
                "alpha_D": alpha_d,
            }

    def _internal(self, params: Mapping[str, Any], origin: Origin) -> np.ndarray:
        p = {name: np.atleast_1d(np.asarray(value, float)) for name, value in params.items()}
        a = p["alpha_N"] * (np.log(p["N_c"]) - origin["N"])
        return np.stack([a, p["alpha_N"], np.log(p["D_c"]) - origin["D"], p["alpha_D"]], 1)

    def _pin(self, name: str, value: float, origin: Origin) -> Pin:
        if name in ("N_c", "D_c"):
            return {name[0]: float(np.log(value))}, 0 if name == "N_c" else 2, 0.0
        return {}, 1 if name == "alpha_N" else 3, value


def positive_pair(p: np.ndarray, q: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted fits of `a·p + b·q = 1` with a, b > 0, one for each row of p (g, n): a, b and the squares left over."""
    q = np.broadcast_to(q, p.shape)
    a, b = positive_solution((p * p) @ w, (p * q) @ w, (q * q) @ w, p @ w, q @ w)
    return a, b, ((a[:, None] * p + b[:, None] * q - 1) ** 2) @ w


def positive_solution(pp: Any, pq: Any, qq: Any, p1: Any, q1: Any) -> tuple[np.ndarray, np.ndarray]:
    """a, b > 0 of such fits from their weighted sums of p², p·q, q², p and q."""
    det = np.maximum(pp * qq - pq**2, 1e-14 * pp * qq)
    a, b = (p1 * qq - q1 * pq) / det, (pp * q1 - pq * p1) / det
    alone_p, alone_q = p1 / pp, q1 / qq
    only_p = (b <= 0) & (a > 0)
    a, b = np.where(only_p, alone_p, a), np.where(only_p, 1e-3 * alone_q, b)
    only_q = a <= 0
    return np.where(only_q, 1e-3 * alone_p, a), np.where(only_q, alone_q, b)


class KaplanProblem(CurvedProblem):
    """`log L = alpha_D · logaddexp((a - alpha_N·n)/alpha_D, q - d)` with its exact derivatives."""

    def expansion(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """log L, its gradient and its weighted Hessians; see `CurvedProblem`."""
        a, alpha_n, q, alpha = (theta[:, j, None] for j in range(4))
        n, d = self.covariates
        size = (a - alpha_n * n) / alpha
        inner = np.logaddexp(size, q - d)
        share = np.exp(size - inner)
        slope = np.stack(  # of the inner logaddexp
            [share / alpha, -share * n / alpha, 1 - share, -share * size / alpha], 1
        )
        gradient = alpha[:, :, None] * slope
        gradient[:, 3] += inner
        apart = np.stack([1 / alpha + 0 * n, -n / alpha + 0 * a, -np.ones_like(share), -size / alpha], 1)

        def second(row: np.ndarray) -> np.ndarray:
            mixed = row * share * (1 - share)
            hessian = (apart * (mixed * alpha)[:, None]) @ apart.transpose(0, 2, 1)
            curved = row * share  # of the size term itself, times alpha
            hessian[:, 0, 3] -= (curved / alpha).sum(1)
            hessian[:, 1, 3] += (curved * n / alpha).sum(1)
            hessian[:, 3, 3] += (2 * curved * size / alpha).sum(1)
            cross = (slope * row[:, None]).sum(2)
            hessian[:, :, 3] += cross
            hessian[:, 3, :] += cross
            hessian[:, 3, 0] -= (curved / alpha).sum(1)
            hessian[:, 3, 1] += (curved * n / alpha).sum(1)
            return hessian

        return alpha * inner, gradient, second
