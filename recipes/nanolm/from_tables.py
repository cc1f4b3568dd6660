"""The claims that need no run: Table 4 from published losses, Eq. 1 from every config. Each returns a `Claim`."""

import warnings
from typing import Any

import figures
import numpy as np
from claims import Claim
from published import COST_RATIOS, FIGURE_3, TABLE_3, TABLE_4, TRIALS, PublishedSeries
from twins import HERE, TWINS

from hf_muscaling import ExperimentConfig, PowerLaw
from hf_muscaling.configuration import parse_experiment
from hf_muscaling.counting import cost_ratio
from hf_muscaling.errors import FitError
from hf_muscaling.experiment import experiment_step_flops
from hf_muscaling.laws.base import IdentificationWarning


def fit_published(series: PublishedSeries) -> dict[str, Any]:
    """Fit all but the largest model by least squares and predict that one; N in billions, losses in nats per token.

    `deviations` are the relative standard deviations of a, b and c, √diag(s²·(JᵀJ)⁻¹) over the value, with s² the
    residual variance at n − 3 degrees of freedom: the covariance that scipy's `curve_fit` reports.
    """
    N, loss = np.array(series.N), np.array(series.loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)  # the deviations say it
        law = PowerLaw(objective="least_squares").fit({"N": N[:-1], "loss": loss[:-1]})
    a, b, c = (law.params_[name] for name in "abc")
    x = N[:-1]
    residuals = a * x**b + c - loss[:-1]
    jacobian = np.stack([x**b, a * x**b * np.log(x), np.ones_like(x)], axis=1)
    covariance = np.linalg.inv(jacobian.T @ jacobian) * (residuals @ residuals) / (len(x) - 3)
    spread = np.sqrt(np.diag(covariance))
    predicted = float(a * N[-1] ** b + c)
    return {
        "name": series.name, "source": series.source, "N": list(series.N), "loss": list(series.loss),
        "params": law.params_, "predicted": predicted, "error": predicted / series.loss[-1] - 1,
        "stated": series.predicted, "residual": float(np.mean(np.abs(residuals) / loss[:-1])),
        "deviations": {n: float(s / abs(law.params_[n])) for n, s in zip("abc", spread, strict=True) if law.params_[n]},
    }  # fmt: skip


def published() -> Claim:
    """Table 4: the errors and the coefficients' covariance of μP series beside Cerebras-GPT and Pythia."""
    own, others = [fit_published(s) for s in TABLE_3], [fit_published(s) for s in TABLE_4]
    large = own[2:]  # the two series that extrapolate as far as the public families reach
    worst, least = max(abs(row["error"]) for row in large), min(abs(row["error"]) for row in others)
    firm = max(row["deviations"].get("b", np.inf) for row in large)
    loose = min(row["deviations"].get("b", np.inf) for row in others)
    table = "; ".join(f"{row['name']} {row['error']:+.2%}, b ± {row['deviations']['b']:.0%}" for row in own + others)
    return Claim(
        "published", "Table 4", "A μP series gives a law with smaller error and smaller variance of its coefficients "
        "than Cerebras-GPT and Pythia.",
        {
            "nanoLM's 32 and 64 layer series err less at their held-out largest model than either public family": worst
            < least,
            "the relative standard deviation of b is smaller for them, too, than for either": firm < loose,
        },
        f"Largest model held out: {table}.",
        {"rows": own + others, "figure_3": _with_and_without()},
        figures.published(own + others),
    )  # fmt: skip


def _with_and_without() -> dict[str, Any]:
    """The published losses behind Figure 3: the error at the largest width, with μP and without."""
    found: dict[str, Any] = {}
    for name, pair in FIGURE_3.items():
        for series in pair:
            try:
                row = fit_published(series)
                found.setdefault(name, {})[series.name] = {k: row[k] for k in ("predicted", "error", "residual")}
            except FitError as error:
                found.setdefault(name, {})[series.name] = {"why": str(error).split(":")[0]}
    return found


def cost() -> Claim:
    """Eq. 1: what grid and proxies cost, as a share of the target's FLOPs, for every config."""
    rows: dict[str, dict[str, float]] = {}
    for name in TWINS:
        config, _ = parse_experiment(["--config", str(HERE / "paper" / f"{name}.yaml")])
        rows[name] = {f"{TRIALS} trials": _ratio(config, TRIALS), "the config's grid": _ratio(config)}
        rows[name] |= {"stated in the paper": COST_RATIOS[name]} if name in COST_RATIOS else {}
    for name in TWINS:
        config, _ = parse_experiment(["--config", str(HERE / "twin" / f"{name}.yaml")])
        rows[f"{name}, twin"] = {"the config's grid": _ratio(config)}
    off = [abs(rows[name][f"{TRIALS} trials"] / stated - 1) for name, stated in COST_RATIOS.items()]
    told = "; ".join(f"{n} {rows[n][f'{TRIALS} trials']:.4f} (stated {stated})" for n, stated in COST_RATIOS.items())
    return Claim(
        "cost", "Eq. 1", "Grid and proxies cost 13 % (32 layers) and 14 % (64 layers) of training the target.",
        {"the formula gives the stated ratios within 5 %": max(off) < 0.05},
        f"The formula, {TRIALS} trials: {told}.",
        rows,
        figures.costs(rows),
    )  # fmt: skip


def _ratio(config: ExperimentConfig, trials: int | None = None) -> float:
    """Eq. 1 with nanoLM's formula for the FLOPs of a step; by default with the trials of the config's whole grid."""
    vocabulary = config.further_fields().get("vocab_size", config.vocab_size)
    cells = len(config.learning_rates) * len(config.init_stds) * len(config.output_multipliers)
    steps = {w: experiment_step_flops(config, w, vocabulary) for w in {*config.widths, config.base_width}}
    proxies = [steps[w] for w in config.widths if w != config.base_width]
    target = experiment_step_flops(config, config.target_width, vocabulary)
    return cost_ratio(steps[config.base_width], trials or cells, proxies, target)


FROM_TABLES = {f.__name__: f for f in (published, cost)}
