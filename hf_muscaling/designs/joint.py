"""The losses of several designs' targets together: each from its own law, correlated as far as their runs are.

Design k's target of N_k parameters, trained with n_k seeds, has by its law (`laws.intervals`)

    log L_k = log f_k(N_k; theta_k) + sigma_k/√n_k · e_k + m_k · h_k,      m_k² = sigma_k²·rho_k·d_k² + tau_k²·d_k⁴,

with posterior draws of (theta, sigma, rho, tau), run noise e, and misfit and drift h, standard normal each; d is the
log distance beyond the largest proxy. The designs are tied together by a Gaussian copula: for two of them with residual
correlation rho (`pairing`),

    corr(rank of f_j, rank of f_k) = rho·alignment,   corr(e_j, e_k) = rho (same seeds; else 0),   corr(h_j, h_k) = rho,

so that for two designs of equal spread s the difference of log losses has spread about s·√(2·(1 - rho)) instead of
s·√2. What all runs share already cancels: the order of the batches is one and the same, and no seed shows its effect.
So a verdict is about this order.

Few small sizes say little about an exponent, and two laws of the same data that are taken for unrelated differ at the
target mostly by what neither set of runs can tell: a steep law with a high floor fits as well as a flat one with a low
floor. Exponents of designs on the same data at the same horizon are alike, though, so they are pooled in part:

    log|b_k| ~ Student t(4) about beta, scale `ALIKE` = 0.2,     beta ~ the prior of `laws.posterior`.

Measured with many sizes they spread by 0.13 (nanoLM's three depths, b = -0.47 … -0.61) and 0.15 (four recipes of Porian
et al. 2024 at 1.2e9 and 2.4e9 tokens). The laws' own draws are reweighted accordingly; `alike=inf` leaves them as they
are, and so does a set of runs that determines its exponent. Each design's own interval stays what its law says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

from hf_muscaling.laws.posterior import CENTRE, DEGREES, SCALE

from .pairing import Pairing

if TYPE_CHECKING:
    from hf_muscaling.laws import PowerLaw
    from hf_muscaling.laws.interval_data import IntervalData

ALIKE = 0.2
ALIKE_DEGREES = 4.0
BETAS = 61  #: grid of beta
POWER_OF_TWO = 13  #: 8192 joint draws: probabilities repeat to the last digit and are good to about 0.001


@dataclass(frozen=True)
class Predictive:
    """What a law says of one target, one entry a posterior draw: log loss of its curve, sd of a run, sd of misfit, the
    logarithm of its exponent -b.
    """

    centre: np.ndarray
    noise: np.ndarray
    misfit: np.ndarray
    exponent: np.ndarray

    @classmethod
    def of(cls, data: IntervalData, law: PowerLaw, target: float) -> Predictive:
        """Return it for a target of so many parameters, of a law's `interval_data`."""
        ((_, (smallest, largest)),) = data.span.items()
        outside = max(np.log(target / largest), np.log(smallest / target), 0.0)
        square = data.tau**2 * outside ** (2 * data.power)
        if data.rho is not None:
            square = square + data.sigma**2 * data.rho * np.log(largest / target) ** 2
        loss: Callable[..., Any] = law.loss
        curve = np.asarray(loss(target, **data.params), float)
        log = np.log(np.maximum(curve, 1e-300))
        return cls(log, data.sigma, np.sqrt(square), np.log(-data.params["b"]))


@dataclass(frozen=True)
class JointDraws:
    """Draws of all designs' targets together: `log_loss` (M, K), and `draw` (M, K), whose posterior draw each is."""

    log_loss: np.ndarray
    draw: np.ndarray

    def difference(self, first: int, second: int) -> np.ndarray:
        """Draws of log L_first - log L_second: relative differences of the losses."""
        found: np.ndarray = self.log_loss[:, first] - self.log_loss[:, second]
        return found

    def beats(self, first: int, second: int) -> float:
        """The probability that the first design's target has the lower loss; an exact tie counts half."""
        found = self.difference(first, second)
        return float((found < 0).mean() + 0.5 * (found == 0).mean())

    def best(self) -> np.ndarray:
        """Each design's probability of the lowest loss, (K,)."""
        winner = self.log_loss.argmin(1)
        return np.bincount(winner, minlength=self.log_loss.shape[1]) / len(winner)


