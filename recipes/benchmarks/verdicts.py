"""How often a comparison calls a pair of which neither side is better, and how small a difference it still calls.

    python recipes/benchmarks/verdicts.py runs/llama [--seeds 2] [--splits 200] [--target 1.35e6] [--widths 32 48 64]

FOLDER is that of an experiment with ONE design and many seeds a width (`run_series.py --seeds 20`), finished or not.
Its seeds are split into two sides that play two designs, so that every call is a false one. First on disjoint sets of
seeds, as two experiments would have them; then on random splits, drawn anew for every width, which share runs between
repeats but give a steadier rate. Positive control: the same splits with one side's losses made a known share worse.
Nothing is trained.
"""

import argparse
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hf_muscaling import Run
from hf_muscaling.designs.verdict import Call, FittedDesign, compare_fitted, compare_series

SHIFTS = (0.005, 0.01, 0.02, 0.03, 0.05)


def read_pool(folder: Path, widths: Sequence[int]) -> dict[int, list[Run]]:
    """Return the finished proxies of an experiment by width, those with all seeds that every width has."""
    runs = [Run.load(path) for path in sorted(folder.glob("runs/*/run.json"))]
    runs = [run for run in runs if run.finished and (not widths or run.width in widths)]
    rates = {run.lr for run in runs if run.seed != min(r.seed for r in runs)}  # the grid has one seed only
    found: dict[int, dict[int, Run]] = {}
    for run in runs:
        if run.lr in rates:
            found.setdefault(run.width, {})[run.seed] = run
    proxies = {w: by_seed for w, by_seed in found.items() if widths or len(by_seed) > 3}
    common = sorted(set.intersection(*(set(by_seed) for by_seed in proxies.values())))
    return {w: [by_seed[s] for s in common] for w, by_seed in sorted(proxies.items())}


def sides(pool: dict[int, list[Run]], chosen: dict[int, np.ndarray], seeds: int) -> tuple[list[Run], list[Run]]:
    """Return two designs' runs: of every width the first `seeds` of its chosen ones, and the next."""
    first = [pool[w][i] for w in pool for i in chosen[w][:seeds]]
    second = [pool[w][i] for w in pool for i in chosen[w][seeds : 2 * seeds]]
    return first, second


def fitted(first: list[Run], second: list[Run], target: float) -> list[FittedDesign]:
    """Return both sides with their laws; the second's seeds get other numbers, as another experiment's would have."""
    second = [replace(run, seed=run.seed + 1000) for run in second]
    return list(compare_series({"one": first, "other": second}, target).designs)


def verdict(designs: list[FittedDesign], shift: float = 0.0) -> Call:
    """Compare the sides, the second one's losses made worse by a share."""
    worse = replace(designs[1], scale=math.exp(shift))
    return compare_fitted([designs[0], worse]).calls["one", "other"]


def row(name: str, calls: Sequence[Call], shift: float) -> str:
    """Return a line of the table."""
    called, wrong = [c for c in calls if c.winner], [c for c in calls if c.winner == "other"]
    false = called if shift == 0 else wrong
    held = np.mean([c.low <= -shift <= c.high for c in calls])
    spread, found = np.mean([c.spread for c in calls]), np.std([c.difference for c in calls])
    shown = f"{len(called)} ({len(called) / len(calls):.0%}) | {len(false)} | {held:.0%}"
    return f"| {name} | {100 * shift:g} % | {len(calls)} | {shown} | {100 * spread:.2f} % | {100 * found:.2f} % |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=2, help="seeds a side")
    parser.add_argument("--splits", type=int, default=200, help="random splits")
    parser.add_argument("--target", type=float, default=1.35e6, help="N of the target, parameters")
    parser.add_argument("--widths", type=int, nargs="*", default=[], help="use these widths only")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # laws of few runs say that c is open; here that is the point

    pool = read_pool(given.folder, given.widths)
    count = min(len(runs) for runs in pool.values())
    if len(pool) < 3 or count < 2 * given.seeds:
        raise SystemExit(f"{given.folder} has {len(pool)} widths of {count} seeds; needed: 3 of {2 * given.seeds}.")
    shown = ", ".join(str(w) for w in pool)
    print(f"Widths {shown}, {count} seeds each; {given.seeds} a side; target N = {given.target:.3g}\n")
    print("| splits | other side worse by | pairs | called | falsely | 90 % interval holds | spread claimed | found |")
    print("|" + "---|" * 8)
    places = np.arange(count)
    disjoint = []
    for seeds in sorted({1, given.seeds}):
        repeats = [places[k : k + 2 * seeds] for k in range(0, count - 2 * seeds + 1, 2 * seeds)]
        disjoint = [fitted(*sides(pool, dict.fromkeys(pool, r), seeds), given.target) for r in repeats]
        print(row(f"disjoint, {seeds} a side", [verdict(pair) for pair in disjoint], 0.0), flush=True)
    rng = np.random.default_rng(0)
    random = [
        fitted(*sides(pool, {w: rng.permutation(count) for w in pool}, given.seeds), given.target)
        for _ in range(given.splits)
    ]
    for shift in (0.0, *SHIFTS):
        print(row(f"random, {given.seeds} a side", [verdict(pair, shift) for pair in random], shift), flush=True)


if __name__ == "__main__":
    main()
