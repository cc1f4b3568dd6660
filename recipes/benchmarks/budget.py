"""What the planner's designs measure, against equal spacing for the same budget, where the target's loss is known.

    python recipes/benchmarks/budget.py pool FOLDER [--targets 192 256] [--objective bayes] [--repeats 100]
    python recipes/benchmarks/budget.py tables FILE.csv … [--budgets 0.1 0.2 0.3] [--menus 2]
    python recipes/benchmarks/budget.py finals FILE.csv … [--budgets 0.05 0.1 0.2] [--repeats 30]
    python recipes/benchmarks/budget.py nanolm [--trials 8]
    python recipes/benchmarks/budget.py stopping [--repeats 24]

`pool`: FOLDER is the output of `recipes/run_series.py … --seeds 20 --verify`. Each of `--targets` in turn is the
target, its loss the mean of its seeds; designs choose among the smaller widths with `LEAST_SEEDS` runs or more and draw
their seeds from these without replacement, again and again.

`tables`: tidy tables (see `extrapolation.py`) of runs at a constant learning rate. At every horizon D (factors of two)
the curves are interpolated in log D; each of the six largest sizes in turn is the target if it saw `--tokens` tokens a
parameter by then (long enough to be past its warm-up), designs choose among the smaller ones, one run each, at a cost
of N over the target's N. `--menus 2` offers two random halves of the smaller sizes beside all of them.

`finals`: tidy tables of runs at the end of their own schedules, any N and D. Again and again one of the ten costliest
runs is the target and 24 cheaper ones are the options; `plan_horizons` chooses among them for a law in N and D, beside
six runs equally spaced in log compute as far as the budget goes, and runs drawn at random until it is spent.

`nanolm`: the tables of nanoLM (Yao et al., arXiv:2304.06875) with 32 and 64 layers, one run a width; cost by the
paper's formula, Eq. 1 with `--trials` runs at base width. Its own design is all eight widths.

`stopping`: series simulated from the default assumptions follow `advise` with a tolerance of 2 % to its "stop": how
often the interval then holds the target, and what came beside what each advice had announced.

The planner knows nothing but its default assumptions; the designs are fixed before any loss is looked at. Half-widths
are those of 90 % intervals as plans count them (`hf_muscaling.budget.half_width`), in % of the loss. Under every pair
of designs stands the mean difference of their |error| with its standard error, targets (runs of one family and size,
at whatever horizon) taken as independent; of one pool, from a bootstrap of the seeds of the target.
"""

import argparse
import csv
import gzip
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from hf_muscaling import ChinchillaLaw, PowerLaw
from hf_muscaling.budget import (
    PowerBelief,
    ProxyOption,
    advise,
    equal_spacing,
    half_width,
    plan_budget,
    plan_horizons,
)
from hf_muscaling.errors import ConfigurationError, FitError

Counts = np.ndarray
MOST_SEEDS = 8
LEAST_SEEDS = 4
DRAWS = 12  # simulated series a plan scores a design by; 32 is the default

NANOLM_WIDTHS = (256, 384, 512, 640, 768, 896, 1024, 2048)
NANOLM = {  # layers, sequence; parameters (billions) and loss of each width; those of the target, width 8192
    "GPT 32 layers, 7k steps": (
        32, 512, (0.038, 0.076, 0.126, 0.189, 0.265, 0.353, 0.454, 1.714),
        (3.92, 3.76, 3.65, 3.59, 3.54, 3.49, 3.47, 3.45), 26.185, 3.41,
    ),
    "GPT 64 layers, 10k steps": (
        64, 2048, (0.077, 0.153, 0.254, 0.381, 0.532, 0.709, 0.911, 3.432),
        (3.656, 3.389, 3.298, 3.215, 3.198, 3.087, 3.080, 2.958), 52.385, 2.883,
    ),
}  # fmt: skip


