"""The law of "Unraveling the Mystery of Scaling Laws: Part I": loss from parameters, steps and batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import ConfigurationError, FitError
from .answers import StepAnswers
from .bootstrap import BootstrapLaw
from .kaplan import positive_solution
from .problem import CurvedProblem, Problem
from .regression import Origin, Pin, RegressionLaw
from .selection import WINDOW, Columns, count_distinct

STEEPEST, FLATTEST = 4.0, 1e-3
GRID = np.exp(np.linspace(np.log(0.03), np.log(1.5), 10))
CURVATURES = (1.0, 4.0, 10.0)  #: 1/alpha_B tried as starts
FLOORS = (0.0, 0.4, 0.65, 0.85)  #: E over the smallest loss tried as starts
NONE = -700.0  #: log E that means no irreducible loss
STEP = slice(2, 6)  #: the coordinates of the step term
LETTERS = ("N_c", "alpha_N", "S_c", "alpha_S", "B_star", "alpha_B", "E")


class KaplanStepLaw(StepAnswers, BootstrapLaw):
    """Loss from parameters N, optimizer steps S and batch size B (tokens), nats per token:

        L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S (+ E)
        S_min = S / (1 + B_crit(L)/B),    B_crit(L) = B_star / L^(1/alpha_B)

    Since B_crit depends on the loss reached, L solves an equation with one root. The paper has no irreducible loss E:
    `irreducible=False` fits its six constants, `True` fits E too (this project's extension), and "auto" (the default)
    adds E only where it predicts better: both are fitted to the 60 % of the rows of smallest compute, and E stays if
    its error on the rest is lower. `params_["E"]` is 0 without it. The paper counts N without
    embeddings. Objectives, `window`, `prior` and `fixed` as in `ChinchillaLaw`; a table without `S` may give `step`,
    or D with B.

    The six constants are fitted jointly (`laws.stages` fits them stage by stage). Batch sizes on one side of the
    critical one leave B_star and alpha_B open; the fit then says so.

    Source: Su et al. 2024, Part I; Kaplan et al. 2020, Eqs. 1.4 to 1.6; McCandlish et al. 2018 for B_crit.

    >>> n, s, b = (v.ravel() for v in np.meshgrid([1e6, 1e7, 6e7], [500.0, 2e3, 8e3], [3e4, 1e5, 1e6]))
    >>> truth = {"N_c": 1e14, "alpha_N": 0.076, "S_c": 3e3, "alpha_S": 0.67, "B_star": 2e8, "alpha_B": 0.21}
    >>> runs = {"N": n, "S": s, "B": b, "loss": KaplanStepLaw.loss(n, s, b, **truth)}
    >>> law = KaplanStepLaw(objective="huber").fit(runs)
    >>> [float(f"{value:.3g}") for value in law.params_.values()]
    [100000000000000.0, 0.076, 3000.0, 0.67, 200000000.0, 0.21, 0.0]
    """

    equation: ClassVar[str] = (
        "L(N, S, B) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S, S_min = S/(1 + B_crit/B), B_crit = B_star/L^(1/alpha_B)"
    )
    meanings: ClassVar[dict[str, str]] = {"N": "parameters, by the paper without embeddings"}
    bounds: ClassVar[dict[str, tuple[float, float]]] = {
        "N_c": (0.0, np.inf),
        "alpha_N": (0.0, STEEPEST),
        "S_c": (0.0, np.inf),
        "alpha_S": (0.0, STEEPEST),
        "B_star": (0.0, np.inf),
        "alpha_B": (0.0, np.inf),
        "E": (0.0, np.inf),
    }
    scales: ClassVar[tuple[str, ...]] = ("E",)
    weak_prior: ClassVar[dict[str, tuple[float, float]]] = {
        "alpha_N": (0.1, 0.1),
        "alpha_S": (0.6, 0.3),
        "alpha_B": (0.21, 0.1),
    }

    def __init__(
        self,
        objective: str = "bayes",
        window: float = WINDOW,
        rows: str = "all",
        prior: Mapping[str, Any] | None = None,
        fixed: Mapping[str, float] | None = None,
        irreducible: bool | str = "auto",
    ):
        super().__init__(objective, window, rows, prior, fixed)
        if irreducible not in (True, False, "auto"):
            raise ConfigurationError(f"irreducible={irreducible!r} is not known. Choose one of: True, False, 'auto'.")
        self.irreducible = irreducible
        self._with_floor = bool(irreducible)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as stored in JSON."""
        return super().settings() | {"irreducible": self.irreducible}

    @staticmethod
    def loss(
        N: Any,
        S: Any,
        B: Any,
        N_c: Any,
        alpha_N: Any,
        S_c: Any,
        alpha_S: Any,
        B_star: Any,
        alpha_B: Any,
        E: Any = 0.0,
    ) -> Any:
        """The root L of the law, nats per token."""
        with np.errstate(divide="ignore"):  # an N_c of 0: no size leaves a loss
            floor = alpha_N * (np.log(N_c) - np.log(np.asarray(N, float)))
        floor = np.logaddexp(floor, np.log(np.maximum(E, np.exp(NONE))))
        fall = alpha_S * (np.log(S_c) - np.log(np.asarray(S, float)))
        log = solve_log_loss(floor, fall, alpha_S, np.log(B_star) - np.log(np.asarray(B, float)), 1 / alpha_B)
        return np.exp(log)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _check_columns(self, columns: Columns) -> None:
        """One N (S) shows one number, its term and E together: with E in the law, both exponent and scale must come
        from elsewhere.
        """
        open_floor = self.irreducible is True and "E" not in self.fixed
        for name in ("N", "S"):
            borrowed = [f"alpha_{name}", *([f"{name}_c"] if open_floor else [])]
            if count_distinct(columns[name]) < 2 and not set(borrowed) <= set(self.fixed):
                raise FitError(
                    f"KaplanStepLaw needs at least 2 distinct {name}, the table has 1. Add sizes and checkpoints, or "
                    f"borrow from another family: fixed={{'alpha_{name}': …, '{name}_c': …}}."
                )
        free = 6 - len(self.fixed.keys() - {"E"}) - (2 if self.objective == "bayes" else 0)
        points = len(np.unique(np.stack([columns[name] for name in ("N", "S", "B")]), axis=1).T)
        if points < free:
            rows = len(columns["loss"])
            raise FitError(
                f"KaplanStepLaw has {free} free parameters and {rows} rows"
                f"{f' at {points} distinct (N, S, B)' if points < rows else ''}. Add rows."
            )

    def _problem(self, columns: Columns, weight: np.ndarray, origin: Origin) -> Problem:
        """theta = (alpha_N·log(N_c/N_0), alpha_N, alpha_S·log(S_c/S_0), alpha_S, log B_crit(L_0), 1/alpha_B, log E)."""
        loss = columns["loss"]
        x = np.stack([np.log(columns[name]) - origin[name] for name in ("N", "S", "B")], 1)
        edge = np.abs(np.log(loss)).max() + 60
        wide = np.log(columns["B"]) - origin["B"]
        middle = -40.0 if origin["L"] else -1e3
        least, most = (-30.0, float(np.log(loss.min()))) if self._with_floor else (NONE, NONE)
        low = np.array([-edge, FLATTEST, -edge, FLATTEST, wide.min() + middle, 0.02, least])
        high = np.array([edge, STEEPEST, edge, STEEPEST, wide.max() - middle, 50.0, most])
        return StepProblem(x, np.zeros(7, int), loss, weight, low, high, origin=origin["L"])

    def _forms(self) -> Sequence[RegressionLaw]:
        """Without E and with it, where that is left to the runs."""
        if self.irreducible != "auto":
            return (self,)
        found = [True] if "E" in self.fixed else [False, True]
        return [type(self)(self.objective, self.window, self.rows, self.prior, self.fixed, E) for E in found]

    def _set(self, columns: Columns, params: dict[str, float], value: float) -> None:
        super()._set(columns, params, value)
        self._with_floor = self.irreducible is True or params["E"] > 0

    def _material(self, theta: np.ndarray) -> np.ndarray:
        return np.array([1.0, 0.5 * theta[1], 1.0, 0.5 * theta[3], 1.0, 0.5 * theta[5], 0.2])

    def _hold(self, other: BootstrapLaw) -> None:
        self._with_floor = getattr(other, "_with_floor", False)

    def _starts(self, problem: Problem, kept: int = 10) -> np.ndarray:
        """Linear fits: given B_crit(L) at the measured losses and both exponents, L is linear in its two terms.

        Relative to L, with `p = N^-alpha_N` and `q = S_min^-alpha_S`, the fit is `a·p + b·q = L - E`; of its weighted
        sums over the rows only those that are linear in p and q depend on E.
        """
        take = np.arange(len(problem.loss))[:: max(len(problem.loss) // 300, 1)]
        n, s, b = problem.x[take].T
        loss, log = problem.loss[take], np.log(problem.loss[take])
        weight = problem.weight[take] / loss**2
        curvatures = np.repeat(CURVATURES, 6)
        middles = np.tile(np.linspace(b.min() - 3, b.max() + 3, 6), len(CURVATURES))
        s_min = s - np.logaddexp(0, middles[:, None] - curvatures[:, None] * (log - log.mean()) - b)
        p, q = np.exp(-GRID[:, None] * n), np.exp(-GRID[:, None] * s_min[:, None])  # (i, n) and (curve, j, n)
        pp, qq, pq = ((p * p) @ weight)[:, None], ((q * q) @ weight)[:, None], (p * weight) @ q.transpose(0, 2, 1)
        found = []
        for share in FLOORS if self._with_floor else (0.0,):
            irreducible = share * problem.loss.min()
            rest = weight * (loss - irreducible)
            p1, q1 = (p @ rest)[:, None], (q @ rest)[:, None]
            first, second = positive_solution(pp, pq, qq, p1, q1)
            cost = first**2 * pp + 2 * first * second * pq + second**2 * qq - 2 * first * p1 - 2 * second * q1
            cost = (cost + rest @ (loss - irreducible)).reshape(len(middles), -1)
            best = cost.argmin(1)
            i, j = np.divmod(best, len(GRID))
            curve = np.arange(len(middles))
            floor = np.full(len(middles), np.log(irreducible) if irreducible else problem.low[6])
            a, c = np.log(first[curve, i, j]), np.log(second[curve, i, j])
            found.append(np.stack([a, GRID[i], c, GRID[j], middles, curvatures, floor, cost[curve, best]], 1))
        rows = np.concatenate(found)
        return rows[np.argsort(rows[:, 7])[:kept], :7]

    def _named(self, theta: np.ndarray, origin: Origin) -> dict[str, np.ndarray]:
        a, alpha_n, c, alpha_s, middle, curvature, irreducible = theta.T
        with np.errstate(over="ignore"):
            return {
                "N_c": np.exp(a / alpha_n + origin["N"]),
                "alpha_N": alpha_n,
                "S_c": np.exp(c / alpha_s + origin["S"]),
                "alpha_S": alpha_s,
                "B_star": np.exp(middle + curvature * origin["L"] + origin["B"]),
                "alpha_B": 1 / curvature,
                "E": np.where(irreducible > np.log(1e-12), np.exp(irreducible), 0.0),
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
                np.log(np.maximum(p["E"], np.exp(NONE))),
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
        return {}, LETTERS.index(name), float(np.log(value)) if name == "E" else value

    def _spread(self, name: str, value: float, sd: float) -> float:
        return sd / value**2 if name == "alpha_B" else sd


def solve_log_loss(floor: Any, fall: Any, alpha: Any, middle: Any, curvature: Any) -> Any:
    """The root l of `l = logaddexp(floor, fall + alpha·softplus(middle - curvature·l))`.

    The right side falls and is convex in l, so Newton's method from the root without the softplus climbs to the one
    root without ever passing it.
    """
    log = log_sum(floor, fall)
    for _ in range(60):
        turn = middle - curvature * log
        soft = log_sum(0.0, turn)
        inner = fall + alpha * soft
        right = log_sum(floor, inner)
        inner += turn
        inner -= soft
        inner -= right
        slope = curvature * alpha * np.exp(inner)
        slope += 1
        step = right - log
        step /= slope
        log = log + step
        if np.all(np.abs(step) <= 1e-9 * (1 + np.abs(log))):  # the next step would be about the square of this one
            break
    return log


def log_sum(x: Any, y: Any) -> Any:
    """`np.logaddexp`, which takes one number at a time; of a large array in a third of its time."""
    if np.size(y) < 1000:
        return np.logaddexp(x, y)
    gap = np.abs(x - y)
    np.negative(gap, out=gap)
    np.exp(gap, out=gap)
    np.log1p(gap, out=gap)
    gap += np.maximum(x, y)
    return gap


class StepProblem(CurvedProblem):
    """The step law with exact derivatives by the implicit-function theorem.

    With `h(theta, l)` the right side, `l = h` gives `l' = h_theta / (1 - h_l)` and
    `l'' = (h_tt + h_tl l'ᵀ + l' h_tlᵀ + h_ll l' l'ᵀ) / (1 - h_l)`. h is the log of a sum of three terms (size, step,
    irreducible) with shares s_k and gradients x_k in (theta, l), so its Hessian is
    `sum_k s_k x_k x_kᵀ - f fᵀ + s_step · (second derivatives of the step term)`, f = sum_k s_k x_k.
    """

    def expansion(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """log L, its gradient and its weighted Hessians; see `CurvedProblem`."""
        a, alpha_n, c, alpha, middle, curvature, irreducible = (theta[:, j, None] for j in range(7))
        n, s, b = self.covariates
        size, fall = a - alpha_n * n, c - alpha * s
        log = solve_log_loss(log_sum(irreducible, size), fall, alpha, middle - b + curvature * self.origin, curvature)
        away = log - self.origin
        turn = middle - b - curvature * away
        soft = log_sum(0.0, turn)
        rate = np.exp(turn - soft)
        step_share, size_share, rest = np.exp(fall + alpha * soft - log), np.exp(size - log), np.exp(irreducible - log)
        lower = -alpha * rate * curvature  # d step term / d l; its derivatives in theta[2:6] are `step`
        step = np.stack([np.ones_like(log), soft - s, alpha * rate, -alpha * rate * away], 1)
        full, slack = np.empty((len(log), 7, log.shape[1])), 1 - step_share * lower  # f, 1 - h_l
        full[:, 0], full[:, 1], full[:, 6] = size_share, -size_share * n, rest
        np.multiply(step, step_share[:, None], out=full[:, STEP])
        gradient = full / slack[:, None]

        def second(row: np.ndarray) -> np.ndarray:
            row = row / slack
            weight, sized = row * step_share, row * size_share
            bend = rate * (1 - rate)
            own = {  # the step term's second derivatives, in theta and in theta and l
                (3, 4): rate, (3, 5): -rate * away, (4, 4): alpha * bend, (4, 5): -alpha * bend * away,
                (5, 5): alpha * bend * away**2,
            }  # fmt: skip
            with_l = {3: -rate * curvature, 4: -alpha * bend * curvature, 5: alpha * (bend * curvature * away - rate)}
            hessian = -(full * row[:, None]) @ full.transpose(0, 2, 1)
            hessian[:, STEP, STEP] += (step * weight[:, None]) @ step.transpose(0, 2, 1)
            slope = -(sized * n).sum(1)
            hessian[:, 0, 0] += sized.sum(1)
            hessian[:, 0, 1] += slope
            hessian[:, 1, 0] += slope
            hessian[:, 1, 1] += (sized * n * n).sum(1)
            hessian[:, 6, 6] += (row * rest).sum(1)
            for (i, j), piece in own.items():
                total = (weight * piece).sum(1)
                hessian[:, i, j] += total
                hessian[:, j, i] += total * (i != j)
            pulled = step_share * lower * row
            mixed = -full * pulled[:, None]  # h_tl
            mixed[:, STEP] += step * (lower * weight)[:, None]
            for i, piece in with_l.items():
                mixed[:, i] += weight * piece
            ends = lower**2 * weight - step_share * lower * pulled + weight * alpha * bend * curvature**2  # h_ll
            cross = mixed @ gradient.transpose(0, 2, 1)
            curved = (gradient * ends[:, None]) @ gradient.transpose(0, 2, 1)
            return hessian + cross + cross.transpose(0, 2, 1) + curved

        return log, gradient, second
