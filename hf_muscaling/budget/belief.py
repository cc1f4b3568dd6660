"""What is believed about a family of models before its next run: curves, noise between seeds, misfit and drift.

A belief is a set of draws. Measured, they are the posterior of a law fitted to finished runs; before any run, they are
stated assumptions (`Assumptions`). Everything is relative to the loss, and to the same model as the law's own interval
(`laws.posterior`, `laws.intervals`):

    L_ij / f(x_j) - 1 = delta_j + e_ij,   e_ij ~ N(0, sigma²),   delta_j ~ N(0, sigma² · misfit_j)

with f the law, `delta` shared by the runs of one point, and a drift N(0, tau² d^(2·power)) at a target a log distance d
outside the runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from ..errors import ConfigurationError
from ..laws import PowerLaw, ScalingLaw
from ..laws.intervals import DRIFT_POWER, TAU_PRIOR, TAU_WIDTH
from ..laws.posterior import CENTRE, NOISE, RHO, SCALE

Points = Mapping[str, np.ndarray]
"""Variable → its value at each point: {"N": (k,)} of a law in N, {"N": (k,), "D": (k,)} of a law in both."""
DRAWS = 64
LEAST_SPREAD = 0.05  #: of log noise, for a range without width


@dataclass(frozen=True)
class Assumptions:
    """What a plan rests on before any run, as ranges that hold 80 % of families (log-normal, `floor` uniform).

    * `noise`: standard deviation of the loss between two seeds, relative to it. Tiny models (1e5 to 1e6 parameters,
      README) differ by 0.1 to 0.4 %, 124M GPT-2 models by 0.065 % (75 repeats in modded-nanogpt's public records);
    * `misfit`: how far the loss of one size strays from a power law fitted at the largest size, relative, for each
      factor e between the two. Posterior medians are 0.13 to 0.21 % on nanoLM's GPT tables and 0.06 to 0.43 % on the
      tuned runs of Porian et al. 2024 at 1 to 8 billion tokens;
    * `exponent`: centre and log spread of |b|, by default those of `PowerLaw`'s weak prior (published exponents at a
      fixed horizon lie between 0.07 and 1);
    * `floor`: c over the loss at the smallest size: 0.77 to 0.86 on nanoLM's tables.

    `noise` and `misfit` also temper what few runs say of them. Raises ConfigurationError for a range that is none.
    """

    noise: tuple[float, float] = (1e-3, 4e-3)
    misfit: tuple[float, float] = (6e-4, 5e-3)
    exponent: tuple[float, float] = (CENTRE, SCALE)
    floor: tuple[float, float] = (0.5, 0.9)

    def __post_init__(self) -> None:
        for name in ("noise", "misfit"):
            low, high = getattr(self, name)
            if not 0 < low <= high < 1:
                raise ConfigurationError(
                    f"{name}={(low, high)} must be a range of shares of the loss, such as (0.001, 0.004)."
                )
        if not (self.exponent[0] > 0 and self.exponent[1] > 0):
            raise ConfigurationError(f"exponent={self.exponent} must be a centre and a log spread, both above 0.")
        if not 0 <= self.floor[0] <= self.floor[1] < 1:
            raise ConfigurationError(f"floor={self.floor} must be a range within 0 and 1.")

    def log_normal(self, name: str) -> tuple[float, float]:
        """Return centre and standard deviation of log `noise` or log `misfit`."""
        low, high = np.log(getattr(self, name))
        return 0.5 * (low + high), max(0.5 * (high - low) / float(ndtri(0.9)), LEAST_SPREAD)

    def __str__(self) -> str:
        return (
            f"seeds differ by {_percent(*self.noise)}, sizes stray by {_percent(*self.misfit)} for each factor e, |b| "
            f"about {self.exponent[0]:.3g}, irreducible loss {_percent(*self.floor)} of the smallest model's"
        )


def _percent(low: float, high: float) -> str:
    return f"{100 * low:.3g} to {100 * high:.3g} %"


class Belief(ABC):
    """Draws of a law and of what surrounds it; see `PowerBelief`."""

    variables: ClassVar[tuple[str, ...]]
    sigma: np.ndarray  #: (M,) standard deviation between seeds, relative to the loss
    tau: np.ndarray  #: (M,) drift
    power: float  #: of the drift

    @property
    def draws(self) -> int:
        """Return M."""
        return len(self.sigma)

    @abstractmethod
    def loss(self, at: Points) -> np.ndarray:
        """Return the loss (M, k) of every draw at every point."""

    @abstractmethod
    def slopes(self, at: Points) -> np.ndarray:
        """Return d log L / d theta (M, k, p)."""

    @abstractmethod
    def precision(self, at: Points) -> np.ndarray:
        """Return the precision (M, p) that the law's prior has for each theta."""

    @abstractmethod
    def misfit(self, at: Points, trained: np.ndarray) -> np.ndarray:
        """Return the variance of delta in units of sigma² (P, M, k) for P designs, which train the points marked
        (P, k).
        """

    @abstractmethod
    def stray(self, away: np.ndarray) -> np.ndarray:
        """Return the variance of delta at targets a log distance (P,) outside the runs, in units of sigma² (P, M)."""

    @staticmethod
    def outside(at: Points, trained: np.ndarray, target: Mapping[str, float]) -> np.ndarray:
        """Return the log distance (P,) of the target beyond each design's points, the largest over the variables."""
        found = np.zeros(len(trained))
        for name, values in at.items():
            log, there = np.log(values), np.log(target[name])
            largest = np.where(trained, log, -np.inf).max(1)
            smallest = np.where(trained, log, np.inf).min(1)
            found = np.maximum(found, np.maximum(there - largest, smallest - there))
        return found


