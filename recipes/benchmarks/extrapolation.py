"""How the laws' default estimator and interval are chosen, and how well they predict larger models, on your runs.

    python recipes/benchmarks/extrapolation.py FOLDER [--skip FILE …] [--synthetic 200] [--coverage 300]

FOLDER holds tidy tables (*.csv, *.csv.gz), one row for each run and checkpoint, with the columns

    source, family, loss_name, note   which recipe a row belongs to; what is missing or empty is one group
    kind         "final" (a run at the end of its schedule) or "intermediate" (a checkpoint)
    run_id, params (or params_non_embed), tokens, loss;  step and batch_tokens where the batch size changes
    unique_tokens   optional: rows with more tokens than these repeat data, which L(N, D) does not describe

Every (source, family, loss_name, note) is one data set (rows whose note says `filtered` or `outlier` are their authors'
outliers; notes are ignored where the batch size changes); --skip leaves out a file that copies another one's runs.

1. Split, one rule for all: targets are the models of at least half the largest N, the training part is the rest. Of
   curves the last 30 % of a target's tokens are scored.
2. Choose. Inside each training part alone the same split is made again and again (rolling origin: cut at half of its
   largest N, then 1.41 times lower, …, while 5 sizes and 8 rows remain; models up to 4 times the cut are scored).
   Synthetic tables (`truths.py`: five truths, three of them no Chinchilla law) count as much as all public sets,
   finals as much as curves. A candidate's score is the mean log(ARE + 0.1 %), data sets counting the same (two seeds
   of one run differ by 0.1 %, so smaller errors are luck), less that of plain Huber. The lowest is chosen.
3. Measure the intervals: synthetic Chinchilla laws with normal noise, and the rolling origins of 2.
4. Score on the targets, once: the library's default, plain Huber, and the upper half of the runs with a weak prior;
   beside them the runs of at least half the largest compute, predicted from all runs of less ("by compute").

Nothing of 4 enters 2. Needs about five minutes of one core for 2, less for the rest.
"""

import argparse
import csv
import gzip
import itertools
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import truths

from hf_muscaling.errors import FitError
from hf_muscaling.laws import ChinchillaLaw, KaplanStepLaw, evaluate_extrapolation

HALF, STEP, REACH, LEAST_SIZES, LEAST_ROWS = 2.0, 2**0.5, 4.0, 5, 8
SEED_NOISE = 1e-3
Table = dict[str, np.ndarray]
Candidate = Callable[[], ChinchillaLaw]


@dataclass(frozen=True)
class DataSet:
    """One recipe's runs: `kind` is "finals", "curves" or "batch"; `repeats` says that data are repeated."""

    name: str
    kind: str
    repeats: bool
    table: Table

    @property
    def parts(self) -> tuple[Table, Table]:
        """The training part and the targets."""
        return split(self.table, self.table["N"].max() / HALF)


