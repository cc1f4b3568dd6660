"""What can be trained and what it costs: the options of a plan, and a design as counts of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from .belief import Points
from .expected import ExpectedInterval


@dataclass(frozen=True)
class ProxyOption:
    """A kind of run that a plan may train: `N` parameters (and `D` tokens), at `cost`, a share of the target's FLOPs.

    `width` and `steps` say it to a person. `finished` runs are there already; `paid` of its runs cost nothing more
    (finished ones, and at base width the best trial of the grid).

    >>> ProxyOption(width=64, N=2e5, cost=0.01).label
    'width 64'
    """

    width: int
    N: float
    cost: float
    D: float | None = None
    steps: int | None = None
    finished: int = 0
    paid: int = 0

    def __post_init__(self) -> None:
        if not (self.N > 0 and self.cost > 0 and np.isfinite(self.cost)):
            raise ConfigurationError(f"{self.label}: N={self.N} and cost={self.cost} must be positive numbers.")
        if self.finished < 0 or self.paid < 0:
            raise ConfigurationError(f"{self.label}: finished and paid count runs, so they must be 0 or more.")

    @property
    def label(self) -> str:
        """Return what tells it from the others."""
        return f"width {self.width}" + (f", {self.steps} steps" if self.steps else "")


@dataclass(frozen=True)
class Design:
    """A set of runs: `runs` pairs an option with how many of it there will be, finished ones included.

    `cost` is a share of the target's FLOPs, grid and finished runs included; `interval` what to expect at the target.
    """

    runs: tuple[tuple[ProxyOption, int], ...]
    cost: float
    interval: ExpectedInterval

    @property
    def half_width(self) -> float:
        """Return the expected half-width, as a share of the loss."""
        return self.interval.half_width

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "cost": self.cost,
            "half_width": self.interval.half_width,
            "half_width_low": self.interval.low,
            "half_width_high": self.interval.high,
            "runs": [
                {"width": o.width, "steps": o.steps, "N": o.N, "D": o.D, "seeds": n, "finished": o.finished,
                 "cost_each": o.cost}
                for o, n in self.runs
            ],
        }  # fmt: skip

    def __str__(self) -> str:
        return ", ".join(f"{o.label} × {n}" for o, n in self.runs)


@dataclass(frozen=True)
class Menu:
    """The options of a plan as arrays, and what is spent before the first of them (`overhead`: the grid)."""

    options: tuple[ProxyOption, ...]
    overhead: float = 0.0
    max_seeds: int = 8

    def __post_init__(self) -> None:
        places = [(o.width, o.steps) for o in self.options]
        if len(set(places)) != len(places):
            raise ConfigurationError(f"The options repeat a width and number of steps: {sorted(places)}.")
        if self.max_seeds < 1:
            raise ConfigurationError(f"max_seeds={self.max_seeds} must be 1 or more: the most runs of one width.")
        if self.overhead < 0:
            raise ConfigurationError(f"overhead={self.overhead} must be 0 or more, a share of the target's FLOPs.")

    @property
    def points(self) -> Points:
        """Return the variables of the options: N, and D where steps vary."""
        found = {"N": np.array([o.N for o in self.options], float)}
        if any(o.D is not None for o in self.options):
            if any(o.D is None for o in self.options):
                raise ConfigurationError("Some options have D and some have none; give all of them D, or none.")
            found["D"] = np.array([o.D for o in self.options], float)
        return found

    @property
    def costs(self) -> np.ndarray:
        """Return the cost of one more run of each option."""
        return np.array([o.cost for o in self.options])

    @property
    def finished(self) -> np.ndarray:
        """Return how many runs of each option are there."""
        return np.array([o.finished for o in self.options], int)

    @property
    def limits(self) -> np.ndarray:
        """Return how many runs each option may have."""
        return np.maximum(self.finished, self.max_seeds)

    def cost(self, counts: np.ndarray) -> np.ndarray:
        """Return the cost of designs (…, k), with what was spent already; paid runs are in the overhead."""
        paid = np.array([max(o.paid, o.finished) for o in self.options])
        return self.overhead + np.maximum(counts - paid, 0) @ self.costs

    def design(self, counts: np.ndarray, interval: ExpectedInterval) -> Design:
        """Return the design of counts (k,)."""
        runs = tuple((o, int(n)) for o, n in zip(self.options, counts, strict=True) if n)
        return Design(runs, float(self.cost(counts)), interval)


def equal_spacing(
    options: Sequence[ProxyOption], budget: float, *, sizes: int = 5, seeds: int = 1, overhead: float = 0.0
) -> np.ndarray | None:
    """Return the counts of the usual design: `sizes` widths in equal steps from the smallest option up to the largest
    with which the budget suffices, `seeds` runs each; None if not even the smallest such ladder is affordable.

    >>> options = [ProxyOption(w, 12 * w**2, 1e-6 * w**2) for w in (32, 48, 64, 80, 96, 112, 128)]
    >>> counts = equal_spacing(options, 0.02, sizes=4)
    >>> [o.width for o, n in zip(options, counts) if n]
    [32, 48, 80, 96]
    """
    menu = Menu(tuple(options), overhead)
    widths = np.array([o.width for o in options], float)
    order = np.argsort(widths)
    for top in order[::-1][: len(order) - sizes + 1]:
        ladder = np.linspace(widths.min(), widths[top], sizes)
        chosen = {int(np.abs(widths - w).argmin()) for w in ladder}
        if len(chosen) < sizes:
            continue
        counts = np.zeros(len(options), int)
        counts[list(chosen)] = seeds
        if menu.cost(counts) <= budget * (1 + 1e-9):
            return counts
    return None
