"""What more proxies would buy: how much narrower the difference of two designs' targets is expected to become.

A run that is not trained yet is put where its law expects it, and its noise where the runs' own is; the posterior of
the law given both has the spread to be expected. The difference keeps its median and the shape of its distribution,
which narrows as the spread does. Cost is the FLOPs of the runs that are added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hf_muscaling.counting import training_flops

from .joint import Predictive, joint_draws
from .verdict import FittedDesign, Verdict

if TYPE_CHECKING:
    from hf_muscaling.laws.posterior import Groups


@dataclass(frozen=True)
class Purchase:
    """One way to spend more on a pair: what, the FLOPs, the spread of log L_first - log L_second before and after (its
    standard deviation over the joint draws, `Call.spread`), and the probability that the design ahead would then have,
    if the difference kept its median.
    """

    what: str
    flops: float
    before: float
    after: float
    probability: float

    def __str__(self) -> str:
        return (
            f"{self.what}: spread of the difference {100 * self.before:.2f} → {100 * self.after:.2f} % for "
            f"{self.flops:.2g} FLOPs"
        )


def purchases(
    verdict: Verdict,
    first: str,
    second: str,
    next_size: Mapping[str, float],
    flops: Callable[[str, float], float] | None = None,
) -> list[Purchase]:
    """Return what one more seed of every proxy, or one more proxy of `next_size[name]` parameters, would buy.

    Both designs get the same addition. `flops` gives the cost of a run of a design by its N (by default 6·N·D).
    """
    designs = {d.name: d for d in verdict.designs}
    both = [designs[first], designs[second]]
    horizon = float(both[0].runs[0].D)
    cost = flops or (lambda name, N: training_flops(N, horizon))
    call = verdict.calls[first, second]
    names = [d.name for d in verdict.designs]
    places = names.index(first), names.index(second)
    now = verdict.draws.difference(*places)
    pairings = {(names.index(j), names.index(k)): c.pairing for (j, k), c in verdict.calls.items()}
    sizes = {d.name: np.unique(d.fitted.N) for d in both}
    shown = " and ".join(f"{next_size[d.name]:.3g}" for d in both)
    options: Sequence[tuple[str, dict[str, np.ndarray]]] = [
        ("one more seed of every proxy", sizes),
        (
            f"one more proxy each, N = {shown}, with as many seeds",
            {d.name: np.full(_seeds(d), next_size[d.name]) for d in both},
        ),
    ]
    found = []
    for what, added in options:
        later = [
            expected_predictive(d, added[d.name]) if d.name in (first, second) else d.predictive
            for d in verdict.designs
        ]
        draws = joint_draws(
            later, pairings if verdict.paired else {}, [d.seeds for d in verdict.designs], verdict.alike
        )
        after = float(draws.difference(*places).std())
        spent = sum(cost(d.name, float(N)) for d in both for N in added[d.name])
        then = call.difference + (after / call.spread) * (now - call.difference)
        found.append(Purchase(what, spent, call.spread, after, _ahead(then, call.difference)))
    return found


def _ahead(difference: np.ndarray, middle: float) -> float:
    """The probability of the side on which the median lies; an exact tie counts half, as in `JointDraws.beats`."""
    lower = float((difference < 0).mean() + 0.5 * (difference == 0).mean())
    return lower if middle < 0 else 1 - lower


def expected_predictive(design: FittedDesign, added: np.ndarray) -> Predictive:
    """What a law is expected to say of the target once runs of `added` parameters are trained too."""
    from hf_muscaling.laws.posterior import Posterior

    law = design.law
    data = law.interval_data()
    posterior = Posterior(_with_runs(design.groups, added, design))
    draws = posterior.draws(len(data.tau))
    scaled = {"a": draws["a"] * np.exp(-draws["b"] * np.log(posterior.scale)), "b": draws["b"], "c": draws["c"]}
    ((variable, (smallest, largest)),) = data.span.items()
    span = {variable: (min(smallest, float(added.min())), max(largest, float(added.max())))}
    later = replace(data, params=scaled, sigma=draws["sigma"], rho=draws["rho"], span=span)
    found = Predictive.of(later, law, design.N)
    return replace(found, centre=found.centre + np.log(design.scale))


def _with_runs(groups: Groups, added: np.ndarray, design: FittedDesign) -> Groups:
    """Add runs on the law's curve; each brings the noise variance of one run, so that sigma stays what it was."""
    from hf_muscaling.laws.posterior import Groups

    law = design.law
    variance = float(np.exp(2 * np.log(law.interval_data().sigma).mean()))
    sizes, count = np.unique(added, return_counts=True)
    x = np.union1d(groups.x, sizes)
    runs, total = np.zeros(len(x)), np.zeros(len(x))
    for size, number, loss in ((groups.x, groups.runs, groups.loss), (sizes, count, law.loss(sizes, **law.params_))):
        place = np.searchsorted(x, size)
        runs[place] += number
        total[place] += number * np.asarray(loss)
    return Groups(x, total / runs, runs, groups.within + variance * len(added), groups.n + len(added))


def _seeds(design: FittedDesign) -> int:
    return max(1, round(len(design.fitted.N) / len(np.unique(design.fitted.N))))