def read_sets(folder: Path, skip: tuple[str, ...] = ()) -> list[DataSet]:
    """Return every data set of a folder with at least 3 sizes."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for path in sorted(p for p in folder.iterdir() if p.name.endswith((".csv", ".csv.gz")) and p.name not in skip):
        text = path.read_bytes()
        rows = list(csv.DictReader((gzip.decompress(text) if path.suffix == ".gz" else text).decode().splitlines()))
        rows = [r for r in rows if r.get("tokens") and not {"filtered", "outlier"} & set(_words(r.get("note", "")))]
        batch = len({row.get("batch_tokens") for row in rows}) > 1
        for row in rows:
            own = [row.get(c) or "" for c in ("source", "family", "loss_name", "note")]
            own[3] = "batch" if batch else own[3]
            groups[(*own, row.get("kind") or "final")].append(row)
    found = []
    for (_, family, loss_name, note, kind), rows in groups.items():
        table = {"N": _numbers(rows, "params", "params_non_embed"), "D": _numbers(rows, "tokens")}
        table["loss"] = _numbers(rows, "loss")
        if len(np.unique(table["N"])) < 3:
            continue
        if note == "batch":
            table |= {"S": _numbers(rows, "step"), "B": _numbers(rows, "batch_tokens")}
        if kind == "intermediate":
            table["run_id"] = np.array([row["run_id"] for row in rows])
        repeats = any(float(r["tokens"]) > 1.001 * float(r.get("unique_tokens") or r["tokens"]) for r in rows)
        form = "batch" if note == "batch" else "curves" if kind == "intermediate" else "finals"
        found.append(DataSet(" ".join(v for v in (family, loss_name, note) if v), form, repeats, table))
    return found


def _words(text: str) -> list[str]:
    for mark in ";_,=":
        text = text.replace(mark, " ")
    return text.split()


def _numbers(rows: list[dict[str, str]], *names: str) -> np.ndarray:
    return np.array([float(next(row[n] for n in names if row.get(n))) for row in rows])


def split(table: Table, cut: float, end: float = np.inf) -> tuple[Table, Table]:
    """Return the rows below a size, and those from it to below `end`."""
    n = table["N"]
    return tuple({k: v[rows] for k, v in table.items()} for rows in (n < cut, (n >= cut) & (n < end)))  # type: ignore


def late(table: Table, share: float = 0.3) -> Table:
    """Return the last share of every run's tokens; all of a table of finals."""
    if "run_id" not in table:
        return table
    _, run = np.unique(table["run_id"], return_inverse=True)
    end = np.zeros(run.max() + 1)
    np.maximum.at(end, run, table["D"])
    return {k: v[table["D"] >= (1 - share) * end[run] * (1 - 1e-9)] for k, v in table.items()}


def origins(train: Table) -> Iterator[tuple[Table, Table]]:
    """Yield the splits inside a training part."""
    cut = train["N"].max() / HALF
    while True:
        small, large = split(train, cut, REACH * cut)
        if len(np.unique(np.round(np.log(small["N"]), 3))) < LEAST_SIZES or len(small["N"]) < LEAST_ROWS:
            return
        if len(large["N"]):
            yield small, late(large)
        cut /= STEP


def candidates() -> dict[str, Candidate]:
    """Return the rules compared: objective, which runs count how much, width of the prior, window of curves."""
    rules: dict[str, Candidate] = {
        "plain Huber": lambda: ChinchillaLaw("huber"),
        "least squares": lambda: ChinchillaLaw("least_squares"),
        "Huber, upper half": lambda: ChinchillaLaw("huber", rows="upper_half"),
    }
    for reach in (0.5, 1.0, 2.0, np.inf):
        for width in (1, 2, 3):
            rules[f"reach {reach:g}, prior × {width}"] = rule(reach, width)
    for width in (1, 2, 3):
        rules[f"upper half, prior × {width}"] = rule(np.inf, width, rows="upper_half")
    for window in (0.0, 0.1, 0.5):
        rules[f"reach 1, prior × 2, window {window:g}"] = rule(1.0, 2, window=window)
    return rules


def rule(reach: float, width: float, **settings) -> Candidate:
    """Return a maker of laws: weights 1/(1 + (log(C_max/C)/reach)²), priors 0.36 ± 0.06·width and 0.36 ± 0.08·width."""
    own = type("Rule", (ChinchillaLaw,), {"reach": reach})
    return lambda: own(prior={"alpha": (0.36, 0.06 * width), "beta": (0.36, 0.08 * width)}, **settings)


def mean_error(law: ChinchillaLaw, targets: Table, key: str = "loss") -> float:
    """Return the ARE of a fitted law."""
    at = [targets[name] for name in law.variables]
    return float(np.mean(np.abs(law.loss(*at, **law.params_) / targets[key] - 1)))


