"""What about a table of runs, or a fit to it, a reader of the prediction should know: one sentence each.

Nothing here stops a fit. What makes one impossible is a `FitError` of the law or of `laws.table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .selection import run_index
from .table import run_labels

if TYPE_CHECKING:
    from .base import ScalingLaw

APART = 1.1  #: runs whose tokens (or sizes) differ by more than this factor are not at one horizon (of one size)
PROPORTIONAL = 0.05  #: spread of log(D/N) below which tokens count as proportional to parameters
GAP = 1000.0  #: no ladder of sizes skips such a factor; millions beside plain numbers do
TINY = 2e4  #: no language model has so few parameters or tokens, but many a size in millions is such a number
SCATTER = 0.1  #: typical residual above which the law does not describe the runs: 0.2 to 4.5 % in published tables
FAR = 10.0  #: times beyond the fitted range, at either end, past which `predict` warns
OFF_LINE = 1.5  #: factor off the one D/N of all runs past which `predict` warns
OFF = 2.0  #: factor between a row and the law that no run of a law shows: a wrong unit or a failed run
HIGH, TYPICAL = 1.25, 8.0  #: a loss so many times the law's, and so many typical residuals off, is a diverged run
RISE = 3.0  #: standard errors by which residuals must rise with a variable to say that the loss does


def families(raw: Mapping[str, Any]) -> list[str]:
    """Several recipes in one table."""
    found = {str(value) for value in raw.get("family", ()) if value not in (None, "")}
    if len(found) < 2:
        return []
    return [
        f"The table holds {len(found)} families ({', '.join(sorted(found)[:3])}, …): one law describes one recipe. Fit "
        "each on its own rows."
    ]


def precisions(raw: Mapping[str, Any]) -> tuple[list[str], str]:
    """Runs that differ in precision, and the words that end the sentence on what was fitted."""
    known = [str(value) for value in raw.get("precision", ()) if value not in (None, "")]
    names = sorted(set(known))
    if len(names) < 2:
        return [], ""
    shown = ", ".join(f"{known.count(name)} in {name}" for name in names)
    return [
        f"The table mixes precisions ({shown}): rounding shifts a loss by its own amount at every size, which the law "
        "takes for a trend. Train all runs of a series in one precision."
    ], f"; mixed precisions: {shown}"


def repeated_data(raw: Mapping[str, Any]) -> tuple[list[str], str]:
    """Runs that saw their data more than once, where the table says so (`unique_tokens`), and the words for it.

    Repeated tokens teach less than new ones (Muennighoff et al. 2023): up to about 4 epochs nearly as much, which
    no law here knows.
    """
    tokens, unique = _numbers(raw, "D"), _numbers(raw, "unique_tokens")
    if tokens is None or unique is None:
        return [], ""
    with np.errstate(all="ignore"):
        epochs = np.where(unique > 0, tokens / unique, 1.0)
    many = epochs > 1.01
    if not many.any():
        return [], ""
    most = float(epochs[many].max())
    return [
        f"{int(many.sum())} of {len(epochs)} rows repeat their data, up to {most:.3g} times (D over unique_tokens): "
        "laws in D count a repeated token as a new one, which holds roughly to 4 epochs (Muennighoff et al. 2023). "
        "Fit the runs with D up to unique_tokens, or 4 times that (on the command line: --epochs 4)."
    ], f"; data repeated up to {most:.3g} times"


def horizons(raw: Mapping[str, Any], variable: str) -> tuple[list[str], str]:
    """A law in N alone fitted to runs of unequal D, or in D alone to runs of unequal N, and the words for it.

    Of whole curves the horizon is the run's last row. A law in C takes the best runs of each budget, so both may vary.
    """
    other = {"N": "D", "D": "N"}.get(variable)
    if other is None or (values := _numbers(raw, other)) is None or (own := _numbers(raw, variable)) is None:
        return [], ""
    labels = run_labels(dict(raw))
    if labels is not None and len(labels) != len(values):
        return [], ""
    run = run_index({"loss": values} if labels is None else {"loss": values, "run_id": np.array(labels, object)})
    ends, sizes = np.zeros(run.max() + 1), np.zeros(run.max() + 1)
    np.maximum.at(ends, run, values)
    np.maximum.at(sizes, run, own)
    good = (ends > 0) & (sizes > 0)
    low, high = ends[good].min(initial=np.inf), ends[good].max(initial=0.0)
    if not high > APART * low:
        return [], ""
    words = f"; {other} from {low:.4g} to {high:.4g}"
    ratio = np.log(ends[good] / sizes[good])
    if variable == "N" and np.ptp(ratio) < PROPORTIONAL:
        return [
            f"D grows with N in these runs (D/N = {np.exp(ratio.mean()):.3g}): L(N) then holds along D/N only, and "
            "predict(N=…) means a run with as many tokens per parameter. For another horizon fit ChinchillaLaw."
        ], words
    what, law = (
        ("trained on different numbers of tokens", "L(N) compares runs at one horizon")
        if variable == "N"
        else ("of different sizes", "L(D) compares runs of one size")
    )
    return [
        f"The runs are {what} ({other} from {low:.4g} to {high:.4g}) and {law}: part of what it takes for the effect "
        f"of {variable} is that of {other}. Fit ChinchillaLaw, which has both, or runs of one {other}."
    ], words


def one_line(law: ScalingLaw) -> list[str]:
    """Runs of a law in N and D whose tokens are in proportion to their parameters: nothing tells the two apart."""
    ratio = tokens_per_parameter(law)
    if ratio is None:
        return []
    return [
        f"D grows with N in these runs (D/N = {ratio:.3g}): a larger model and more tokens cannot be told apart, so "
        "the law holds along this D/N, and elsewhere it says what its form and its prior do. Train a size at another "
        "D/N."
    ]


def off_line(law: ScalingLaw, at: Mapping[str, np.ndarray]) -> list[str]:
    """A prediction at another D/N than the one that all runs had."""
    ratio = tokens_per_parameter(law)
    if ratio is None:
        return []
    off = float(np.exp(np.abs(np.log(at["D"] / at["N"] / ratio)).max()))
    if not off > OFF_LINE:
        return []
    return [
        f"D/N lies a factor of {off:.3g} off the {ratio:.3g} of every run fitted: they do not say which part of the "
        "fall is N's and which is D's. Train a run at another D/N, or predict along this one."
    ]


def tokens_per_parameter(law: ScalingLaw) -> float | None:
    """D/N where all runs of a law in N and D have the same; None where they differ, or all runs are of one size."""
    if not {"N", "D"} <= set(law.variables):
        return None
    n, d = (law._columns[law.columns[name]] for name in ("N", "D"))
    ratio = np.log(d / n)
    return float(np.exp(ratio.mean())) if np.ptp(ratio) < PROPORTIONAL < np.ptp(np.log(n)) else None


def magnitudes(raw: Mapping[str, Any], column: str) -> tuple[list[str], str]:
    """Sizes or tokens in millions or billions, all of them or some beside plain ones, and the words for it."""
    values = _numbers(raw, column)
    sizes = np.unique(values[values > 0]) if values is not None else np.array([])
    if len(sizes) and sizes[-1] < TINY:
        what = "no run has so few tokens" if column == "D" else "no language model is so small"
        return [
            f"{column} runs from {sizes[0]:.4g} to {sizes[-1]:.4g}, and {what}: give {column} in plain units, not in "
            f"millions or billions. What takes {column} in these units (predict, solve) still holds; compute, 6·N·D "
            "FLOPs, and the compute-optimal N and D do not."
        ], f"; {column} all below {TINY:.0e}".replace("e+0", "e")
    if column == "D":
        return [], ""
    steps = np.where(sizes[:-1] < TINY, sizes[1:] / sizes[:-1], 0.0)
    if not len(steps) or not steps.max() >= GAP:
        return [], ""
    low, high = sizes[int(np.argmax(steps)) :][:2]
    rows = int(np.sum(values <= low)) if values is not None else 0
    return [
        f"{column} jumps from {low:.4g} to {high:.4g} with no size between ({rows} of {len(raw[column])} rows lie "
        f"below): check that every row gives {column} in plain units, none in millions or billions. A law fitted to "
        "mixed units predicts nothing."
    ], f"; {column} jumps from {low:.4g} to {high:.4g}"


def scatter(law: ScalingLaw) -> list[str]:
    """Residuals of tens of per cent in most rows: the law describes other runs than these."""
    at = [law._columns[column] for column in law.columns.values()]
    with np.errstate(all="ignore"):
        off = np.abs(np.asarray(law.loss(*at, **law.params_), float) / law._columns["loss"] - 1)
    typical = float(np.median(off))
    if not typical > SCATTER:
        return []
    return [
        f"Half of the rows lie more than {100 * typical:.0f} % off the fit, where published runs lie "
        "within 5 %: do not use its predictions. Check the columns' units (all N, all D in plain numbers), what the "
        "loss is, that all rows are of one recipe, and that none of a large run which diverged."
    ]


def strays(law: ScalingLaw) -> list[str]:
    """A row that no run of a law is: off by a factor of `OFF`, or, in the half of larger compute, far above the law.

    A run of the largest size that diverged pulls the fit towards itself, so that little of a factor of two is left;
    small and short runs lie that far off a law which does not hold for them, and are no news.
    """
    at = [law._columns[column] for column in law.columns.values()]
    with np.errstate(all="ignore"):
        fit = np.asarray(law.loss(*at, **law.params_), float)
        off = np.log(law._columns["loss"] / fit)
        size = np.sum([np.log(np.maximum(v, 1e-300)) for v in at], 0)
    off = np.where(np.isfinite(off), off, 0.0)
    high = (size >= np.median(size)) & (off > max(np.log(HIGH), TYPICAL * float(np.median(np.abs(off)))))
    suspect = np.where(high | (np.abs(off) > np.log(OFF)), np.abs(off), 0.0)
    row = int(np.argmax(suspect))
    if not suspect[row] > 0:
        return []
    where = ", ".join(f"{name} = {v[row]:.4g}" for name, v in zip(law.variables, at, strict=True))
    check = "check its units, or drop it" if suspect[row] > np.log(OFF) else "if it diverged, drop it"
    if len(at) == 1:  # the rest of a run is not seen
        check += f"; runs must be alike in all but {law.variables[0]}"
    return [f"The run at {where} has loss {law._columns['loss'][row]:.4g} where the law says {fit[row]:.4g}: {check}."]


def rising(law: ScalingLaw) -> list[str]:
    """A variable with which the measured losses rise, the others equal, where the law can only fall.

    The law then gives it no effect, so its residuals show the rise: their regression on the logs of all variables has a
    positive slope by `RISE` standard errors there (as many observations as runs), and the law's own fall is smaller.
    """
    names = list(law.variables)
    columns = [law._columns[law.columns[name]] for name in names]
    logs = np.stack([np.log(v) for v in columns], 1)
    fit = np.log(np.asarray(law.loss(*columns, **law.params_), float))
    residual, run = np.log(law._columns["loss"]) - fit, run_index(law._columns)
    runs = int(run.max()) + 1
    design = np.column_stack([np.ones(len(fit)), logs - logs.mean(0)])
    free = runs - design.shape[1]
    if free < 2 or np.linalg.cond(design) > 1e6:  # D in proportion to N, say: no telling which of them it is
        return []
    inverse = np.linalg.inv(design.T @ design)
    slope = inverse @ design.T @ residual
    variance = np.sum((residual - design @ slope) ** 2) / len(fit) * runs / free
    spread = np.sqrt(np.diag(inverse) * variance * len(fit) / runs)
    middle, found = np.exp(np.median(logs, 0)), []
    for j, name in enumerate(names):
        low, high = (np.where(np.arange(len(names)) == j, end(columns[j]), middle) for end in (np.min, np.max))
        if not high[j] > low[j]:
            continue
        fall = float(np.log(law.loss(*low, **law.params_) / law.loss(*high, **law.params_)) / np.log(high[j] / low[j]))
        up = float(slope[j + 1])
        if up > max(RISE * spread[j + 1], fall, 0.0):
            found.append(
                f"The loss rises with {name} in these runs (by {100 * (up - fall) * np.log(2):.2g} % for twice the "
                f"{name}, the other variables equal) and this law can only fall: it gives {name} no effect, and says "
                f"nothing about larger {name}. Check for runs that diverged, a learning rate that does not transfer, "
                "or swapped columns."
            )
    return found


def far(law: ScalingLaw, beyond: Mapping[str, np.ndarray], below: Mapping[str, np.ndarray]) -> list[str]:
    """Predictions far outside the fitted range: by how many times, for each variable."""
    found = []
    for name, (smallest, largest) in law.range_.items():
        over, under = float(beyond[name].max()), float(below[name].max())
        if over > FAR:
            found.append(
                f"{name} lies {over:.3g} times beyond the largest fitted {name} ({largest:.4g}): at this distance "
                "the law's form matters more than its fit. Train a proxy closer to the target, or trust the "
                "interval and not the point."
            )
        if under > FAR:
            found.append(
                f"{name} lies {under:.3g} times below the smallest fitted {name} ({smallest:.4g}): power laws bend "
                "at small sizes and short runs, where the fit has no runs. Train a run there, or trust the "
                "interval and not the point."
            )
    return found


def _numbers(raw: Mapping[str, Any], name: str) -> np.ndarray | None:
    """A column as floats, 0 where it has no number; None without the column, or of another length than `loss`."""
    if name not in raw or len(raw[name]) != len(raw.get("loss", raw[name])):
        return None
    try:
        found = np.array(raw[name], float)
    except (TypeError, ValueError):
        found = np.array([_number(value) for value in raw[name]])
    return np.where(np.isfinite(found), found, 0.0) if found.ndim == 1 else None


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
