"""Both stages of FLP together: from what a run costs to its loss, from its loss to its score."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.special import ndtri

from ..errors import ConfigurationError
from .base import ScalingLaw, check_level
from .downstream import DownstreamLaw
from .downstream_interval import standard_normal
from .prediction import ScorePrediction

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)


class TwoStage:
    """A fitted law of the loss and a fitted `DownstreamLaw` after it: the score of a run that was not trained.

    `predict` takes the first law's variables (`N=…, D=…`, or `schedule=…` of an `AnnealingLaw`). The loss is drawn from
    the first law's own distribution (its intervals at several levels), the score from the second's given each draw.
    Raises `ConfigurationError` unless both are fitted laws.
    """

    def __init__(self, law: ScalingLaw, downstream: DownstreamLaw):
        if not isinstance(law, ScalingLaw) or not isinstance(downstream, DownstreamLaw):
            raise ConfigurationError("TwoStage takes a law of the loss and a DownstreamLaw, both fitted.")
        law._check_fitted()
        downstream._check_fitted()
        self.law, self.downstream = law, downstream

    def predict(self, *, level: float = 0.9, **at: Any) -> ScorePrediction:
        """The score with an interval that holds that of a new run with probability `level`."""
        level = check_level(level)
        first = self.law.predict(level=0.9, **at)
        point = np.asarray(first.loss, float)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, by the call above
            known = [self.law.predict(level=one, **at) for one in LEVELS]
        low = [np.log(np.ravel(p.low)) for p in reversed(known)]
        high = [np.log(np.ravel(p.high)) for p in known]
        z = ndtri(0.5 * (1 + np.array(LEVELS)))
        turn = np.concatenate([-z[::-1], [0.0], z])
        quantiles = np.array([*low, np.log(point.ravel()), *high])
        draws = np.exp(np.array([np.interp(standard_normal(), turn, column) for column in quantiles.T]))
        return self.downstream._predicted(point, draws, level, first.at)

    def solve(self, variable: str, *, score: float, **at: Any) -> Any:
        """What `variable` reaches a score: `solve("N", score=0.6, D=1e12)`; inf where nothing does."""
        loss = float(self.downstream.solve(score=score))
        return self.law.solve(variable, loss=loss, **at) if np.isfinite(loss) else float("inf")

    def summary(self) -> str:
        """Both fits in words."""
        return f"{self.law.summary()}\n{self.downstream.summary()}"
