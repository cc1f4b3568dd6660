"""Planned designs and advice on simulated series, where the truth is known and may leave the law.

    python recipes/benchmarks/budget_simulated.py truths [--repeats 64]
    python recipes/benchmarks/budget_simulated.py stopping [--repeats 24]

`truths`: curves, noise and misfit are drawn from the planner's default assumptions, for two targets and three budgets
each; the sizes then leave the curve in one of the ways of `TRUTHS`. Mean |error| at the target, in % of the loss, of
the planner's design and of equal spacing with four and five sizes for the same budget.

`stopping`: series simulated from the default assumptions follow `advise` with a tolerance of 2 % to its "stop": how
often the interval then holds the target, and what came beside what each advice had announced.
"""

import argparse
import os
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from budget import as_read, designs
from outcomes import line, measured

from hf_muscaling import PowerLaw
from hf_muscaling.budget import PowerBelief, ProxyOption, advise
from hf_muscaling.errors import FitError

MENUS = {  # widths on offer, the target's, the grid's cost, budgets
    "small": ((32, 48, 64, 80, 96, 128, 160, 192, 256), 512, 0.03, (0.12, 0.2, 0.35)),
    "like nanoLM's": (
        (256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 2560, 3072), 8192, 0.02, (0.06, 0.1, 0.2),
    ),
}  # fmt: skip
Departure = Callable[[PowerBelief, np.ndarray, np.random.Generator], np.ndarray]


def independent(belief: PowerBelief, log: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every size strays by itself, the further the smaller it is; the target (last) as far beyond the others."""
    away = np.append(log[-2] - log[:-1], log[-1] - log[-2])
    return (belief.sigma * np.sqrt(belief.rho))[:, None] * away * rng.normal(size=(belief.draws, len(log)))


def smooth(belief: PowerBelief, log: np.ndarray, rng: np.random.Generator, scale: float = 3.0) -> np.ndarray:
    """An integrated Wiener process down from the target: neighbouring sizes stray together."""
    away = log[-1] - log[:-1]
    near, far = np.minimum(away[:, None], away), np.maximum(away[:, None], away)
    root = np.linalg.cholesky(1.5 * (0.5 * near**2 * far - near**3 / 6) + 1e-12 * np.eye(len(away)))
    strays = rng.normal(size=(belief.draws, len(away))) @ root.T
    return scale * (belief.sigma * np.sqrt(belief.rho))[:, None] * np.pad(strays, ((0, 0), (0, 1)))


def steep(belief: PowerBelief, log: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Small models are worse than the law of the large ones: a second, steeper power."""
    fall = -2.5 * np.abs(belief.b)[:, None] * (log - log[0])
    return 0.3 * belief.a[:, None] * np.exp(fall) / belief.loss({"N": np.exp(log)})


def erratic(belief: PowerBelief, log: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every size, the largest too, strays by 0.3 %, which no seed averages out."""
    return 3e-3 * rng.normal(size=(belief.draws, len(log)))


TRUTHS: dict[str, Departure] = {
    "independent": independent, "smooth": smooth, "steep at small sizes": steep, "erratic": erratic,
}  # fmt: skip


def truths(repeats: int) -> None:
    """Print the mean |error| of designs under every truth."""
    totals: dict[str, list[float]] = {}
    for menu, (widths, top, overhead, budgets) in MENUS.items():
        sizes, target = 24.0 * np.array(widths, float) ** 2, 24.0 * top**2
        options = [ProxyOption(w, n, n / target) for w, n in zip(widths, sizes, strict=True)]
        belief, log = PowerBelief.assumed(sizes[0], draws=repeats), np.log(np.append(sizes, target))
        for budget in budgets:
            chosen = designs(options, target, budget, overhead, 8)
            for truth, departure in TRUTHS.items():
                curves = belief.loss({"N": np.exp(log)}) * (1 + departure(belief, log, np.random.default_rng(5)))
                error = {}
                for name, counts in chosen.items():
                    rng, misses = np.random.default_rng(1), []
                    for curve, sigma in zip(curves, belief.sigma, strict=True):
                        noise = rng.normal(size=(len(sizes), 8))  # the same runs in every design
                        runs = [curve[j] * (1 + sigma * noise[j, :n]) for j, n in enumerate(counts)]
                        rows = {"N": np.repeat(sizes, counts), "loss": np.concatenate(runs)}
                        try:
                            predicted = float(PowerLaw.loss(target, **PowerLaw().fit(rows).params_))
                        except FitError:  # the loss does not fall over these sizes
                            predicted = float(rows["loss"][-1])
                        misses.append(abs(predicted / curve[-1] - 1))
                    error[name] = float(np.mean(misses))
                    totals.setdefault(f"{truth}: {name}", []).append(error[name])
                words = ", ".join(f"{name} {100 * e:.2f}" for name, e in error.items())
                print(f"{menu}, budget {100 * budget:g} %, {truth}: {words}", flush=True)
    for name, errors in totals.items():
        print(
            f"geometric mean over {len(errors)} menus and budgets, {name} {100 * np.exp(np.mean(np.log(errors))):.2f} %"
        )


def stopping(repeats: int) -> None:
    """Print how series fare that stop when the advice says so."""
    widths, top = (32, 48, 64, 96, 128, 192, 256), 512
    sizes, target = np.array([24.0 * w**2 for w in widths]), 24.0 * top**2
    options = [ProxyOption(w, n, (w / top) ** 2) for w, n in zip(widths, sizes, strict=True)]
    belief, rng = PowerBelief.assumed(sizes[0], draws=repeats), np.random.default_rng(7)
    curves, ends = belief.loss({"N": sizes}), belief.loss({"N": np.array([target])})[:, 0]
    away, ratios, found = np.log(target / sizes[-1]), [], []
    for m in range(repeats):
        sigma, stray = belief.sigma[m], belief.sigma[m] * np.sqrt(belief.rho[m])
        means = curves[m] * (1 + stray * np.log(sizes[-1] / sizes) * rng.normal(size=len(sizes)))
        spread = np.sqrt(sigma**2 + (stray * away) ** 2 + (belief.tau[m] * away**2) ** 2)
        loss, rows, announced = ends[m] * np.exp(spread * rng.normal()), [], None
        advice = advise(rows, options, target, 0.6, tolerance=0.02, draws=8)
        while advice.add is not None and len(rows) < 30:
            j, announced = widths.index(advice.add.width), advice.after
            rows.append({"N": sizes[j], "loss": means[j] * (1 + sigma * rng.normal())})
            advice = advise(rows, options, target, 0.6, tolerance=0.02, draws=8)
            if announced is not None and advice.now is not None:
                ratios.append(advice.now / announced)
        if advice.reason == "tight":
            found.append(measured(PowerLaw(), as_read(PowerLaw(), columns(rows)), target, loss, advice.spent))
    low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
    print(line(f"tight: {len(found)} of {repeats}", found))
    print(f"  what came over what was announced: median {middle:.2f}, 80 % between {low:.2f} and {high:.2f}")


def columns(rows: list[dict[str, float]]) -> dict:
    """Return rows as columns."""
    return {name: np.array([row[name] for row in rows]) for name in ("N", "loss")}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["truths", "stopping"])
    parser.add_argument("--repeats", type=int, help="series of each truth (64) or followed (24)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.part == "truths":
        truths(args.repeats or 64)
    else:
        stopping(args.repeats or 24)


if __name__ == "__main__":
    main()