@dataclass(frozen=True)
class PowerBelief(Belief):
    """Draws of L = a·(x/scale)^b + c with sigma, rho, tau: arrays (M,).

    >>> from hf_muscaling import PowerLaw
    >>> runs = {"N": [1e6, 2e6, 4e6, 8e6], "loss": [2 + 40 * n**-0.25 for n in (1e6, 2e6, 4e6, 8e6)]}
    >>> belief = PowerBelief.measured(PowerLaw().fit(runs), draws=16)
    >>> belief.loss({"N": np.array([1e6, 8e6])}).shape
    (16, 2)
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    sigma: np.ndarray
    rho: np.ndarray
    tau: np.ndarray
    scale: float
    variable: str = "N"
    power: float = DRIFT_POWER

    @property
    def variables(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the one variable."""
        return (self.variable,)

    @classmethod
    def measured(cls, law: PowerLaw, assumptions: Assumptions | None = None, draws: int = DRAWS) -> PowerBelief:
        """Return the posterior of a fitted law, its noise and misfit tempered by what is assumed of them.

        The law's own prior of the noise is a wide one; its draws are weighted with the assumed one instead. Against
        many runs that weighs nothing.
        """
        data, name = law.interval_data(), law.variable
        assert data.rho is not None
        smallest, largest = data.span[name]
        scale = float(np.sqrt(smallest * largest))
        weight = _tempered(data.sigma, data.rho, assumptions or Assumptions())
        # Systematic resampling keeps the even spread of the draws.
        cumulative = np.cumsum(weight) / weight.sum()
        keep = np.searchsorted(cumulative, (0.5 + np.arange(draws)) / draws)
        b = data.params["b"][keep]
        a = np.exp(np.log(np.maximum(data.params["a"][keep], 1e-300)) + b * np.log(scale))
        return cls(a, b, data.params["c"][keep], data.sigma[keep], data.rho[keep], data.tau[keep], scale, name)

    @classmethod
    def assumed(cls, smallest: float, assumptions: Assumptions | None = None, draws: int = DRAWS,
                variable: str = "N") -> PowerBelief:  # fmt: skip
        """Return draws of what is assumed before any run; the loss at the smallest size is 1."""
        given = assumptions or Assumptions()
        u = qmc.Halton(5, scramble=False).random(draws + 1)[1:].T  # the sequence's first point lies in the corner
        z = ndtri(u)
        floor = given.floor[0] + u[1] * (given.floor[1] - given.floor[0])
        noise, misfit = given.log_normal("noise"), given.log_normal("misfit")
        sigma = np.exp(noise[0] + noise[1] * z[2])
        return cls(
            a=1 - floor,
            b=-given.exponent[0] * np.exp(given.exponent[1] * z[0]),
            c=floor,
            sigma=sigma,
            rho=np.clip((np.exp(misfit[0] + misfit[1] * z[3]) / sigma) ** 2, 0.0, RHO[-1]),
            tau=TAU_PRIOR * np.exp(TAU_WIDTH * z[4]),
            scale=float(smallest),
            variable=variable,
        )

    def loss(self, at: Points) -> np.ndarray:
        """Return the loss (M, k) of every draw at every point."""
        ratio = np.log(np.asarray(at[self.variable], float) / self.scale)
        return self.a[:, None] * np.exp(self.b[:, None] * ratio) + self.c[:, None]

    def slopes(self, at: Points) -> np.ndarray:
        """Return d log L / d (log a, b, c), (M, k, 3)."""
        ratio, loss = np.log(np.asarray(at[self.variable], float) / self.scale), self.loss(at)
        falling = 1 - self.c[:, None] / loss
        return np.stack([falling, falling * ratio, 1 / loss], -1)

    def precision(self, at: Points) -> np.ndarray:
        """Return the precision (M, 3) of the prior: log|b| within `SCALE`, and c anywhere between 0 and the loss."""
        lowest = self.loss(at).min(1)
        return np.stack([np.full_like(self.b, 1e-6), (SCALE * self.b) ** -2, 12 / lowest**2], -1)

    def misfit(self, at: Points, trained: np.ndarray) -> np.ndarray:
        """Return rho·d², d the log distance below the largest size of the design."""
        log = np.log(np.asarray(at[self.variable], float))
        largest = np.where(trained, log, -np.inf).max(1)
        return self.rho[:, None] * (largest[:, None] - log)[:, None, :] ** 2

    def stray(self, away: np.ndarray) -> np.ndarray:
        """Return rho·d² at the target."""
        return self.rho * away[:, None] ** 2


