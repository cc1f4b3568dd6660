"""Learning-rate schedules as arrays, the rate of every step, and the two areas a loss curve depends on.

`constant_schedule`, `cosine_schedule` and `wsd_schedule` write the usual ones; any other array of rates does as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.signal import lfilter

from ..errors import ConfigurationError, FitError

MAX_STEPS = 10_000_000  #: a schedule is held with every step
SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + np.cos(np.pi * x)),
    "1-sqrt": lambda x: 1 - np.sqrt(x),
}
"""Shapes of a decay from 1 to 0 over x from 0 to 1; "exponential" is a straight line in the rate's logarithm."""


def constant_schedule(steps: int, peak: float, warmup: int = 0) -> np.ndarray:
    """Rates (steps,): a linear warm-up from 0 over `warmup` steps, then `peak`.

    >>> constant_schedule(4, 1.0, warmup=2).tolist()
    [0.5, 1.0, 1.0, 1.0]
    """
    total, rate, rise = _whole("steps", steps, 1), _rate("peak", peak), _whole("warmup", warmup, 0)
    return rate * np.minimum(np.arange(1, total + 1) / max(rise, 1), 1.0)


def cosine_schedule(steps: int, peak: float, final: float = 0.0, warmup: int = 0) -> np.ndarray:
    """Rates (steps,): linear warm-up, then half a cosine from `peak` down to `final` at the last step."""
    return wsd_schedule(steps, peak, int(steps) - int(warmup), final, warmup, "cosine")


def wsd_schedule(
    steps: int, peak: float, decay: int, final: float = 0.0, warmup: int = 0, shape: str = "linear"
) -> np.ndarray:
    """Rates (steps,): linear warm-up, stable at `peak`, the last `decay` steps down to `final`.

    `shape` is "linear", "cosine", "1-sqrt" or "exponential" (then `final` > 0). Raises `ConfigurationError` for
    phases that do not fit into `steps`, or another shape.

    >>> wsd_schedule(5, 1.0, decay=2).tolist()
    [1.0, 1.0, 1.0, 0.5, 0.0]
    """
    rates = constant_schedule(steps, peak, warmup)
    fall, end = _whole("decay", decay, 0), _rate("final", final, zero=True)
    if fall + int(warmup) > len(rates) or end > peak:
        raise ConfigurationError(
            f"warmup={warmup} and decay={decay} must fit into steps={steps}, and final={final:g} must not exceed "
            f"peak={peak:g}."
        )
    if shape != "exponential" and shape not in SHAPES:
        raise ConfigurationError(f"shape={shape!r} is not known. Choose one of: {', '.join([*SHAPES, 'exponential'])}.")
    if fall:
        x = np.arange(1, fall + 1) / fall
        if shape == "exponential":
            if end == 0:
                raise ConfigurationError("An exponential decay never reaches 0. Give final > 0.")
            rates[-fall:] = peak * (end / peak) ** x
        else:
            rates[-fall:] = end + (peak - end) * SHAPES[shape](x)
    return rates


def as_schedule(schedule: Any) -> np.ndarray:
    """A schedule as validated rates (steps,), or `ConfigurationError`.

    >>> as_schedule([1e-3, 5e-4]).tolist()
    [0.001, 0.0005]
    """
    try:
        rates = np.asarray(schedule)
        numbers = rates.astype(float) if rates.dtype.kind in "iuf" and rates.ndim == 1 else None
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or not len(numbers):
        raise ConfigurationError(
            "A schedule is a list of learning rates, one a step, such as cosine_schedule(20_000, 3e-4, warmup=500); "
            f"found {str(schedule)[:60]!r}."
        )
    if not (np.isfinite(numbers) & (numbers >= 0)).all() or not numbers.any():
        raise ConfigurationError("The rates of a schedule must be finite and ≥ 0, and not all 0.")
    if len(numbers) > MAX_STEPS:
        raise ConfigurationError(f"A schedule may have {MAX_STEPS:,} steps, this one has {len(numbers):,}.")
    return numbers


def schedule_of_rows(step: np.ndarray, lr: np.ndarray, run: str) -> np.ndarray:
    """The rates of all steps of a run whose table says some: straight lines between rows, and from 0 up to the first.

    Raises `FitError` when a step has two rates, is no whole number ≥ 1, or every rate is 0.
    """
    order = np.argsort(step, kind="stable")
    at, rate = np.rint(step[order]), lr[order]
    if np.abs(at - step[order]).max() > 1e-6 or at[0] < 1 or at[-1] > MAX_STEPS:
        raise FitError(f"Run {run!r}: steps must be whole numbers from 1 to {MAX_STEPS:,}. Correct the column 'step'.")
    twice = (np.diff(at) == 0) & (np.diff(rate) != 0)
    if twice.any():
        raise FitError(f"Run {run!r}: step {at[:-1][twice][0]:g} has two learning rates. Give each run its own run_id.")
    if not rate.any():
        raise FitError(f"Run {run!r}: every learning rate is 0, so nothing was learnt. Correct the column 'lr'.")
    return np.interp(np.arange(1, int(at[-1]) + 1), np.append(0, at), np.append(0, rate))


def areas(rates: np.ndarray, lambda_: float) -> tuple[np.ndarray, np.ndarray]:
    """The forward area S1 and the annealing area S2 after every step, both in units of the rate.

    `S1(s) = sum_{i≤s} lr_i` and `S2(s) = sum_{i≤s} sum_{k≤i} (lr_{k-1} - lr_k)·lambda_^(i-k)`: a drop of the rate
    works for 1/(1 - lambda_) steps after it. The rise of the warm-up, up to the first drop, counts for S1 only.

    >>> [v.round(3).tolist() for v in areas(np.array([1.0, 1.0, 0.5, 0.5]), 0.9)]
    [[1.0, 2.0, 2.5, 3.0], [0.0, 0.0, 0.5, 0.95]]
    """
    drop = np.append(0.0, -np.diff(rates))
    falling = drop > 0
    drop[: int(np.argmax(falling)) if falling.any() else len(drop)] = 0.0
    return np.cumsum(rates), np.cumsum(lfilter([1.0], [1.0, -lambda_], drop))


def _whole(name: str, value: Any, least: int) -> int:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not float(value).is_integer():
        raise ConfigurationError(f"{name}={value!r} must be a whole number of steps.")
    if not least <= value <= MAX_STEPS:
        raise ConfigurationError(f"{name}={value!r} must be between {least} and {MAX_STEPS:,} steps.")
    return int(value)


def _rate(name: str, value: Any, zero: bool = False) -> float:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ConfigurationError(f"{name}={value!r} must be a learning rate {'≥' if zero else '>'} 0.")
    return float(value)
