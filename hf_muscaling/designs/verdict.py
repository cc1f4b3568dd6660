"""The verdict: which design's target will have the lower loss, how sure that is, or that it is too close to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_muscaling.errors import ConfigurationError, FitError
from hf_muscaling.runs import Run, mean_losses

from .joint import ALIKE, JointDraws, Predictive, joint_draws
from .pairing import FittedRuns, Pairing, pair

if TYPE_CHECKING:
    from hf_muscaling.laws import PowerLaw
    from hf_muscaling.laws.posterior import Groups

CALL = 0.95
"""Probability from which a pair is called. See the docs page `designs` for the false calls measured at it."""


@dataclass(frozen=True)
class FittedDesign:
    """A design with its law and the runs it was fitted to.

    `N` is the size of its target in parameters, as the law counts them, `seeds` the number of runs whose mean the
    target's loss is. `scale` turns its loss into the unit of the comparison: 1 for nats per token, 1/(ln 2 · bytes per
    token) for bits per byte.
    """

    name: str
    law: PowerLaw
    runs: Sequence[Run]
    N: float
    seeds: int = 1
    scale: float = 1.0

    @cached_property
    def predictive(self) -> Predictive:
        """The distribution of the target's log loss, in the unit of the comparison."""
        found = Predictive.of(self.law.interval_data(), self.law, self.N)
        return replace(found, centre=found.centre + np.log(self.scale))

    @cached_property
    def groups(self) -> Groups:
        """Its runs' losses summed up by size, nats per token."""
        from hf_muscaling.laws.posterior import Groups

        return Groups.of(self.fitted.N, np.exp(self.fitted.residual) * self.law.loss(self.fitted.N, **self.law.params_))

    @cached_property
    def fitted(self) -> FittedRuns:
        """Its runs' residuals and leverages."""
        return FittedRuns.of(self.law, self.runs, self.N)


@dataclass(frozen=True)
class Call:
    """Two designs: the probability that the first has the lower loss at the target, and the difference.

    `difference` is the median of log L_first - log L_second (a relative difference, negative where the first is
    better), `low` and `high` its interval at the verdict's level, `spread` its standard deviation. `winner` is None
    where the pair is too close to call.
    """

    first: str
    second: str
    probability: float
    difference: float
    low: float
    high: float
    spread: float
    pairing: Pairing
    winner: str | None

    def __str__(self) -> str:
        if self.winner is None:
            ahead, chance = (self.first, self.probability)
            if chance < 0.5:
                ahead, chance = self.second, 1 - chance
            said = f"{self.first} against {self.second}: too close to call ({ahead} ahead with probability {chance:.2f}"
        else:
            other = self.second if self.winner == self.first else self.first
            chance = max(self.probability, 1 - self.probability)
            said = f"{self.winner} beats {other} (probability {chance:.3f}"
        return (
            f"{said}; loss of {self.first} relative to {self.second} {100 * self.difference:+.2f} %, "
            f"[{100 * self.low:+.2f}, {100 * self.high:+.2f}] %)"
        )


@dataclass(frozen=True)
class Verdict:
    """What proxies say about the designs' targets: `calls` a pair, `best` each design's probability of being best."""

    designs: Sequence[FittedDesign]
    draws: JointDraws
    calls: Mapping[tuple[str, str], Call]
    best: Mapping[str, float]
    threshold: float
    level: float
    paired: bool = True
    alike: float = ALIKE

    def probability(self, first: str, second: str) -> float:
        """The probability that the first design's target has the lower loss."""
        if first == second:
            return 0.5
        if (first, second) in self.calls:
            return self.calls[first, second].probability
        return 1 - self.calls[second, first].probability

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        calls = [
            {
                "first": c.first, "second": c.second, "probability": c.probability, "difference": c.difference,
                "low": c.low, "high": c.high, "spread": c.spread, "winner": c.winner,
                "matched_runs": c.pairing.matched, "correlation": c.pairing.correlation,
                "shrunk_correlation": c.pairing.shrunk, "same_seeds": c.pairing.same_seeds,
            }
            for c in self.calls.values()
        ]  # fmt: skip
        target = {d.name: float(d.N) for d in self.designs}
        return {"calls": calls, "best": dict(self.best), "threshold": self.threshold, "level": self.level, "N": target}

    def __str__(self) -> str:
        lines = [str(call) for call in self.calls.values()]
        if len(self.designs) > 2:
            ranked = sorted(self.best.items(), key=lambda item: -item[1])
            lines.append("probability of being best: " + ", ".join(f"{n} {p:.2f}" for n, p in ranked))
        return "\n".join(lines)