def _tempered(sigma: np.ndarray, rho: np.ndarray, assumptions: Assumptions) -> np.ndarray:
    """Return the weight of draws of sigma and rho: the assumed density over that of `PowerLaw`'s own prior.

    In log sigma that prior falls as 1/sigma above `NOISE`; in log rho it is flat.
    """
    logs = {"noise": np.log(sigma), "misfit": np.log(sigma) + 0.5 * np.log(rho)}
    total = np.log(sigma) + 0.5 * (NOISE / sigma) ** 2
    for name, value in logs.items():
        centre, spread = assumptions.log_normal(name)
        total = total - 0.5 * ((value - centre) / spread) ** 2
    return np.exp(total - total.max())


def belief_of(belief: Any, smallest: float, draws: int = DRAWS, assumptions: Assumptions | None = None) -> PowerBelief:
    """Return the belief that a fitted law, assumptions, a belief or None (the default assumptions) stands for.

    Raises ConfigurationError for anything else, and for a law that is not fitted or not a power law in one variable.
    """
    if isinstance(belief, PowerBelief):
        return belief
    if belief is None or isinstance(belief, Assumptions):
        return PowerBelief.assumed(smallest, belief or assumptions, draws)
    if isinstance(belief, PowerLaw):
        if not hasattr(belief, "params_"):
            raise ConfigurationError("A plan needs a fitted law: call .fit(runs) first, or pass Assumptions().")
        return PowerBelief.measured(belief, assumptions, draws)
    what = f"a {type(belief).__name__}" if isinstance(belief, ScalingLaw) else repr(belief)[:60]
    raise ConfigurationError(f"A plan starts from a fitted PowerLaw, Assumptions or None, not {what}.")
