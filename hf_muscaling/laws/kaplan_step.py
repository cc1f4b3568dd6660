"""The law of "Unraveling the Mystery of Scaling Laws: Part I": loss from parameters, steps and batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ..errors import FitError
from .bootstrap import BootstrapLaw
from .fitting import CurvedProblem, Problem
from .kaplan import positive_pair
from .regression import Origin, Pin
from .selection import Columns

STEEPEST, FLATTEST = 4.0, 1e-3
GRID = np.exp(np.linspace(np.log(0.03), np.log(1.5), 12))
CURVATURES = (1.0, 3.0, 6.0, 12.0)  #: 1/alpha_B tried as starts


class KaplanStepLaw(BootstrapLaw):
    """Loss from parameters N, optimizer steps S and batch size B (tokens), nats per token:

        L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S
        S_min = S / (1 + B_crit(L)/B),    B_crit(L) = B_star / L^(1/alpha_B)

    Since B_crit depends on the loss reached, L solves an equation with one root. The paper counts N without
    embeddings. Objectives, `window`, `prior` and `fixed` as in `ChinchillaLaw`; a table without `S` may give `step`,
    or D with B.

    The six constants are fitted jointly (`laws.stages` fits them stage by stage). Batch sizes on one side of the
    critical one leave B_star and alpha_B open; the fit then says so.

    Source: Su et al. 2024, Part I; Kaplan et al. 2020, Eqs. 1.4 to 1.6; McCandlish et al. 2018 for B_crit.

    >>> n, s, b = (v.ravel() for v in np.meshgrid([1e6, 1e7, 6e7], [500.0, 2e3, 8e3], [3e4, 1e5, 1e6]))
    >>> truth = {"N_c": 1e14, "alpha_N": 0.076, "S_c": 3e3, "alpha_S": 0.67, "B_star": 2e8, "alpha_B": 0.21}
    >>> runs = {"N": n, "S": s, "B": b, "loss": KaplanStepLaw.loss(n, s, b, **truth)}
    >>> law = KaplanStepLaw(objective="huber").fit(runs)
    >>> {name: float(f"{value:.3g}") for name, value in law.params_.items()}
    {'N_c': 100000000000000.0, 'alpha_N': 0.076, 'S_c': 3000.0, 'alpha_S': 0.67, 'B_star': 200000000.0, 'alpha_B': 0.21}
    """

    equation: ClassVar[str] = (
        "L(N, S, B) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S, S_min = S/(1 + B_crit/B), B_crit = B_star/L^(1/alpha_B)"
    )
    bounds: ClassVar[dict[str, tuple[float, float]]] = {
        "N_c": (0.0, np.inf),
        "alpha_N": (0.0, STEEPEST),
        "S_c": (0.0, np.inf),
        "alpha_S": (0.0, STEEPEST),
        "B_star": (0.0, np.inf),
        "alpha_B": (0.0, np.inf),
    }
    weak_prior: ClassVar[dict[str, tuple[float, float]]] = {
        "alpha_N": (0.1, 0.1),
        "alpha_S": (0.6, 0.3),
        "alpha_B": (0.21, 0.1),
    }

    @staticmethod
    def loss(
        N: Any, S: Any, B: Any, N_c: float, alpha_N: float, S_c: float, alpha_S: float, B_star: float, alpha_B: float
    ) -> Any:
        """The root L of the law, nats per token."""
        floor = alpha_N * (np.log(N_c) - np.log(np.asarray(N, float)))
        fall = alpha_S * (np.log(S_c) - np.log(np.asarray(S, float)))
        log = solve_log_loss(floor, fall, alpha_S, np.log(B_star) - np.log(np.asarray(B, float)), 1 / alpha_B)
        return np.exp(log)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _check_columns(self, columns: Columns) -> None:
        for name in ("N", "S"):
            if len(np.unique(columns[name])) < 2 and f"alpha_{name}" not in self.fixed:
                raise FitError(
                    f"KaplanStepLaw needs at least 2 distinct {name}, the table has 1. Add sizes and checkpoints, or "
                    f"borrow: fixed={{'alpha_{name}': …}} from another family."
                )
        free = len(self.parameters) - len(self.fixed) - (2 if self.objective == "bayes" else 0)
        if len(columns["loss"]) < free:
            raise FitError(f"KaplanStepLaw has {free} free parameters and {len(columns['loss'])} rows. Add rows.")

    def _problem(self, columns: Columns, weight: np.ndarray, origin: Origin) -> Problem:
        """theta = (alpha_N·log(N_c/N_0), alpha_N, alpha_S·log(S_c/S_0), alpha_S, log B_crit(L_0), 1/alpha_B)."""
        loss = columns["loss"]
        x = np.stack([np.log(columns[name]) - origin[name] for name in ("N", "S", "B")], 1)
        edge = np.abs(np.log(loss)).max() + 60
        wide = np.log(columns["B"]) - origin["B"]
        middle = -40.0 if origin["L"] else -1e3
        low = np.array([-edge, FLATTEST, -edge, FLATTEST, wide.min() + middle, 0.02])
        high = np.array([edge, STEEPEST, edge, STEEPEST, wide.max() - middle, 50.0])
        return StepProblem(x, np.zeros(6, int), loss, weight, low, high, origin=origin["L"])

    def _starts(self, problem: Problem, kept: int = 10) -> np.ndarray:
        """Linear fits: given B_crit(L) at the measured losses and both exponents, L is linear in its two terms."""
        n, s, b = problem.x.T
        log = np.log(problem.loss)
        found = []
        spans = np.linspace(b.min() - 3, b.max() + 3, 7)
        for curvature in CURVATURES:
            for middle in spans:
                s_min = s - np.logaddexp(0, middle - curvature * (log - log.mean()) - b)
                p = np.exp(-GRID[:, None] * n - log)
                q = np.exp(-GRID[:, None] * s_min - log)
                pairs = np.repeat(np.arange(len(GRID)), len(GRID)), np.tile(np.arange(len(GRID)), len(GRID))
                first, second, cost = positive_pair(p[pairs[0]], q[pairs[1]], problem.weight)
                best = np.argsort(cost)[:2]
                for j in best:
                    found.append(
                        [np.log(first[j]), GRID[pairs[0][j]], np.log(second[j]), GRID[pairs[1][j]], middle, curvature,
                         cost[j]]
                    )  # fmt: skip
        rows = np.array(found)
        return rows[np.argsort(rows[:, 6])[:kept], :6]

    def _named(self, theta: np.ndarray, origin: Origin) -> dict[str, np.ndarray]:
        a, alpha_n, c, alpha_s, middle, curvature = theta.T
        with np.errstate(over="ignore"):
            return {
                "N_c": np.exp(a / alpha_n + origin["N"]),
                "alpha_N": alpha_n,
                "S_c": np.exp(c / alpha_s + origin["S"]),
                "alpha_S": alpha_s,
                "B_star": np.exp(middle + curvature * origin["L"] + origin["B"]),
                "alpha_B": 1 / curvature,
            }

    def _internal(self, params: Mapping[str, Any], origin: Origin) -> np.ndarray:
        p = {name: np.atleast_1d(np.asarray(value, float)) for name, value in params.items()}
        return np.stack(
            [
                p["alpha_N"] * (np.log(p["N_c"]) - origin["N"]),
                p["alpha_N"],
                p["alpha_S"] * (np.log(p["S_c"]) - origin["S"]),
                p["alpha_S"],
                np.log(p["B_star"]) - origin["B"] - origin["L"] / p["alpha_B"],
                1 / p["alpha_B"],
            ],
            1,
        )

    def _pin(self, name: str, value: float, origin: Origin) -> Pin:
        if name in ("N_c", "S_c"):
            return {name[0]: float(np.log(value))}, 0 if name == "N_c" else 2, 0.0
        if name == "B_star":
            return {"L": 0.0}, 4, float(np.log(value)) - origin["B"]
        if name == "alpha_B":
            return {}, 5, 1 / value
        return {}, 1 if name == "alpha_N" else 3, value

    def _spread(self, name: str, value: float, sd: float) -> float:
        return sd / value**2 if name == "alpha_B" else sd


def solve_log_loss(floor: Any, fall: Any, alpha: Any, middle: Any, curvature: Any) -> Any:
    """The root l of `l = logaddexp(floor, fall + alpha·softplus(middle - curvature·l))`.

    The right side falls and is convex in l, so Newton's method from the root without the softplus climbs to the one
    root without ever passing it.
    """
    log = np.logaddexp(floor, fall)
    for _ in range(60):
        turn = middle - curvature * log
        soft = np.logaddexp(0, turn)
        right = np.logaddexp(floor, fall + alpha * soft)
        slope = curvature * alpha * np.exp(fall + alpha * soft - right + turn - soft)
        step = (right - log) / (1 + slope)
        log = log + step
        if np.all(np.abs(step) <= 1e-14 * (1 + np.abs(log))):
            break
    return log


class StepProblem(CurvedProblem):
    """The step law with exact derivatives by the implicit-function theorem.

    With `h(theta, l)` the right side, `l = h` gives `l' = h_theta / (1 - h_l)` and
    `l'' = (h_tt + h_tl l'ᵀ + l' h_tlᵀ + h_ll l' l'ᵀ) / (1 - h_l)`.
    """

    def expansion(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """log L, its gradient and its weighted Hessians; see `CurvedProblem`."""
        a, alpha_n, c, alpha, middle, curvature = (theta[:, j, None] for j in range(6))
        n, s, b = self.x.T
        floor, fall = a - alpha_n * n, c - alpha * s
        log = solve_log_loss(floor, fall, alpha, middle - b + curvature * self.origin, curvature)
        away = log - self.origin
        turn = middle - b - curvature * away
        soft = np.logaddexp(0, turn)
        rate = np.exp(turn - soft)
        share = np.exp(fall + alpha * soft - log)
        one = np.ones_like(share)
        # gradient of the step term in (a, alpha_N, c, alpha_S, middle, curvature, l), and its distance to the floor's
        step = np.stack(
            [0 * one, 0 * one, one, soft - s, alpha * rate, -alpha * rate * away, -alpha * rate * curvature], 1
        )
        apart = step.copy()
        apart[:, 0] -= 1
        apart[:, 1] += n
        first = share[:, None] * step
        first[:, 0] += 1 - share
        first[:, 1] -= (1 - share) * n
        slack = 1 - first[:, 6]
        gradient = first[:, :6] / slack[:, None]

        def second(row: np.ndarray) -> np.ndarray:
            row = row / slack
            weight = row * share
            two = apart[:, :6]
            hessian = (two * (weight * (1 - share))[:, None]) @ two.transpose(0, 2, 1)
            bend = rate * (1 - rate)
            pieces = {  # the step term's own second derivatives
                (3, 4): rate, (3, 5): -rate * away, (3, 6): -rate * curvature, (4, 4): alpha * bend,
                (4, 5): -alpha * bend * away, (4, 6): -alpha * bend * curvature, (5, 5): alpha * bend * away**2,
                (5, 6): alpha * (bend * curvature * away - rate), (6, 6): alpha * bend * curvature**2,
            }  # fmt: skip
            mixed = two * apart[:, 6:] * (1 - share)[:, None] * weight[:, None]  # h_tl, weighted
            ends = apart[:, 6] ** 2 * (1 - share) * weight + weight * pieces[6, 6]
            for (i, j), piece in pieces.items():
                if j < 6:
                    total = (weight * piece).sum(1)
                    hessian[:, i, j] += total
                    if i != j:
                        hessian[:, j, i] += total
                elif i < 6:
                    mixed[:, i] += weight * piece
            cross = mixed @ gradient.transpose(0, 2, 1)
            return (
                hessian + cross + cross.transpose(0, 2, 1)
                + (gradient * ends[:, None]) @ gradient.transpose(0, 2, 1)
            )  # fmt: skip

        return log, gradient, second
