"""How long fitting L(N, D) = E + A/N^alpha + B/D^beta takes, beside two other ways to do it, in one run.

    python recipes/benchmarks/fitting.py [--points runs.csv] [--share 0.02] [--bootstraps 4000]

1. `ChinchillaLaw(objective="huber")`: one global fit, and bootstraps.
2. The procedure of the Chinchilla replication (Besiroglu et al. 2024) written out: L-BFGS from each of 4500 starts,
   then one L-BFGS a bootstrap, with exact gradients and tolerances tight enough to reach the same objective. Only a
   `--share` of the starts and bootstraps is run, and the time is extrapolated.
3. The peer package `chinchilla`, if it is installed: its own `fit` from a grid of 2^5 starts, extrapolated to the 5^5
   of its README. Its default objective differs, so only its time is compared.

`--points` is a CSV with columns N, D, loss (or params, tokens, loss; rows whose `note` is `epoch_outlier` are left
out). Without it, 240 points are drawn from the published law with 0.5 % noise. Ratios are of CPU time on one core.
"""

import argparse
import csv
import importlib.util
import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.optimize import minimize

from hf_muscaling.laws import ChinchillaLaw

DELTA = 1e-3
TIGHT = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000, "maxfun": 20000}
GRID = [
    np.arange(0, 30, 5),
    np.arange(0, 30, 5),
    np.arange(-1, 1.5, 0.5),
    np.arange(0, 2.5, 0.5),
    np.arange(0, 2.5, 0.5),
]


def read_points(path: str | None) -> dict[str, np.ndarray]:
    """Return the columns N, D, loss of a CSV, or of 240 synthetic points."""
    if path is None:
        rng = np.random.default_rng(0)
        n, c = (
            np.exp(rng.uniform(np.log(6e7), np.log(1.6e10), 240)),
            np.exp(rng.uniform(np.log(2e18), np.log(1e22), 240)),
        )
        d = np.clip(c / (6 * n), 8e8, 3e11)
        loss = (1.8172 + 477.83 / n**0.3473 + 2143.4 / d**0.3672) * np.exp(0.005 * rng.normal(size=240))
        return {"N": n, "D": d, "loss": loss}
    with open(path, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("note") != "epoch_outlier"]
    names = {"N": ("N", "params"), "D": ("D", "tokens"), "loss": ("loss",)}
    columns = {name: next(key for key in keys if key in rows[0]) for name, keys in names.items()}
    return {name: np.array([float(row[key]) for row in rows]) for name, key in columns.items()}


def objective(theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray, weight: np.ndarray):
    """Return sum of Huber(log L_fit - log L) and its gradient in the replication's (a, b, e, alpha, beta)."""
    a, b, e, alpha, beta = theta
    terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
    top = terms.max(0)
    share = np.exp(terms - top)
    total = share.sum(0)
    share /= total
    r = top + np.log(total) - log_loss
    slope = np.clip(r, -DELTA, DELTA) * weight
    value = (np.where(np.abs(r) <= DELTA, 0.5 * r * r, DELTA * (np.abs(r) - 0.5 * DELTA)) * weight).sum()
    by_term = share * slope
    return value, np.array([*by_term.sum(1), -(by_term[0] @ log_n), -(by_term[1] @ log_d)])


@dataclass(frozen=True)
class Seconds:
    """A duration, of the processor and of the clock on the wall."""

    cpu: float
    wall: float

    @classmethod
    def of(cls, work: Callable[[], object], times: int = 1) -> "Seconds":
        """Return the median of several runs."""
        taken = []
        for _ in range(times):
            begun = time.process_time(), time.perf_counter()
            work()
            taken.append((time.process_time() - begun[0], time.perf_counter() - begun[1]))
        return cls(*(float(v) for v in np.median(taken, 0)))

    def __mul__(self, factor: float) -> "Seconds":
        return Seconds(self.cpu * factor, self.wall * factor)

    def __str__(self) -> str:
        small = self.cpu < 0.1
        cpu, wall = (f"{1e3 * v:.2f} ms" if small else f"{v:.3g} s" for v in (self.cpu, self.wall))
        return f"{cpu} CPU ({wall} wall)"

    def over(self, other: "Seconds") -> str:
        """Return how many times longer than another."""
        return f"{self.cpu / other.cpu:,.0f} × CPU ({self.wall / other.wall:,.0f} × wall)"


