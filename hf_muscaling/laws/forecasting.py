"""Before the large run (Part I): minimum loss, steps and tokens to a loss, critical batch size, whole curves, each with
an interval.

Where the intervals come from:

* a curve: `KaplanStepLaw.predict`, the refits to resampled runs, the noise of one run and the law's misfit;
* steps and tokens to a loss: that same band read along the other axis. A falling curve has reached the loss l by step s
  exactly if L(s) ≤ l, so the quantiles of the first step are where those of the loss cross l. Where the band
  opens away from the fitted steps, its lower end is taken no lower than it is later on: curves fall;
* critical batch size and minimum loss, which no single run shows: the refits alone, as wide as the linearised fit
  expects them to scatter where they scatter less.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigurationError
from .answers import positive
from .base import ExtrapolationWarning, check_level
from .bootstrap import WIDEST
from .caveats import FAR
from .selection import run_index

if TYPE_CHECKING:
    from .kaplan_step import KaplanStepLaw

POINTS = 60  #: of a curve
ENOUGH = 3  #: batch sizes that tell a critical one: below and above it
SEARCHED = 71  #: steps at which a band is read off
REACH = np.log(1e3)  #: log steps searched on either side of the expected
LEAST_SHARE = 0.25  #: of a run's tokens, at which the first of the losses that nobody named is taken


@dataclass(frozen=True)
class Estimate:
    """A number and the interval that holds it with the forecast's confidence; `high` is inf where nothing bounds it."""

    value: float
    low: float
    high: float

    def holds(self, actual: float) -> bool:
        """Whether a measured number lies inside."""
        return bool(self.low <= actual <= self.high)

    def scaled(self, factor: float) -> Estimate:
        """The estimate in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def whole(self) -> str:
        """As text, in whole numbers: steps."""
        return str(Estimate(*(round(v) if abs(v) < 1e6 else v for v in (self.value, self.low, self.high))))

    def __str__(self) -> str:
        return f"{_short(self.value)} [{_short(self.low)}, {_short(self.high)}]"


@dataclass(frozen=True)
class Reach:
    """What a loss (nats per token) takes at batch size B (tokens): optimizer steps, tokens, and B_crit at that loss."""

    loss: float
    B: float
    steps: Estimate
    tokens: Estimate
    critical_batch: Estimate


@dataclass(frozen=True)
class Curve:
    """A predicted loss curve at batch size B: loss and interval (nats per token) after S steps, D = B·S tokens."""

    B: float
    S: np.ndarray
    D: np.ndarray
    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, step: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loss, low and high at other steps, on straight lines between log steps."""
        x, own = np.log(np.asarray(step, float)), np.log(self.S)
        loss, low, high = (np.exp(np.interp(x, own, np.log(v))) for v in (self.loss, self.low, self.high))
        return loss, low, high