def designs(
    options: Sequence[ProxyOption], target: float, budget: float, overhead: float, seeds: int
) -> dict[str, Counts]:
    """Return name → counts: the planner's and equal spacing with four and five sizes, as far and with as many seeds as
    the budget goes.
    """
    found = {}
    try:
        plan = plan_budget(options, target, budget, overhead=overhead, max_seeds=seeds, draws=DRAWS, curve=False)
        chosen = {option.N: n for option, n in plan.design.runs}
        found["planner"] = np.array([chosen.get(option.N, 0) for option in options])
    except ConfigurationError:
        return {}
    for sizes in (4, 5):
        one = equal_spacing(options, budget, sizes=sizes, overhead=overhead)
        if one is None:
            continue
        for n in range(seeds, 0, -1):
            counts = equal_spacing(options, budget, sizes=sizes, seeds=n, overhead=overhead)
            if counts is not None and ((counts > 0) == (one > 0)).all():
                found[f"equal spacing, {sizes}"] = counts
                break
    return found


class Outcome(NamedTuple):
    """What one design came to at one target; `unit` names the target's run, `half` is relative to the loss."""

    unit: object
    predicted: float
    loss: float
    half: float
    inside: bool
    cost: float

    @property
    def error(self) -> float:
        """Return |predicted / loss - 1|."""
        return abs(self.predicted / self.loss - 1)


def measured(law: PowerLaw, rows: dict, target: float, loss: float, cost: float, unit: object = None) -> Outcome:
    """Return the prediction at the target; the interval, the same for every objective, lies about that of "bayes"."""
    predicted = float(law.fit(rows).predict(N=target).loss)
    middle = predicted
    if law.objective != "bayes":
        law = PowerLaw(count=law.count).fit(rows)
        middle = float(law.predict(N=target).loss)
    half = half_width(law, {"N": target})
    return Outcome(unit, predicted, loss, half, abs(middle - loss) <= half * middle, cost)


def line(name: str, found: Sequence[Outcome], note: str = "") -> str:
    """Return a row of the table: errors, half-width, coverage."""
    error = np.array([o.error for o in found])
    return (
        f"  {name:26s} cost {100 * np.mean([o.cost for o in found]):6.2f} %  mean |error| {100 * error.mean():5.2f} %  "
        f"median {100 * np.median(error):5.2f} %  half-width {100 * np.median([o.half for o in found]):5.2f} %  inside "
        f"{100 * np.mean([o.inside for o in found]):3.0f} %  {note}"
    )


def paired(own: Sequence[Outcome], other: Sequence[Outcome]) -> str:
    """Return the mean difference of |error|, with a standard error that takes units as independent."""
    sums: dict[object, list[float]] = defaultdict(list)
    for a, b in zip(own, other, strict=True):
        sums[a.unit].append(a.error - b.error)
    mean = np.mean([d for values in sums.values() for d in values])
    off = np.array([sum(d - mean for d in values) for values in sums.values()])
    se = np.sqrt((off**2).sum() * len(off) / max(len(off) - 1, 1)) / len(own)
    wins = 100 * np.mean([a.error < b.error for a, b in zip(own, other, strict=True)])
    return (
        f"  difference {100 * mean:+.2f} ± {100 * se:.2f} % ({len(own)} pairs, {len(off)} targets, {wins:.0f} % wins)"
    )


def spent(options: Sequence[ProxyOption], counts: Counts, overhead: float) -> float:
    """Return the cost of a design."""
    return overhead + sum(o.cost * max(int(n) - o.paid, 0) for o, n in zip(options, counts, strict=True))


