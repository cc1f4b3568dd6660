"""What the planner's designs measure, against equal spacing for the same budget, where the target's loss is known.

    python recipes/benchmarks/budget.py pool FOLDER [--targets 192 256] [--objective bayes] [--repeats 100]
    python recipes/benchmarks/budget.py tables FILE.csv … [--budgets 0.1 0.2 0.3] [--menus 2]
    python recipes/benchmarks/budget.py finals FILE.csv … [--budgets 0.05 0.1 0.2] [--repeats 30]
    python recipes/benchmarks/budget.py nanolm [--trials 8]
    python recipes/benchmarks/budget.py expected [--trials 8]

`pool`: FOLDER is the output of `recipes/run_series.py … --seeds 20 --verify`. Each of `--targets` in turn is the
target, its loss the mean of its seeds; designs choose among the smaller widths with `--least` runs or more and draw
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

`expected`: what plans for its 64 layers may expect with all widths on offer, and with shorter runs as well.

The planner knows nothing but its default assumptions; the designs are fixed before any loss is looked at. Half-widths
are those of 90 % intervals as plans count them (`hf_muscaling.budget.half_width`), in % of the loss. Under every pair
of designs stands the mean difference of their |error| with its standard error, targets (runs of one family and size,
at whatever horizon) taken as independent; of one pool, from a bootstrap of all its seeds, the target's too.
"""

import argparse
import csv
import gzip
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from outcomes import Outcome, line, measured, paired

from hf_muscaling import ChinchillaLaw, PowerLaw
from hf_muscaling.budget import (
    ProxyOption,
    equal_spacing,
    plan_budget,
    plan_horizons,
)
from hf_muscaling.budget.experiment import Offer
from hf_muscaling.errors import ConfigurationError, FitError

Counts = np.ndarray
MOST_SEEDS = 8
REPLICATES = 24  # bootstrap replicates of a pool
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
    """Return name → counts: the planner's, and equal spacing with four and five sizes as far as the budget goes."""
    found = {}
    try:
        plan = plan_budget(options, target, budget, overhead=overhead, max_seeds=seeds, draws=DRAWS, curve=False)
        chosen = {option.N: n for option, n in plan.design.runs}
        found["planner"] = np.array([chosen.get(option.N, 0) for option in options])
    except ConfigurationError:
        return {}
    for sizes in (4, 5):
        counts = equal_spacing(options, budget, sizes=sizes, overhead=overhead)
        if counts is None:
            continue
        ladder = np.flatnonzero(counts)
        for most in range(1, seeds + 1):  # what is left buys more seeds, evenly, of larger sizes first
            for j in ladder[::-1]:
                more = counts + (np.arange(len(options)) == j)
                if counts[j] < most and spent(options, more, overhead) <= budget * (1 + 1e-9):
                    counts = more
        found[f"equal spacing, {sizes}"] = counts
    return found


def spent(options: Sequence[ProxyOption], counts: Counts, overhead: float) -> float:
    """Return the cost of a design."""
    return overhead + sum(o.cost * max(int(n) - o.paid, 0) for o, n in zip(options, counts, strict=True))


def pool(
    folder: Path, budgets: Sequence[float], repeats: int, widths: Sequence[int], objective: str, least: int
) -> None:
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
        seeds = np.array(losses[top])
        menu = sorted(w for w, v in losses.items() if w < top and len(v) >= least)
        offered = offer(replace(config, target_width=top), experiment_vocabulary(config), menu)
        options, most = offered.options, min(MOST_SEEDS, *(len(losses[w]) for w in menu))
        for budget in budgets:
            error = seeds.std(ddof=min(len(seeds) - 1, 1)) / len(seeds) ** 0.5
            print(f"target width {top}, loss {seeds.mean():.4f} ± {error:.4f}, budget {100 * budget:g} %, up to {most} "
                  f"seeds of {menu}; grid {100 * offered.overhead:.1f} %")  # fmt: skip
            chosen = designs(options, offered.target, budget, offered.overhead, most)
            found: dict[str, list[Outcome]] = defaultdict(list)
            errors: dict[str, np.ndarray] = {}
            for name, counts in chosen.items():
                rng, cost = np.random.default_rng(0), spent(options, counts, offered.overhead)
                for _ in range(repeats):
                    rows = drawn(offered, counts, losses, rng)
                    found[name].append(measured(offered.law, rows, offered.target, float(seeds.mean()), cost, top))
                print(line(name, found[name], shown(options, counts)), flush=True)
                errors[name] = np.array([again(offered, counts, losses, seeds, k) for k in range(REPLICATES)])
            for name in list(found)[1:]:
                mean = np.mean([a.error - b.error for a, b in zip(found["planner"], found[name], strict=True)])
                error = np.std(errors["planner"] - errors[name], ddof=1)
                print(f"  difference to {name}: {100 * mean:+.2f} ± {100 * error:.2f} % of the loss")
                every[name].append(float(mean))
    for name, differences in every.items():
        print(f"over {len(differences)} targets and budgets: difference to {name} {100 * np.mean(differences):+.2f} %, "
              f"smaller at {sum(d < 0 for d in differences)}, larger at {sum(d > 0 for d in differences)}")  # fmt: skip