@dataclass(frozen=True)
class Forecast:
    """What `forecast` answers about a model of N parameters that was not trained; `notes` says what is far outside."""

    N: float
    level: float
    minimum_loss: Estimate
    reaches: tuple[Reach, ...]
    curves: tuple[Curve, ...]
    notes: tuple[str, ...]
    fitted: dict[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; an end that nothing bounds is null."""
        return _plain(asdict(self))

    def plot(self, measured: Sequence[dict[str, Any]] = (), fitted: Any = None, scored: float | None = None) -> Any:
        """A matplotlib figure: every curve with its band, what lies beyond the fitted steps shaded.

        `measured` holds curves to lay over: {"B", "S", "loss"}; `fitted` the law, whose rows are drawn in grey;
        `scored` the share of a curve's steps after which it is compared, marked by a line.
        """
        from .forecast_plot import plot_forecast

        return plot_forecast(self, measured, fitted, scored)

    def __str__(self) -> str:
        lines = [
            f"N = {self.N:.4g} parameters, {100 * self.level:g} % intervals",
            f"minimum loss {self.minimum_loss} nats per token",
            "",
            f"{'loss':>7} {'B, tokens':>10}  {'steps':<30} {'tokens':<30} {'B_crit, tokens':<30}",
        ]
        for r in self.reaches:
            lines.append(
                f"{r.loss:7.4g} {r.B:10,.0f}  {r.steps.whole():<30} {str(r.tokens):<30} {str(r.critical_batch):<30}"
            )
        lines += ["", *(_curve_line(c) for c in self.curves)]
        return "\n".join([*(line.rstrip() for line in lines), *(f"note: {note}" for note in self.notes)])


def forecast(
    law: KaplanStepLaw, N: float, B: Any, *, losses: Any = None, tokens: Any = None, level: float = 0.9
) -> Forecast:
    """Answer Part I's questions about a model of N parameters at each batch size B (tokens), from a fitted law.

    `losses` are the levels (nats per token) whose steps, tokens and critical batch size are wanted; by default the
    predicted losses after a quarter (or later, where that lies above every fitted loss), a half and all of the first
    batch size's tokens. `tokens` says how long each curve is, one number or one a batch size; by default the tokens of
    the longest fitted run, and no fewer steps than the run of fewest.

    Raises ConfigurationError for numbers that are not positive, or another law.

    >>> from hf_muscaling import KaplanStepLaw, forecast
    >>> truth = dict(N_c=1e14, alpha_N=0.076, S_c=3e3, alpha_S=0.67, B_star=2e8, alpha_B=0.21)
    >>> runs = [{"N": n, "S": s, "B": b, "run_id": f"{n} {b}", "loss": float(KaplanStepLaw.loss(n, s, b, **truth))}
    ...         for n in (1e6, 3e6, 1e7, 3e7) for b in (5e4, 2e5, 8e5) for s in np.geomspace(500, 2e4, 20)]
    >>> law = KaplanStepLaw(objective="huber", irreducible=False).fit(runs)
    >>> found = forecast(law, N=1e8, B=4e5, losses=[3.5])
    >>> f"{found.minimum_loss.value:.2f}, {found.reaches[0].steps.value:.0f}"
    '2.86, 13257'
    """
    if not hasattr(law, "critical_batch_size"):
        raise ConfigurationError(
            f"forecast() needs a KaplanStepLaw, which knows batch sizes, not {type(law).__name__}."
        )
    level = check_level(level)
    size = float(positive("N", N, "parameters"))
    batches = np.array(list(dict.fromkeys(np.atleast_1d(positive("B", B, "tokens per batch")).tolist())))
    law._check_fitted()
    lengths = _lengths(law, batches) if tokens is None else positive("tokens", tokens, "training tokens")
    if lengths.shape not in ((), batches.shape):
        raise ConfigurationError(
            f"tokens={tokens!r} must be one number, or one for each of {len(batches)} batch sizes."
        )
    lengths = np.broadcast_to(lengths, batches.shape)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ExtrapolationWarning)
        curves = tuple(_curve(law, size, b, d, level) for b, d in zip(batches, lengths, strict=True))
    if losses is None:
        losses = _levels(curves[0], float(law._columns["loss"].max()))
    levels = [float(v) for v in np.atleast_1d(positive("losses", losses, "nats per token"))]
    by_batch = [_reaches(law, size, float(b), levels, level) for b in batches]
    reaches = tuple(reach for same_loss in zip(*by_batch, strict=True) for reach in same_loss)
    least = _of_parameters(law, lambda p: _limit(p, size), level)
    notes = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, ExtrapolationWarning))
    notes |= dict.fromkeys(_notes(law, size, batches, reaches, least))
    fitted = dict(law.range_) | {"loss": (float(law._columns["loss"].min()), float(law._columns["loss"].max()))}
    return Forecast(size, level, least, reaches, curves, tuple(notes), fitted)


# -- inside ------------------------------------------------------------------------------------------------------------


def _lengths(law: KaplanStepLaw, batches: np.ndarray) -> np.ndarray:
    """Tokens of each curve: those of the longest run, but no fewer steps than every run had."""
    data, run = law._columns, run_index(law._columns)
    steps = min(float(data["S"][run == r].max()) for r in np.unique(run)) if len(np.unique(run)) < len(run) else 2.0
    return np.maximum(float(np.max(data["S"] * data["B"])), steps * batches)


def _levels(curve: Curve, highest: float) -> list[float]:
    """Three losses on the way, none above the highest fitted one: a model may start below that."""
    last = curve.S[-1]
    seen = curve.S[curve.loss < highest]
    first = min(max(LEAST_SHARE * last, seen[0] if seen.size else last), last)
    losses = curve.at([first, (first * last) ** 0.5, last])[0]
    return list(dict.fromkeys(round(float(loss), 2) for loss in losses))


def _curve(law: KaplanStepLaw, size: float, batch: float, tokens: float, level: float) -> Curve:
    """From a thirtieth of the run to its end: earlier, the warm-up decides."""
    steps = np.geomspace(max(tokens / batch / 30, 1.0), max(tokens / batch, 2.0), POINTS)
    found = law.predict(N=size, S=steps, B=batch, level=level)
    return Curve(
        float(batch), steps, steps * batch, np.asarray(found.loss), np.asarray(found.low), np.asarray(found.high)
    )


def _reaches(law: KaplanStepLaw, size: float, batch: float, losses: Sequence[float], level: float) -> list[Reach]:
    """Steps to each loss at one batch size: where the curve and its band cross it."""
    steps = [float(law.steps_to(loss, size, batch)) for loss in losses]
    known = np.log([s for s in steps if np.isfinite(s)] or [law.range_["S"][1]])
    searched = np.exp(np.linspace(known.min() - REACH, known.max() + REACH, SEARCHED))
    with warnings.catch_warnings():  # the caller hears of the distance from the curves and the notes
        warnings.simplefilter("ignore")
        band = law.predict(N=size, S=searched, B=batch, level=level)
    found = []
    for loss, step in zip(losses, steps, strict=True):
        low, high = (_crossing(searched, v, loss) for v in _falling(band.low, band.high))
        estimate = Estimate(step, min(low, step), max(high, step))
        critical = _of_parameters(law, lambda p, loss=loss: p["B_star"] / loss ** (1 / p["alpha_B"]), level)  # type: ignore[misc]
        found.append(Reach(loss, batch, estimate, estimate.scaled(batch), critical))
    return found


def _falling(low: Any, high: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a band says of curves that fall: no lower than any later low end, no higher than any earlier high end."""
    return np.maximum.accumulate(np.asarray(low)[::-1])[::-1], np.minimum.accumulate(np.asarray(high))


def _crossing(steps: np.ndarray, losses: np.ndarray, loss: float) -> float:
    """The first step at which a falling curve is at or below a loss; inf if it never is."""
    under = np.flatnonzero(losses <= loss)
    if not under.size:
        return float("inf")
    i = int(under[0])
    if i == 0:
        return float(steps[0])
    share = np.log(losses[i - 1] / loss) / np.log(losses[i - 1] / losses[i])
    return float(np.exp(np.log(steps[i - 1]) + share * np.log(steps[i] / steps[i - 1])))


def _limit(p: Any, size: float) -> Any:
    """The loss of endless training."""
    return (p["N_c"] / size) ** p["alpha_N"] + p["E"]


def _of_parameters(law: KaplanStepLaw, answer: Callable[[Any], Any], level: float) -> Estimate:
    """A positive function of the parameters with its interval from the refits, in logarithms."""
    data = law.interval_data()
    nearby = data.neighbourhood
    if nearby is None:
        raise ConfigurationError(f"{type(law).__name__} does not say how its refits scatter.")
    own = float(np.log(answer(law.params_)))
    with np.errstate(all="ignore"):  # what the runs leave open has a covariance of rank too low, by rounding below 0
        drawn = np.log(answer(data.params))
        theta = np.random.default_rng(0).multivariate_normal(
            nearby.theta, nearby.covariance, len(drawn), method="eigh", check_valid="ignore"
        )
        problem = law._fitted[0]
        linear = np.log(answer(law._named(np.clip(theta, problem.low, problem.high), dict(nearby.origin))))
    drawn, linear = drawn[np.isfinite(drawn)], linear[np.isfinite(linear)]
    ends = (0.5 * (1 - level), 0.5 * (1 + level))
    width, expected = (float(np.ptp(np.quantile(v, ends))) for v in (drawn, linear))
    stretch = float(np.clip(expected / width, 1.0, WIDEST)) if width > 0 else 1.0
    low, high = np.quantile(own + stretch * (drawn - own), ends)
    return Estimate(float(np.exp(own)), float(np.exp(min(low, own))), float(np.exp(max(high, own))))


def _notes(
    law: KaplanStepLaw, size: float, batches: np.ndarray, reaches: Sequence[Reach], least: Estimate
) -> list[str]:
    """What was asked for outside of the runs."""
    found = []
    low, high = law.range_["B"]
    outside = [b for b in batches if not low / FAR <= b <= high * FAR]
    if outside:
        found.append(
            f"B = {', '.join(f'{b:.3g}' for b in outside)} is over {FAR:g} times outside the fitted batch sizes "
            f"{low:.3g} to {high:.3g}: add runs nearer to it."
        )
    if size < law.range_["N"][0] / FAR:
        found.append(f"N = {size:.3g} is over {FAR:g} times below the smallest fitted {law.range_['N'][0]:.3g}.")
    for loss in dict.fromkeys(r.loss for r in reaches):
        if loss <= least.value:
            found.append(f"Loss {loss:g} is below the predicted minimum {least.value:.4g} of N = {size:.3g}: never.")
        elif loss < least.high:
            found.append(f"Loss {loss:g} may lie below the minimum loss {least} of N = {size:.3g}.")
    steps = law.range_["S"][1]
    for r in reaches:
        if np.isfinite(r.steps.value) and r.steps.value > FAR * steps:
            found.append(
                f"Loss {r.loss:g} at B = {r.B:.3g} takes {r.steps.value / steps:.3g} times the longest fitted run."
            )
    critical = {r.loss: r.critical_batch.value for r in reaches}
    far = [f"{value:.3g} at loss {loss:g}" for loss, value in critical.items() if not low / FAR <= value <= high * FAR]
    if far:
        found.append(
            f"B_crit {', '.join(far)} lies far outside the fitted batch sizes {low:.3g} to {high:.3g}: the runs hardly "
            "tell it."
        )
    count = len(np.unique(law._columns["B"]))
    if count < ENOUGH:
        told = "the prior" if law.objective == "bayes" else "chance"
        told = f"one batch size: B_crit rests on {told}, not on them" if count == 1 else "two batch sizes for B_crit"
        found.append(f"The runs have {told}. Add runs at {ENOUGH} batch sizes or more, below and above it.")
    if least.low < least.value / FAR:
        found.append(
            f"The minimum loss {least} is not told by these runs: its interval is open below. Add longer runs."
        )
    return found


def _curve_line(curve: Curve) -> str:
    return (
        f"B = {curve.B:,.0f}: loss {curve.loss[-1]:.4f} [{curve.low[-1]:.4f}, {curve.high[-1]:.4f}] after "
        f"{curve.S[-1]:,.0f} steps ({_short(curve.D[-1])} tokens)"
    )


def _short(value: float) -> str:
    if 0 < value < 1e-100:  # as good as no irreducible loss
        return "0"
    return "never" if np.isinf(value) else f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.4g}"


def _plain(value: Any) -> Any:
    """Nested JSON types."""
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value