def choose(sets: list[DataSet], synthetic: int) -> str:
    """Print every candidate's score and return the best one's name."""
    folds = [(s, *fold) for s in sets if s.kind != "batch" and not s.repeats for fold in origins(s.parts[0])]
    made = [truths.table(seed) for seed in range(synthetic)]
    scores, reference = {}, (0.0, 0.0, 0.0)
    print(f"Choosing from {len(folds)} origins inside {len({s.name for s, _, _ in folds})} training parts and "
          f"{len(made)} synthetic tables\n  score  (finals curves synthetic) ARE % of each")  # fmt: skip
    for name, make in candidates().items():
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for data, small, large in folds:
            found[data.kind, data.name].append(attempt(make, small, large, "loss"))
        for runs, targets, kind, _ in made:
            found["synthetic", kind].append(attempt(make, runs, targets, "clean"))
        logs, plain = (
            [float(np.mean([np.mean(f(np.array(e))) for (k, _), e in found.items() if k == kind]))
             for kind in ("finals", "curves", "synthetic")] for f in (lambda e: np.log(e + SEED_NOISE), lambda e: e)
        )  # fmt: skip
        reference = tuple(logs) if not scores else reference
        parts = np.subtract(logs, reference)
        scores[name] = float(parts @ [0.25, 0.25, 0.5])
        shown = " ".join(f"{100 * e:5.2f}" for e in plain)
        print(f"  {scores[name]:+.3f} ({' '.join(f'{p:+.2f}' for p in parts)})  {shown}  {name}", flush=True)
    return min(scores, key=lambda name: scores[name])


def attempt(make: Candidate, small: Table, large: Table, key: str) -> float:
    """Return the ARE of a candidate; 50 % where it refuses the table."""
    try:
        return mean_error(make().fit(small), large, key)
    except FitError:
        return 0.5


def choose_floor(sets: list[DataSet], synthetic: int = 40) -> None:
    """Print how KaplanStepLaw does without, with, and with a chosen irreducible loss, inside the training parts."""
    made = [truths.step_table(seed) for seed in range(synthetic)]
    tables = [fold for s in sets if s.kind == "batch" for fold in origins(s.parts[0])]
    print("\nKaplanStepLaw, ARE %: rolling origin | synthetic without E | with E")
    for choice in (False, True, "auto"):
        real, own = ([mean_error(KaplanStepLaw(irreducible=choice).fit(a), b) for a, b in t] for t in (tables, made))
        shown = [f"{100 * np.mean(e):6.2f}" for e in (real, own[::2], own[1::2])]
        print(
            f"  irreducible={choice!s:5} {' | '.join(shown)}   origins {np.round(100 * np.array(real), 1)}", flush=True
        )


class ExactLaw(ChinchillaLaw):
    """The default without misfit: what its interval holds if runs follow the law to the letter."""

    exact = True


def coverage(sets: list[DataSet], count: int) -> dict[str, float]:
    """Print and return the coverage of 90 % intervals, the default's and without misfit: by design on synthetic truth,
    by set at the rolling origins, and by how far beyond the runs a target's compute lies.
    """
    inside: dict[str, list[tuple[float, float]]] = defaultdict(list)
    widths: dict[str, list[float]] = defaultdict(list)
    reach: dict[str, list[tuple[float, bool, bool, float]]] = defaultdict(list)

    def score(runs: Table, targets: Table, *names: str) -> None:
        within, half = [], np.empty(0)
        for make in (ChinchillaLaw, ExactLaw):
            law = make().fit(runs)
            p = law.predict(**{name: targets[name] for name in law.variables})
            within.append((p.low <= targets["loss"]) & (targets["loss"] <= p.high))
            if make is ChinchillaLaw:
                half = (p.high - p.low) / (2 * p.loss)
        times = targets["N"] * targets["D"] / (runs["N"] * runs["D"]).max()
        reach["synthetic" if names[0] == "synthetic" else "public"] += list(zip(times, *within, half, strict=True))
        for name in names:
            inside[name] += list(zip(*within, strict=True))
            widths[name].append(float(np.median(half)))

    for seed in range(count):
        runs, targets, _, shape = truths.table(100_000 + seed, "chinchilla", failures=False)
        score(runs, targets, "synthetic", f"synthetic {shape}")
    for data in sets:
        if data.kind != "batch" and not data.repeats:
            for small, large in origins(data.parts[0]):
                score(small, large, data.name)
    print("\nCoverage of the 90 % interval, the default's (median half-width) and without misfit (synthetic: Chinchilla"
          " laws, normal noise; public: rolling origins)")  # fmt: skip
    found = {name: np.mean(values, 0) for name, values in inside.items()}
    for name, (share, exact) in found.items():
        print(f"  {100 * share:5.1f} %  ± {100 * np.median(widths[name]):.2f} %   {100 * exact:5.1f} %  "
              f"n = {len(inside[name])}  {name}")  # fmt: skip
    public = [shares for name, shares in found.items() if not name.startswith("synthetic")]
    if public:
        share, exact = 100 * np.mean(public, 0)
        print(f"  {share:5.1f} %   {exact:5.1f} % without misfit, mean over the public sets")
    for name, rows in reach.items():
        times, default, exact, half = np.array(rows, float).T
        for low, high in itertools.pairwise((0.0, 1.0, 2.0, 4.0, 8.0, 16.0)):
            own = (times > low) & (times <= high)
            if own.sum() >= 10:
                print(f"  {100 * default[own].mean():5.1f} %  ± {100 * np.median(half[own]):.2f} %   "
                      f"{100 * exact[own].mean():5.1f} %  n = {own.sum()}  {name}, {low:g} to {high:g} times the "
                      "largest compute")  # fmt: skip
    return {name: float(share) for name, (share, _) in found.items()}