def joint_draws(
    predictives: Sequence[Predictive],
    pairings: Mapping[tuple[int, int], Pairing],
    seeds: Sequence[int] | None = None,
    alike: float = ALIKE,
) -> JointDraws:
    """Draw the targets' log losses together; the same every time.

    `pairings` holds those of designs j < k (one that is missing leaves the two independent), `seeds` the number of runs
    whose mean each target is (1 each by default), `alike` the spread of log|b| between designs.
    """
    count = len(predictives)
    seeds = [1] * count if seeds is None else list(seeds)
    pairs = [(j, k) for j in range(count) for k in range(j + 1, count)]
    sobol = qmc.Sobol(3 * count + 1 + len(pairs), scramble=True, seed=0)
    u = np.clip(sobol.random_base2(POWER_OF_TWO), 1e-9, 1 - 1e-9)
    z = ndtri(u[:, 1 : 3 * count + 1])
    curve, noise, misfit = (np.broadcast_to(np.eye(count), (len(u), count, count)).copy() for _ in range(3))
    for column, (j, k) in enumerate(pairs):
        if (j, k) not in pairings:
            continue
        pairing = pairings[j, k]
        rho = pairing.quantiles(u[:, 3 * count + 1 + column])
        for matrix, part in ((curve, pairing.alignment), (noise, float(pairing.same_seeds)), (misfit, 1.0)):
            matrix[:, j, k] = matrix[:, k, j] = rho * part
    ranks = ndtr(_correlated(z[:, :count], curve))
    noises = _correlated(z[:, count : 2 * count], noise)
    misfits = _correlated(z[:, 2 * count :], misfit)
    pool = _Pool.of(predictives, alike)
    cells = pool.cells(u[:, 0])
    total, draw = np.empty((len(u), count)), np.empty((len(u), count), int)
    for k, own in enumerate(predictives):
        draw[:, k] = chosen = _chosen(own.centre, pool.weights[k], cells, ranks[:, k])
        spread = own.noise[chosen] / np.sqrt(seeds[k]) * noises[:, k] + own.misfit[chosen] * misfits[:, k]
        total[:, k] = own.centre[chosen] + spread
    return JointDraws(total, draw)


@dataclass(frozen=True)
class _Pool:
    """The common exponent beta on a grid: its posterior, and each design's weights of its draws given beta."""

    probability: np.ndarray
    weights: list[np.ndarray]

    @classmethod
    def of(cls, predictives: Sequence[Predictive], alike: float) -> _Pool:
        exponents = [own.exponent for own in predictives]
        if not np.isfinite(alike):
            return cls(np.ones(1), [np.ones((1, len(own))) for own in exponents])
        beta = np.linspace(min(map(np.min, exponents)), max(map(np.max, exponents)), BETAS)

        def prior(log: np.ndarray) -> np.ndarray:
            density: np.ndarray = (1 + ((log - np.log(CENTRE)) / SCALE) ** 2 / DEGREES) ** (-0.5 * (DEGREES + 1))
            return density

        weights, log_probability = [], np.log(prior(beta))
        for own in exponents:
            near = ((own - beta[:, None]) / alike) ** 2
            weight = (1 + near / ALIKE_DEGREES) ** (-0.5 * (ALIKE_DEGREES + 1)) / prior(own)
            weights.append(weight)
            log_probability = log_probability + np.log(weight.mean(1))
        probability = np.exp(log_probability - log_probability.max())
        return cls(probability / probability.sum(), weights)

    def cells(self, u: np.ndarray) -> np.ndarray:
        """The grid cell of beta at each quantile `u`."""
        edges = np.cumsum(self.probability)
        return np.minimum(np.searchsorted(edges, u * edges[-1], side="right"), len(edges) - 1)


def _chosen(centre: np.ndarray, weights: np.ndarray, cells: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The posterior draw at each rank among the draws sorted by `centre`, weighted by the row of its cell."""
    order = np.argsort(centre, kind="stable")
    chosen = np.empty(len(rank), int)
    for cell in np.unique(cells):
        here = cells == cell
        cumulative = np.cumsum(weights[cell, order])
        place = np.searchsorted(cumulative, rank[here] * cumulative[-1])
        chosen[here] = order[np.minimum(place, len(order) - 1)]
    return chosen


def _correlated(z: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Give independent normals (M, K) the correlation matrices (M, K, K); one that is none is made one by clipping."""
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 1e-9))[:, None, :]
    root = root / np.sqrt((root**2).sum(2, keepdims=True))
    found: np.ndarray = np.einsum("mij,mj->mi", root, z)
    return found
