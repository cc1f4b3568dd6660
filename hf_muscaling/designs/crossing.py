"""Where two designs' curves cross: the size from which the other one wins, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .verdict import Verdict

POINTS = 60


@dataclass(frozen=True)
class Crossing:
    """`N` is the largest size, up to the target, at which the median difference changes sign (None if it does not);
    `turned` the probability that the design ahead at the largest common proxy is behind at the target.
    """

    N: float | None
    turned: float


def crossing(verdict: Verdict, first: str, second: str) -> Crossing:
    """Follow the difference of two designs' curves from the smallest proxy to the target, in all joint draws."""
    names = [d.name for d in verdict.designs]
    places = [names.index(first), names.index(second)]
    both = [verdict.designs[k] for k in places]
    common = min(d.fitted.N.max() for d in both)
    grid = np.geomspace(min(d.fitted.N.min() for d in both), max(d.N for d in both), POINTS)
    curves = []
    for x in (*grid, common):
        logs = []
        for design, k in zip(both, places, strict=True):
            params = {
                name: values[verdict.draws.draw[:, k]] for name, values in design.law.interval_data().params.items()
            }
            logs.append(np.log(design.law.loss(x, **params) * design.scale))
        curves.append(logs[0] - logs[1])
    median = np.array([np.median(c) for c in curves[:-1]])
    turned = float((np.sign(curves[-1]) != np.sign(verdict.draws.difference(*places))).mean())
    changes = np.flatnonzero(np.sign(median[1:]) != np.sign(median[:-1]))
    if not len(changes):
        return Crossing(None, turned)
    i = changes[-1]
    part = median[i] / (median[i] - median[i + 1])
    return Crossing(float(np.exp(np.log(grid[i]) + part * np.log(grid[i + 1] / grid[i]))), turned)