def pool(folder: Path, budgets: Sequence[float], repeats: int, widths: Sequence[int], objective: str) -> None:
    """Print what designs of each budget measure when their seeds are drawn from a pool of finished runs."""
    from hf_muscaling.budget.experiment import offer
    from hf_muscaling.budget.finished import finished_proxies
    from hf_muscaling.configuration import ExperimentConfig
    from hf_muscaling.planning import experiment_vocabulary

    record = json.loads((folder / "experiment.json").read_text())["config"]
    config = replace(ExperimentConfig(**record), objective=objective)
    losses: dict[int, list[float]] = defaultdict(list)
    for run in finished_proxies(replace(config, target_width=16 * config.target_width), folder):
        if run.loss is not None:
            losses[run.width].append(run.loss)
    print("Pool:", ", ".join(f"width {w} × {len(v)}" for w, v in sorted(losses.items())))
    every: dict[str, list[float]] = defaultdict(list)
    for top in widths or (config.target_width,):
        seeds, rng = np.array(losses[top]), np.random.default_rng(0)
        chance = seeds[rng.integers(len(seeds), size=(400, len(seeds)))].mean(1)  # what else its mean might have been
        menu = sorted(w for w, v in losses.items() if w < top and len(v) >= LEAST_SEEDS)
        offered = offer(replace(config, target_width=top), experiment_vocabulary(config), menu)
        options, most = offered.options, min(MOST_SEEDS, *(len(losses[w]) for w in menu))
        for budget in budgets:
            print(f"target width {top}, loss {seeds.mean():.4f} ± {seeds.std(ddof=1) / len(seeds) ** 0.5:.4f}, budget "
                  f"{100 * budget:g} %, up to {most} seeds of {menu}; grid {100 * offered.overhead:.1f} %")  # fmt: skip
            found: dict[str, list[Outcome]] = defaultdict(list)
            for name, counts in designs(options, offered.target, budget, offered.overhead, most).items():
                rng, cost = np.random.default_rng(0), spent(options, counts, offered.overhead)
                for _ in range(repeats):
                    drawn = [
                        rng.choice(losses[o.width], n, replace=False) for o, n in zip(options, counts, strict=True)
                    ]
                    rows = {"N": np.repeat([o.N for o in options], counts), "loss": np.concatenate(drawn)}
                    rows = as_read(offered.law, rows)
                    found[name].append(measured(offered.law, rows, offered.target, float(seeds.mean()), cost, top))
                print(line(name, found[name], shown(options, counts)), flush=True)
            for name in list(found)[1:]:
                at = [np.array([o.predicted for o in found[key]]) for key in ("planner", name)]
                by = [np.mean(abs(at[0] / c - 1) - abs(at[1] / c - 1)) for c in chance]
                mean = np.mean([a.error - b.error for a, b in zip(found["planner"], found[name], strict=True)])
                print(f"  difference to {name}: {100 * mean:+.2f} ± {100 * np.std(by):.2f} % of the loss")
                every[name].append(float(mean))
    for name, differences in every.items():
        print(f"over {len(differences)} targets and budgets: difference to {name} {100 * np.mean(differences):+.2f} %, "
              f"smaller at {sum(d < 0 for d in differences)}, larger at {sum(d > 0 for d in differences)}")  # fmt: skip


def as_read(law: PowerLaw, rows: dict) -> dict:
    """Return rows with N under the name that the law reads."""
    return {law.columns["N"]: rows["N"], "loss": rows["loss"]}


def shown(options: Sequence[ProxyOption], counts: Counts) -> str:
    """Return a design in short: 32×3 48×1."""
    return " ".join(f"{o.width}×{n}" for o, n in zip(options, counts, strict=True) if n)