def drawn(offered: Offer, counts: Counts, losses: Mapping[int, Sequence[float]], rng: np.random.Generator) -> dict:
    """Return the rows of a design whose seeds are drawn from the pool."""
    taken = [rng.choice(losses[o.width], n, replace=False) for o, n in zip(offered.options, counts, strict=True)]
    rows = {"N": np.repeat([o.N for o in offered.options], counts), "loss": np.concatenate(taken)}
    return as_read(offered.law, rows)


def again(
    offered: Offer, counts: Counts, losses: Mapping[int, Sequence[float]], seeds: np.ndarray, replicate: int
) -> float:
    """Return the design's mean |error| in a bootstrap replicate of the pool and of the target's seeds."""
    rng = np.random.default_rng((replicate, 1))
    resampled = {w: rng.choice(losses[w], len(losses[w])) for w in sorted(losses)}
    loss = rng.choice(seeds, len(seeds)).mean()
    fits = (offered.law.fit(drawn(offered, counts, resampled, rng)).params_ for _ in range(DRAWS))
    return float(np.mean([abs(PowerLaw.loss(offered.target, **params) / loss - 1) for params in fits]))


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


def expected(trials: int, budgets: Sequence[float]) -> None:
    """Print what plans with every width on offer may expect for nanoLM's 64 layers, of L(N) and of L(N, D)."""
    from hf_muscaling.counting import step_flops

    layers, sequence, *_ = NANOLM["GPT 64 layers, 10k steps"]
    size = {w: 12.0 * layers * w**2 + 100256.0 * w for w in (*NANOLM_WIDTHS, 1280, 1536, 2560, 3072, 4096, 8192)}
    cost = {w: step_flops(layers, w, sequence, 100256, 512) for w in size}
    tokens, target = 1e4 * 512 * sequence, size.pop(8192)
    whole = [
        ProxyOption(w, n, cost[w] / cost[8192], D=tokens, steps=10000, paid=int(w == 256)) for w, n in size.items()
    ]
    shorter = [
        replace(o, D=tokens * s, steps=int(1e4 * s), cost=o.cost * s, paid=0) for o in whole for s in (0.1, 0.25, 0.5)
    ]
    for budget in budgets:
        overhead = trials * cost[256] / cost[8192]
        print(f"budget {100 * budget:g} %, grid {100 * overhead:.2f} %")
        for name, plan in (
            ("L(N)", plan_budget([replace(o, D=None) for o in whole], target, budget, overhead=overhead, curve=False)),
            ("L(N, D)", plan_horizons(whole + shorter, (target, tokens), budget, overhead=overhead, draws=4)),
        ):
            print(f"  {name}: {100 * plan.design.cost:.2f} %, {plan.design.interval}: {plan.design}", flush=True)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["pool", "tables", "finals", "nanolm", "expected"])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--budgets", type=float, nargs="+", help="shares of the target's FLOPs")
    parser.add_argument("--repeats", type=int, help="draws of the pool (100), targets of finals (30)")
    parser.add_argument("--tokens", type=float, default=2.0, help="least tokens a parameter of a target")
    parser.add_argument("--menus", type=int, default=2, help="random halves of the sizes offered beside all (tables)")
    parser.add_argument("--targets", type=int, nargs="+", default=(), help="target widths (pool)")
    parser.add_argument("--least", type=int, default=4, help="runs of a width that is offered (pool)")
    parser.add_argument("--objective", default="bayes", help="of the law that predicts (pool)")
    parser.add_argument("--trials", type=int, default=8, help="grid trials of nanoLM")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.part not in ("nanolm", "expected") and not args.paths:
        parser.error(f"{args.part} needs a path")
    if args.part == "pool":
        budgets, repeats = args.budgets or (0.4, 0.6, 0.8, 1.2), args.repeats or 100
        pool(args.paths[0], budgets, repeats, args.targets, args.objective, args.least)
    elif args.part == "tables":
        tables(args.paths, args.budgets or (0.1, 0.2, 0.3), args.tokens, args.menus)
    elif args.part == "finals":
        finals(args.paths, args.budgets or (0.05, 0.1, 0.2), args.repeats or 30)
    elif args.part == "expected":
        expected(args.trials, args.budgets or (0.05, 0.1))
    else:
        nanolm(args.trials, args.budgets or (0.05, 0.08, 0.11, 0.15))


if __name__ == "__main__":
    main()