def multi_start(points: dict[str, np.ndarray], share: float, bootstraps: int) -> tuple[Seconds, Seconds, float, int]:
    """Return the extrapolated time of the fit and of the bootstraps, the best objective, the starts run."""
    log = [np.log(points[name]) for name in ("N", "D", "loss")]
    one = np.ones_like(log[0])
    starts = list(itertools.product(*GRID))
    tried = starts[:: max(int(1 / share), 1)]
    ends = []

    def descend(start: np.ndarray, weight: np.ndarray) -> None:
        ends.append(minimize(objective, start, args=(*log, weight), jac=True, method="L-BFGS-B", options=TIGHT))

    fit = Seconds.of(lambda: [descend(start, one) for start in tried]) * (len(starts) / len(tried))
    best = min(ends, key=lambda end: end.fun if np.isfinite(end.fun) else np.inf)
    rng, few = np.random.default_rng(0), max(int(bootstraps * share), 5)
    weights = rng.multinomial(len(one), one / len(one), few).astype(float)
    refits = Seconds.of(lambda: [descend(best.x, weight) for weight in weights]) * (bootstraps / few)
    return fit, refits, float(best.fun), len(tried)


def peer(points: dict[str, np.ndarray]) -> Seconds | None:
    """Return the extrapolated time of the package `chinchilla`, or None where it is not installed."""
    if importlib.util.find_spec("chinchilla") is None:
        return None
    from chinchilla import Chinchilla

    grid = {"E": (1.1, 2.0), "A": (200, 1000), "B": (200, 3000), "alpha": (0.1, 0.5), "beta": (0.1, 0.5)}
    with tempfile.TemporaryDirectory() as folder:
        fitter = Chinchilla(
            folder,
            param_grid={name: np.array(ends, float) for name, ends in grid.items()},
            seed_ranges={"C": (1e18, 1e22), "N_to_D": (1, 1000)},
            log_level=50,
        )
        for n, d, loss in zip(points["N"], points["D"], points["loss"], strict=True):
            fitter.append(N=float(n), D=float(d), loss=float(loss))
        return Seconds.of(lambda: fitter.fit(parallel=False)) * (5**5 / 2**5)


def main() -> None:
    """Time all three and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", help="CSV of runs")
    parser.add_argument("--share", type=float, default=0.02, help="share of starts and bootstraps that is run")
    parser.add_argument("--bootstraps", type=int, default=4000)
    args = parser.parse_args()
    points = read_points(args.points)
    warnings.simplefilter("ignore")
    ours = {}
    for name in ("huber", "bayes"):
        law = ChinchillaLaw(name).fit(points)
        fit, resampling = (
            Seconds.of(partial(law.fit, points), 21),
            Seconds.of(partial(law.bootstrap, args.bootstraps), 3),
        )
        ours[name] = fit, resampling
        print(f"ChinchillaLaw({name!r}), {law.n_runs_} points: fit {fit} (median of 21), {args.bootstraps} bootstraps "
              f"{resampling} (median of 3), objective {law.objective_value_:.13g}", flush=True)  # fmt: skip
    fit, resampling = ours["huber"]
    other_fit, other_resampling, value, tried = multi_start(points, args.share, args.bootstraps)
    print(f"L-BFGS from 4500 starts ({tried} run, extrapolated): fit {other_fit}, bootstraps {other_resampling}, "
          f"objective {value:.13g}", flush=True)  # fmt: skip
    print(f"ratios to 'huber': fit {other_fit.over(fit)}, bootstraps {other_resampling.over(resampling)}", flush=True)
    seconds = peer(points)
    if seconds is None:
        print("package chinchilla: not installed")
    else:
        print(f"package chinchilla, 3125 starts (32 run, extrapolated): {seconds}, {seconds.over(fit)}")


if __name__ == "__main__":
    main()
