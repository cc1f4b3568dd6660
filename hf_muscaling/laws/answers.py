"""What a fitted law answers: limits, inverse questions, and the frontier between time and compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigurationError
from .table import short

if TYPE_CHECKING:
    from .base import ScalingLaw

LOWEST, HIGHEST = -60.0, 200.0  #: natural logs between which an inverse question is searched


def positive(name: str, value: Any, unit: str) -> np.ndarray:
    """`value` as floats, or `ConfigurationError` unless every one is finite and > 0."""
    try:
        array = np.asarray(value)
        number = array.astype(float) if array.dtype.kind in "iufO" else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number.size == 0 or not (np.isfinite(number) & (number > 0)).all():
        raise ConfigurationError(f"{name}={short(value)} must be finite numbers > 0 ({unit}).")
    return number


def plain(value: np.ndarray) -> Any:
    """A float for a 0-d array, else the array."""
    return float(value) if np.ndim(value) == 0 else value


def minimum_loss(law: ScalingLaw, at: Mapping[str, Any]) -> Any:
    """The loss of `law` with every variable that is not given at infinity."""
    unknown = set(at) - set(law.variables)
    if unknown:
        raise ConfigurationError(f"minimum_loss() does not know {sorted(unknown)[0]!r}: {', '.join(law.variables)}.")
    points = [positive(n, at[n], law.units[n]) if n in at else np.asarray(np.inf) for n in law.variables]
    with np.errstate(all="ignore"):
        return plain(np.asarray(law.loss(*points, *law.params_.values()), float))


def solve(law: ScalingLaw, variable: str, loss: Any, at: Mapping[str, Any]) -> Any:
    """The value of `variable` at which the loss of `law` is `loss`, by bisection; inf where no value reaches it."""
    if variable not in law.variables:
        raise ConfigurationError(f"solve() does not know {variable!r}: this law takes {', '.join(law.variables)}.")
    others = [n for n in law.variables if n != variable]
    if set(at) != set(others):
        name = sorted(set(at) ^ set(others))[0]
        raise ConfigurationError(
            f"solve({variable!r}, …) {'needs' if name in others else 'does not take'} {name!r}: give "
            f"{', '.join(others) or 'the loss only'}."
        )
    target = positive("loss", loss, "nats per token")
    given = {n: positive(n, at[n], law.units[n]) for n in others}
    target, *values = np.broadcast_arrays(target, *given.values())
    fixed = dict(zip(given, values, strict=True))

    def value(log: np.ndarray) -> np.ndarray:
        points = [np.exp(log) if n == variable else fixed[n] for n in law.variables]
        with np.errstate(all="ignore"):
            return np.asarray(law.loss(*points, *law.params_.values()), float)

    low, high = np.full(target.shape, LOWEST), np.full(target.shape, HIGHEST)
    reached = value(high) < target
    for _ in range(80):
        middle = 0.5 * (low + high)
        above = value(middle) > target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return plain(np.where(reached, np.exp(0.5 * (low + high)), np.inf))


@dataclass(frozen=True)
class TradeOff:
    """Ways to one loss: batch sizes B (tokens), steps S, tokens D = B·S and FLOPs C = 6·N·D they need.

    `relative_time` = S/S_min and `relative_compute` = D/D_min obey
    (relative_time - 1)·(relative_compute - 1) = 1; at B = `B_crit` both are 2.
    """

    loss: float
    N: float
    B_crit: float
    B: np.ndarray
    S: np.ndarray
    D: np.ndarray
    C: np.ndarray
    relative_time: np.ndarray
    relative_compute: np.ndarray


class StepAnswers:
    """What Part I answers before a large run: critical batch size, steps, tokens and time to a loss, the trade-off
    between them, and the whole loss curve at a batch size. Mixed into `KaplanStepLaw`.
    """

    params_: dict[str, float]

    def critical_batch_size(self, loss: Any) -> Any:
        """`B_crit(L) = B_star / L^(1/alpha_B)`, tokens: at this batch size a run takes twice the fewest steps and
        twice the fewest tokens.
        """
        p = self._fitted_params()
        return plain(p["B_star"] / positive("loss", loss, "nats per token") ** (1 / p["alpha_B"]))

    def minimal_steps(self, loss: Any, N: Any) -> Any:
        """S_min, the steps to a loss at a batch size far above the critical one; inf where size N cannot reach it."""
        p = self._fitted_params()
        target, size = positive("loss", loss, "nats per token"), positive("N", N, "parameters")
        rest = target - (p["N_c"] / size) ** p["alpha_N"] - p["E"]
        with np.errstate(all="ignore"):
            return plain(np.where(rest > 0, p["S_c"] * np.maximum(rest, 1e-300) ** (-1 / p["alpha_S"]), np.inf))

    def steps_to(self, loss: Any, N: Any, B: Any) -> Any:
        """Optimizer steps to a loss at batch size B (tokens): `S_min·(1 + B_crit(L)/B)`."""
        batch = positive("B", B, "tokens per batch")
        steps = np.asarray(self.minimal_steps(loss, N))
        return plain(steps * (1 + np.asarray(self.critical_batch_size(loss)) / batch))

    def tokens_to(self, loss: Any, N: Any, B: Any) -> Any:
        """Training tokens to a loss at batch size B: steps times B."""
        return plain(np.asarray(self.steps_to(loss, N, B)) * np.asarray(B, float))

    def time_to(self, loss: Any, N: Any, B: Any, *, seconds_per_step: Any) -> Any:
        """Seconds to a loss at batch size B, given what a step of that size takes."""
        pace = positive("seconds_per_step", seconds_per_step, "seconds")
        return plain(np.asarray(self.steps_to(loss, N, B)) * pace)

    def loss_curve(self, N: float, B: float, S: Any) -> np.ndarray:
        """Loss after each of the steps S of a run of size N at batch size B (tokens)."""
        steps = np.atleast_1d(positive("S", S, "optimizer steps"))
        size, batch = positive("N", N, "parameters"), positive("B", B, "tokens per batch")
        return np.asarray(self.loss(size, steps, batch, *self._fitted_params().values()))  # type: ignore[attr-defined]

    def trade_off(self, loss: float, N: float, B: Any = None) -> TradeOff:
        """Steps, tokens and FLOPs to a loss over batch sizes, by default from 1/30 to 30 times the critical one.

        Raises `ConfigurationError` when size N cannot reach the loss.
        """
        least = float(self.minimal_steps(loss, N))
        if not np.isfinite(least):
            raise ConfigurationError(
                f"A model of N = {N:g} cannot reach loss {loss:g}: its minimum is "
                f"{self.minimum_loss(N=N):.4g}. Ask for a higher loss or a larger model."  # type: ignore[attr-defined]
            )
        critical = float(self.critical_batch_size(loss))
        batch = critical * np.geomspace(1 / 30, 30, 61) if B is None else np.atleast_1d(positive("B", B, "tokens"))
        steps = least * (1 + critical / batch)
        tokens = steps * batch
        return TradeOff(
            float(loss), float(N), critical, batch, steps, tokens, 6 * N * tokens, steps / least,
            tokens / (least * critical),
        )  # fmt: skip

    def compute_optimal(self, C: Any, B: Any) -> tuple[Any, Any]:
        """The N and S of lowest loss for C = 6·N·S·B FLOPs at batch size B (tokens), by golden section in log N."""
        budget, batch = np.broadcast_arrays(positive("C", C, "FLOPs"), positive("B", B, "tokens per batch"))
        values = tuple(self._fitted_params().values())

        def value(log: np.ndarray) -> np.ndarray:
            return np.asarray(self.loss(np.exp(log), budget / (6 * np.exp(log) * batch), batch, *values))  # type: ignore[attr-defined]

        low, high = np.zeros(budget.shape), np.log(budget / (6 * batch))
        ratio = (np.sqrt(5) - 1) / 2
        for _ in range(90):
            left, right = high - ratio * (high - low), low + ratio * (high - low)
            falls = value(left) > value(right)
            low, high = np.where(falls, left, low), np.where(falls, high, right)
        size = np.exp(0.5 * (low + high))
        return plain(size), plain(budget / (6 * size * batch))

    def _fitted_params(self) -> dict[str, float]:
        self._check_fitted()  # type: ignore[attr-defined]
        return self.params_