def score_targets(sets: list[DataSet]) -> dict[str, list[tuple[float, float, float]]]:
    """Print the default and two simple rules at the targets of every set; return ARE, coverage and half-width of the
    default by kind of set and order of the runs.
    """
    result: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for order in ("by size", "by compute"):
        print(f"\nAt the targets {order} (at least half the largest): ARE % of the default, plain Huber, upper half\n"
              "with prior; coverage and median half-width of the default")  # fmt: skip
        for data in sets:
            step = data.kind == "batch"
            laws = [KaplanStepLaw(), KaplanStepLaw("huber"), KaplanStepLaw("huber", irreducible=False)] if step else [
                ChinchillaLaw(), ChinchillaLaw("huber"), rule(np.inf, 1, rows="upper_half")()]  # fmt: skip
            target = data.table["N"].max() / HALF if order == "by size" else "largest_compute"
            kind, errors, own = data.kind + " repeated" * data.repeats, [], (np.nan,) * 3
            for i, law in enumerate(laws):
                try:
                    e = evaluate_extrapolation(data.table, law, target, level=None if i else 0.9)
                except FitError:
                    errors.append(np.nan)
                    continue
                errors.append(e.are)
                if not i:
                    own = (e.are, e.coverage, e.half_width)
                    result[f"{order}, {kind}"].append(own)
            shown = " ".join(f"{100 * e:6.2f}" for e in errors)
            print(f"  {shown}   {100 * own[1]:3.0f} %  ± {100 * own[2]:.2f} %  {kind}: {data.name}", flush=True)
    for name, rows in result.items():
        are, share, width = np.mean(rows, 0)
        print(f"  {name}: mean of {len(rows)} sets: ARE {100 * are:.2f} %, inside {100 * share:.0f} %, "
              f"median half-width {100 * np.median([r[2] for r in rows]):.2f} %")  # fmt: skip
    return result


def main() -> None:
    """Choose, measure, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--skip", nargs="*", default=[], help="files that copy another file's runs")
    parser.add_argument("--synthetic", type=int, default=200, help="synthetic tables for the choice")
    parser.add_argument("--coverage", type=int, default=300, help="synthetic tables for the coverage")
    parser.add_argument("--only", choices=["choose", "floor", "coverage", "targets"], help="one part alone")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sets = read_sets(args.folder, tuple(args.skip))
    for data in sets:
        small, large = data.parts
        print(f"{data.kind}{' repeated' * data.repeats}: {data.name}, {len(small['N'])} rows to train on, "
              f"{len(np.unique(large['N']))} target sizes, {len(late(large)['N'])} rows to score")  # fmt: skip
    if args.only in (None, "choose"):
        print("Chosen:", choose(sets, args.synthetic))
    if args.only in (None, "floor"):
        choose_floor(sets)
    if args.only in (None, "coverage"):
        coverage(sets, args.coverage)
    if args.only in (None, "targets"):
        score_targets(sets)


if __name__ == "__main__":
    main()
