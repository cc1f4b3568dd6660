"""Recipes of Porian et al. 2024 as designs: verdicts from six sizes against what larger models reached."""

import csv
import os
import warnings
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from hf_muscaling.designs.verdict import compare_series
from hf_muscaling.runs import Run

DATA = (
    Path(os.environ.get("HF_MUSCALING_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "porian_rw.csv"
)
WINDOW, REACH = 6, (1.7, 12.0)


def tables(horizon):
    """Return recipe → {N: loss at so many tokens}, interpolated along each run or between runs of one size."""
    rows = defaultdict(lambda: defaultdict(list))
    with DATA.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["note"] != "count=kaplan":
                rows[row["family"]][float(row["params"])].append((float(row["tokens"]), float(row["loss"])))
    found = {}
    for recipe, sizes in rows.items():
        found[recipe] = {}
        for N, points in sizes.items():
            tokens, losses = np.array(sorted(points)).T
            if len(tokens) > 1 and tokens[0] <= horizon <= tokens[-1]:
                found[recipe][N] = float(np.exp(np.interp(np.log(horizon), np.log(tokens), np.log(losses))))
    return found


def series(table, sizes, horizon):
    return [
        Run(f"{N:g}", "finished", int(N), int(N), int(horizon), 100, 10**4, 6 * horizon * N, table[N], k + 1, 0, 0.01)
        for k, N in enumerate(sizes)
    ]


def verdicts(horizons, **options):
    """Return (actual, call) of every pair of recipes, window of sizes and larger target."""
    for horizon in horizons:
        found = tables(horizon)
        for a, b in combinations(sorted(found), 2):
            sizes = sorted(set(found[a]) & set(found[b]))
            for start in range(0, len(sizes) - WINDOW, 2):
                window = sizes[start : start + WINDOW]
                for N in sizes[start + WINDOW :]:
                    if REACH[0] < N / window[-1] < REACH[1]:
                        both = {"a": series(found[a], window, horizon), "b": series(found[b], window, horizon)}
                        yield np.log(found[a][N] / found[b][N]), compare_series(both, N, **options).calls["a", "b"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/porian_rw.csv, which only developers have")
def test_verdicts_between_published_recipes_are_right_as_often_as_they_say():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(verdicts((1.2e9, 2.4e9)))
    called = [(actual, call) for actual, call in found if call.winner]
    wrong = [1 for actual, call in called if (actual < 0) != (call.winner == "a")]
    held = np.mean([call.low <= actual <= call.high for actual, call in found])
    shown = f"{len(found)} pairs, {len(called)} called, {len(wrong)} wrongly, {held:.0%} of 90 % intervals hold"
    assert len(found) > 80, shown
    assert len(called) > 0.2 * len(found), shown
    assert len(wrong) <= 0.05 * len(called), shown
    assert held > 0.8, shown
    print(shown)