def compare_fitted(
    designs: Sequence[FittedDesign],
    *,
    threshold: float = CALL,
    level: float = 0.9,
    paired: bool = True,
    alike: float = ALIKE,
) -> Verdict:
    """Compare designs whose laws are fitted: every pair, and each one's probability of being best.

    A pair is called where one side's probability reaches `threshold`. `paired=False` takes the runs of different
    designs as independent, as if they shared nothing; `alike` is the spread of log|b| between designs (`joint`).
    """
    if len(designs) < 2:
        raise ConfigurationError(f"A comparison needs two designs or more, got {len(designs)}.")
    if not 0.5 < threshold < 1:
        raise ConfigurationError(f"threshold={threshold} must be a probability between 0.5 and 1.")
    names = [d.name for d in designs]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"Each design needs a name of its own, got {', '.join(names)}.")
    pairs = list(combinations(range(len(designs)), 2))
    pairings = {(j, k): pair(designs[j].fitted, designs[k].fitted) for j, k in pairs}
    used = pairings if paired else {}
    draws = joint_draws([d.predictive for d in designs], used, [d.seeds for d in designs], alike)
    calls = {(names[j], names[k]): _call(names, draws, j, k, pairings[j, k], threshold, level) for j, k in pairs}
    best = {name: float(p) for name, p in zip(names, draws.best(), strict=True)}
    return Verdict(list(designs), draws, calls, best, threshold, level, paired, alike)


def _call(
    names: Sequence[str], draws: JointDraws, j: int, k: int, pairing: Pairing, threshold: float, level: float
) -> Call:
    difference, probability = draws.difference(j, k), draws.beats(j, k)
    low, middle, high = np.quantile(difference, (0.5 * (1 - level), 0.5, 0.5 * (1 + level)))
    winner = names[j] if probability >= threshold else names[k] if probability <= 1 - threshold else None
    return Call(
        first=names[j],
        second=names[k],
        probability=probability,
        difference=float(middle),
        low=float(low),
        high=float(high),
        spread=float(difference.std()),
        pairing=pairing,
        winner=winner,
    )


def compare_series(
    series: Mapping[str, Sequence[Run]],
    target: float | Mapping[str, float],
    *,
    objective: str = "least_squares",
    count: str = "total",
    threshold: float = CALL,
    level: float = 0.9,
    paired: bool = True,
    alike: float = ALIKE,
) -> Verdict:
    """Compare designs whose proxies are trained: fit L(N) = a·N^b + c to each and say which wins at the target.

    `series` gives each design's runs by name, `target` the N of the targets in parameters, the same for all or each
    design's own. All runs must have seen equally many tokens, under the same objective, and their losses must be nats
    per token of the same held-out text with the same tokenizer (`compare_designs` converts others).

    Raises ConfigurationError for runs that do not compare, FitError for a design with fewer than three sizes.

    >>> from hf_muscaling.runs import Run
    >>> def runs(floor):
    ...     return [Run(f"{floor}-{n}", "finished", n, n, 10**6, 100, 10**4, 6e6 * n, floor + 40 * n**-0.25, w, 0, 0.01)
    ...             for w, n in ((32, 10**5), (48, 2 * 10**5), (64, 4 * 10**5), (96, 8 * 10**5))]
    >>> verdict = compare_series({"low": runs(2.0), "high": runs(2.1)}, target=3.2e6)
    >>> print(str(verdict).split(" (")[0])
    low beats high
    """
    if len(series) < 2:
        raise ConfigurationError(f"A comparison needs two designs or more, got {len(series)}.")
    from hf_muscaling.laws import PowerLaw

    _check_same(series)
    sizes = {name: target[name] if isinstance(target, Mapping) else target for name in series}
    designs = []
    for name, runs in series.items():
        if len(mean_losses(runs)) < 3:
            raise FitError(
                f"Design {name!r} has {len(mean_losses(runs))} finished widths, a law needs three. Train more widths."
            )
        rows = [run for run in runs if run.finished]
        law = PowerLaw(objective=objective, count=count).fit(
            {"N": [r.N for r in rows], "N_non_embedding": [r.N_non_embedding for r in rows],
             "loss": [r.loss for r in rows]}
        )  # fmt: skip
        designs.append(FittedDesign(name, law, rows, float(sizes[name])))
    return compare_fitted(designs, threshold=threshold, level=level, paired=paired, alike=alike)


def _check_same(series: Mapping[str, Sequence[Run]]) -> None:
    """Refuse runs whose losses do not compare."""
    questions = {
        "tokens per run (D)": lambda run: run.D,
        "objective": lambda run: run.settings.get("objective", {}).get("name", "causal"),
        "tokenizer": lambda run: run.tokenizer_hash[:12],
    }
    remedies = {
        "tokens per run (D)": "train both for as many tokens",
        "objective": "losses of different objectives do not compare",
        "tokenizer": "compare_designs compares different tokenizers in bits per byte",
    }
    for what, read in questions.items():
        found = {name: sorted({read(run) for run in runs if run.finished}, key=str) for name, runs in series.items()}
        values = {value for those in found.values() for value in those}
        if len(values) > 1:
            shown = "; ".join(f"{name}: {', '.join(map(str, those))}" for name, those in found.items())
            raise ConfigurationError(f"The runs differ in {what}: {shown}. They do not compare; {remedies[what]}.")
