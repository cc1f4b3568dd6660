"""Fast screening of designs: a c-optimal design criterion, from the law's sensitivities and the noise between seeds.

At each draw of the belief, with g = d log L / d theta, a design of n_j runs at point j has Fisher information

    I = Σ_j g_j g_jᵀ / (sigma² (1/n_j + misfit_j)) + P,        P the precision of the law's prior,

and the log loss at the target the variance g_tᵀ I⁻¹ g_t + sigma² (1 + misfit_t) + tau² d^(2·power): what is not known
of the curve, the noise of the target's own run and its distance from the law, the drift beyond the design. The noise
counts as known: to charge designs for having to estimate it (Student's t with runs - 1 degrees of freedom) filled them
with seeds of the smallest sizes, whose intervals by the law itself are a tenth wider. The geometric mean of the
half-width over the draws is what a search minimises; the chosen designs are then scored by the interval of the law
itself (`expected`), which does count what few runs say of the noise.

Source: c-optimality, Elfving 1952; Fedorov 1972 for the exchange of points; Chaloner and Verdinelli 1995 for the mean
over a prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtri

from .belief import Belief, Points


@dataclass(frozen=True)
class Screen:
    """The approximate half-width of designs on a list of points; `finished` counts the runs each point has already."""

    belief: Belief
    points: Points
    target: Mapping[str, float]
    level: float = 0.9

    @cached_property
    def _slopes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        one = {name: np.array([float(value)]) for name, value in self.target.items()}
        g = self.belief.slopes(self.points)
        return g[..., :, None] * g[..., None, :], self.belief.slopes(one)[:, 0], self.belief.precision(self.points)

    def half_widths(self, counts: np.ndarray) -> np.ndarray:
        """Return the typical half-width, relative to the loss, of designs given as counts (P, k); inf for no run.

        >>> from hf_muscaling.budget.belief import PowerBelief
        >>> sizes = {"N": np.array([1e6, 2e6, 4e6, 8e6])}
        >>> screen = Screen(PowerBelief.assumed(1e6), sizes, {"N": 3.2e7})
        >>> one, four, alike = screen.half_widths(np.array([[1, 1, 1, 1], [4, 4, 4, 4], [0, 0, 0, 16]]))
        >>> bool(four < one < alike)
        True
        """
        counts = np.atleast_2d(np.asarray(counts, float))
        trained = counts > 0
        none = ~trained.any(1)
        trained[none, 0] = True
        outer, there, prior = self._slopes
        sigma2 = self.belief.sigma**2
        with np.errstate(divide="ignore"):
            variance = 1 / counts[:, None, :] + self.belief.misfit(self.points, trained)
        weight = np.where(trained[:, None, :], 1 / variance, 0.0) / sigma2[None, :, None]
        p = there.shape[-1]
        information = np.matmul(weight.transpose(1, 0, 2), outer.reshape(*outer.shape[:2], p * p))  # (M, P, p²)
        information = information.reshape(len(sigma2), len(counts), p, p) + np.eye(p) * prior[:, None, None, :]
        solved = np.linalg.solve(information, np.broadcast_to(there[:, None, :, None], (*information.shape[:3], 1)))
        curve = np.einsum("mi,mpi->pm", there, solved[..., 0])
        away = self.belief.outside(self.points, trained, self.target)
        drift = self.belief.tau**2 * away[:, None] ** (2 * self.belief.power)
        noise = np.maximum(curve, 0) + sigma2 * (1 + self.belief.stray(away))
        half = ndtri(0.5 * (1 + self.level)) * np.exp(0.5 * np.log(noise + drift).mean(1))
        return np.where(none, np.inf, half)