def slices(paths: Sequence[Path]) -> Iterator[tuple[str, float, np.ndarray, np.ndarray]]:
    """Yield name, tokens, sizes and losses at equal horizons of every family of curves."""
    families: dict[str, dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        text = path.read_bytes()
        for row in csv.DictReader((gzip.decompress(text) if path.suffix == ".gz" else text).decode().splitlines()):
            if row.get("kind") == "intermediate" and row.get("tokens") and row.get("params"):
                families[row["family"]][float(row["params"])].append((float(row["tokens"]), float(row["loss"])))
    for family, curves in sorted(families.items()):
        sorted_curves = {n: np.array(sorted(rows)) for n, rows in sorted(curves.items())}
        last = max(c[-1, 0] for c in sorted_curves.values())
        for halvings in range(1, 8):
            d = last / 2**halvings
            there = {n: c for n, c in sorted_curves.items() if c[0, 0] <= d <= c[-1, 0]}
            if len(there) >= 8:
                at = [np.exp(np.interp(np.log(d), np.log(c[:, 0]), np.log(c[:, 1]))) for c in there.values()]
                yield f"{family} at {d:.2g} tokens", d, np.array(list(there)), np.array(at)


@cache
def table_designs(sizes: tuple[float, ...], target: float, budget: float) -> dict[str, Counts]:
    """Return the designs for single runs of so many sizes."""
    options = [ProxyOption(int(np.sqrt(n)), n, n / target) for n in sizes]
    return designs(options, target, budget, 0.0, 1)


def tables(paths: Sequence[Path], budgets: Sequence[float], tokens: float, menus: int) -> None:
    """Print what designs of each budget measure on public curves at equal horizons."""
    found: dict[tuple[float, str], dict[tuple[str, float, int], Outcome]] = defaultdict(dict)
    for name, horizon, sizes, losses in slices(paths):
        print(f"{name}: {len(sizes)} sizes, {sizes[0]:.3g} to {sizes[-1]:.3g}", flush=True)
        for target, loss in zip(sizes[-6:], losses[-6:], strict=True):
            if horizon < tokens * target:
                continue
            unit, smaller = (name.split(" at ")[0], float(target)), np.flatnonzero(sizes < target)
            for menu in range(menus + 1):
                rng = np.random.default_rng((menu, int(target)))
                kept = np.sort(rng.permutation(smaller)[: max(len(smaller) // 2, 5)]) if menu else smaller
                for budget in budgets:
                    for design, counts in table_designs(tuple(sizes[kept]), float(target), budget).items():
                        rows = {"N": sizes[kept][counts > 0], "loss": losses[kept][counts > 0]}
                        cost = float(rows["N"].sum() / target)
                        try:
                            outcome = measured(PowerLaw(), rows, float(target), float(loss), cost, unit)
                        except FitError:  # the loss does not fall over these sizes: nothing learnt
                            outcome = Outcome(unit, 2 * loss, loss, 1.0, True, cost)
                        found[budget, design][name, target, menu] = outcome
    for budget in budgets:
        for name in [name for b, name in found if b == budget and name != "planner"]:
            own, other = found[budget, "planner"], found[budget, name]
            shared = sorted(set(own) & set(other))
            print(f"budget {100 * budget:g} %: {len(shared)} targets and menus for which both are affordable")
            pair = [[found[budget, which][key] for key in shared] for which in ("planner", name)]
            print(line("planner", pair[0]), line(name, pair[1]), paired(*pair), sep="\n", flush=True)


def finals(paths: Sequence[Path], budgets: Sequence[float], repeats: int) -> None:
    """Print what designs of widths and steps measure on public runs at the end of their schedules."""
    for path in paths:
        families: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        with open(path, newline="") as handle:
            for row in csv.DictReader(handle):
                if row["kind"] == "final" and row["params"] and "outlier" not in row.get("note", ""):
                    families[row["family"]].append((float(row["params"]), float(row["tokens"]), float(row["loss"])))
        for family, rows in families.items():
            runs = np.array(sorted(rows, key=lambda r: r[0] * r[1]))
            if len(runs) >= 40:
                for budget in budgets:
                    print(f"{family}, {len(runs)} runs, budget {100 * budget:g} %")
                    resample(runs, budget, repeats)


def resample(runs: np.ndarray, budget: float, repeats: int) -> None:
    """Print one budget of `finals`."""
    rng = np.random.default_rng(0)
    found: dict[str, dict[int, Outcome]] = defaultdict(dict)
    for repeat in range(repeats):
        target = runs[len(runs) - 1 - rng.integers(10)]
        compute = runs[:, 0] * runs[:, 1] / (target[0] * target[1])
        cheaper = np.flatnonzero((compute <= budget) & (runs[:, 0] < target[0]))
        menu = np.sort(rng.choice(cheaper, min(24, len(cheaper)), replace=False))
        options = [ProxyOption(k, runs[k, 0], compute[k], D=runs[k, 1]) for k in menu]
        try:
            plan = plan_horizons(options, (target[0], target[1]), budget, max_seeds=1, draws=2)
        except ConfigurationError:
            continue
        chosen = {"planner": [option.width for option, _ in plan.design.runs]}
        for top in menu[::-1]:
            ladder = np.geomspace(compute[menu[0]], compute[top], 6)
            spaced = {int(menu[np.abs(np.log(compute[menu] / c)).argmin()]) for c in ladder}
            if len(spaced) >= 5 and compute[list(spaced)].sum() <= budget:
                chosen["equal spacing, 6"] = sorted(spaced)
                break
        order = rng.permutation(menu)
        chosen["random"] = list(order[np.cumsum(compute[order]) <= budget])
        try:
            laws = {name: ChinchillaLaw().fit(dict(zip(("N", "D", "loss"), runs[rows].T, strict=True)))
                    for name, rows in chosen.items()}  # fmt: skip
        except FitError:
            continue
        for name, law in laws.items():
            p = law.predict(N=target[0], D=target[1])
            half, cost = (p.high - p.low) / (2 * p.loss), float(compute[chosen[name]].sum())
            inside = bool(p.low <= target[2] <= p.high)
            found[name][repeat] = Outcome(tuple(target), float(p.loss), target[2], half, inside, cost)
    for name, results in found.items():
        print(line(name, list(results.values()), f"n = {len(results)}"), flush=True)
        if name != "planner":
            shared = sorted(set(results) & set(found["planner"]))
            print(paired([found["planner"][k] for k in shared], [results[k] for k in shared]))


def nanolm(trials: int, budgets: Sequence[float]) -> None:
    """Print what subsets of nanoLM's widths reach, and at what cost."""
    from hf_muscaling.counting import step_flops

    for name, (layers, sequence, sizes, losses, target, loss) in NANOLM.items():
        whole = step_flops(layers, 8192, sequence, 100256, 512)
        cost = [step_flops(layers, w, sequence, 100256, 512) / whole for w in NANOLM_WIDTHS]
        options = [
            ProxyOption(w, 1e9 * n, c, paid=int(w == 256)) for w, n, c in zip(NANOLM_WIDTHS, sizes, cost, strict=True)
        ]
        overhead = trials * cost[0]
        print(f"{name}: {trials} trials at width 256 cost {100 * overhead:.2f} %")
        tried = {"nanoLM: all widths": np.ones(8, int)}
        for budget in budgets:
            for design, counts in designs(options, 1e9 * target, budget, overhead, 1).items():
                tried[f"{design}, {100 * budget:g} %"] = counts
        for design, counts in tried.items():
            rows = {"N": 1e9 * np.array(sizes)[counts > 0], "loss": np.array(losses)[counts > 0]}
            for objective in ("least_squares", "bayes"):
                found = [measured(PowerLaw(objective), rows, 1e9 * target, loss, spent(options, counts, overhead))]
                words = line(design, found, shown(options, counts))
                print(words, objective, flush=True)


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
    parser.add_argument("part", choices=["pool", "tables", "finals", "nanolm", "stopping"])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--budgets", type=float, nargs="+", help="shares of the target's FLOPs")
    parser.add_argument("--repeats", type=int, help="draws of the pool (100), targets of finals (30), series (24)")
    parser.add_argument("--tokens", type=float, default=2.0, help="least tokens a parameter of a target")
    parser.add_argument("--menus", type=int, default=2, help="random halves of the sizes offered beside all (tables)")
    parser.add_argument("--targets", type=int, nargs="+", default=(), help="target widths (pool)")
    parser.add_argument("--objective", default="bayes", help="of the law that predicts (pool)")
    parser.add_argument("--trials", type=int, default=8, help="grid trials of nanoLM")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.part not in ("nanolm", "stopping") and not args.paths:
        parser.error(f"{args.part} needs a path")
    if args.part == "pool":
        budgets, repeats = args.budgets or (0.4, 0.6, 0.8, 1.2), args.repeats or 100
        pool(args.paths[0], budgets, repeats, args.targets, args.objective)
    elif args.part == "tables":
        tables(args.paths, args.budgets or (0.1, 0.2, 0.3), args.tokens, args.menus)
    elif args.part == "finals":
        finals(args.paths, args.budgets or (0.05, 0.1, 0.2), args.repeats or 30)
    elif args.part == "stopping":
        stopping(args.repeats or 24)
    else:
        nanolm(args.trials, args.budgets or (0.05, 0.08, 0.11, 0.15))


if __name__ == "__main__":
    main()
