"""What two designs' runs share: the correlation of matched runs' residuals, shrunk, since few runs measure it.

Runs of two designs are matched where they have the same seed and their sizes are each other's nearest. Their residuals
about their own laws, log L - log f(N), correlate as far as the same batches in the same order, the same random numbers
of the initialisation and the same deviation from a power law move both. Of n matched runs three parameters' worth are
used up by the fits, which leaves nu = n - 3 degrees of freedom, a sample correlation r, and for the true rho (bivariate
normal residuals, standard deviations unknown; Box & Tiao 1973, §8.5.4)

    p(rho | r) ∝ (1 - rho²)^(k + nu/2) / (1 - rho·r)^(nu - 1/2),      k = 2,

whose prior (1 - rho²)^k is worth four matched runs without correlation. rho is drawn from it, never fixed at r: a
correlation that is measured badly narrows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_muscaling.runs import Run

if TYPE_CHECKING:
    from hf_muscaling.laws import PowerLaw

PRIOR = 2.0
PRIOR_SLOPE = 0.35  #: spread of log|b| in the leverages, as in the prior of `laws.posterior`
_GRID = np.linspace(-0.999, 0.999, 1999)


@dataclass(frozen=True)
class Pairing:
    """The matched runs of two designs: how many, degrees of freedom left, sample correlation, and what is shared.

    `alignment` is the cosine between what the two predictions make of the matched runs (1 if both weigh the same runs
    alike, 0 if no run is matched): the predictions' parameter errors correlate with rho·alignment. `same_seeds` says
    whether single runs were matched; otherwise the means of nearest sizes were, and the targets' own noise is taken as
    independent.
    """

    matched: int
    dof: float
    correlation: float
    alignment: float
    same_seeds: bool

    def quantiles(self, u: np.ndarray) -> np.ndarray:
        """Quantiles at `u` of the posterior of rho.

        >>> Pairing(0, 0.0, 0.0, 0.0, False).quantiles(np.array([0.1, 0.5, 0.9])).round(2) + 0.0
        array([-0.51,  0.  ,  0.51])
        >>> Pairing(30, 27.0, 0.9, 1.0, True).quantiles(np.array([0.5])).round(1)
        array([0.8])
        """
        log = (PRIOR + 0.5 * self.dof) * np.log1p(-(_GRID**2))
        if self.dof > 0:
            log = log - (self.dof - 0.5) * np.log1p(-_GRID * self.correlation)
        cumulative = np.cumsum(np.exp(log - log.max()))
        found: np.ndarray = np.interp(u, cumulative / cumulative[-1], _GRID)
        return found

    @property
    def shrunk(self) -> float:
        """The posterior mean of rho."""
        return float(self.quantiles((np.arange(1000) + 0.5) / 1000).mean())


@dataclass(frozen=True)
class FittedRuns:
    """A design's finished runs beside its law: N, seed, residual log L - log f(N), and leverage on the prediction."""

    N: np.ndarray
    seed: np.ndarray
    residual: np.ndarray
    leverage: np.ndarray

    @classmethod
    def of(cls, law: PowerLaw, runs: Sequence[Run], target: float) -> FittedRuns:
        """Collect a design's runs; `target` is the N of its prediction."""
        finished = [run for run in runs if run.finished]
        size = np.array([float(getattr(run, law.columns["N"])) for run in finished])
        log = np.log(np.array([run.loss for run in finished], float))
        residual = log - np.log(law.loss(size, **law.params_))
        return cls(size, np.array([run.seed for run in finished]), residual, leverages(law, size, residual, target))

    def by_size(self) -> FittedRuns:
        """The means of each size, as if they were runs of one seed."""
        sizes, index = np.unique(self.N, return_inverse=True)
        count = np.bincount(index)
        return FittedRuns(
            sizes, np.zeros(len(sizes), int), np.bincount(index, self.residual) / count,
            np.bincount(index, self.leverage),
        )  # fmt: skip


def leverages(law: PowerLaw, size: np.ndarray, residual: np.ndarray, target: float) -> np.ndarray:
    """d log f(target) / d log L_i for every run i: how far the law's prediction follows each run (least squares).

    The law is linearised at its fit in (log a, log|b|, c); the prior on log|b| keeps the flat direction finite.
    """
    a, b, c = (law.params_[name] for name in "abc")
    scale = float(np.exp(np.log(size).mean()))

    def slopes(x: np.ndarray) -> np.ndarray:
        power = a * x**b
        return np.stack([power, power * b * np.log(x / scale), np.ones_like(x)]) / (power + c)

    own, at = slopes(size), slopes(np.array([target]))[:, 0]
    variance = float(residual @ residual) / max(len(residual) - 3, 1) + 1e-8
    precision = own @ own.T + np.diag([0.0, variance / PRIOR_SLOPE**2, 0.0])
    found: np.ndarray = at @ np.linalg.pinv(precision) @ own
    return found


def pair(first: FittedRuns, second: FittedRuns) -> Pairing:
    """Match the runs of two designs and measure their residuals' correlation."""
    ours, theirs = _matches(first, second)
    same_seeds = len(ours) > 0
    if not same_seeds:
        first, second = first.by_size(), second.by_size()
        ours, theirs = _matches(first, second)
    x, y = first.residual[ours], second.residual[theirs]
    size = np.sqrt((x @ x) * (y @ y))
    dof = float(max(len(x) - 3, 0))
    correlation = float(x @ y / size) if dof and size > 0 else 0.0
    norm = np.linalg.norm(first.leverage) * np.linalg.norm(second.leverage)
    alignment = float(first.leverage[ours] @ second.leverage[theirs] / norm) if norm > 0 else 0.0
    return Pairing(len(x), dof, correlation, alignment, same_seeds)


def _matches(first: FittedRuns, second: FittedRuns) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the runs with equal seeds whose sizes are mutual nearest neighbours in log N."""
    ours, theirs = np.unique(first.N), np.unique(second.N)
    distance = np.abs(np.log(ours[:, None] / theirs))
    near, back = distance.argmin(1), distance.argmin(0)
    partner = {ours[i]: theirs[near[i]] for i in range(len(ours)) if back[near[i]] == i}
    places = {(n, seed): j for j, (n, seed) in enumerate(zip(second.N, second.seed, strict=True))}
    found = [
        (i, places[partner[n], seed])
        for i, (n, seed) in enumerate(zip(first.N, first.seed, strict=True))
        if n in partner and (partner[n], seed) in places
    ]
    pairs = np.array(found, int).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
