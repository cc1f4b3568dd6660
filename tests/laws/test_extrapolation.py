"""The default of PowerLaw was chosen by how well few sizes predict larger ones on public tables; this measures it
again.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from hf_muscaling.laws import PowerLaw

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
DATA = (
    Path(os.environ.get("HF_MUSCALING_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "porian_rw.csv"
)


def windows(n, loss, sizes, step=1):
    """Runs of `sizes` neighbouring sizes and every target 1.8 to 60 times beyond the largest of them."""
    for start in range(0, len(n) - sizes, step):
        last = start + sizes
        for target in range(last, len(n)):
            if 1.8 <= n[target] / n[last - 1] <= 60:
                yield n[start:last], loss[start:last], n[target], loss[target]


def errors(tables, objective, sizes, step=1):
    """Mean ARE of each table, and the coverage of its 90 % intervals."""
    found = []
    for n, loss in tables:
        rows = []
        for x, y, target, truth in windows(n, loss, sizes, step):
            p = PowerLaw(objective).fit({"N": x, "loss": y}).predict(N=target) if objective == "bayes" else None
            point = p.loss if p else PowerLaw(objective).fit({"N": x, "loss": y}).predict(N=target, level=0.9).loss
            rows.append((abs(point / truth - 1), p.low <= truth <= p.high if p else np.nan))
        if rows:
            found.append(np.mean(rows, 0))
    return np.array(found)


def porian(tokens=(2e9, 3.3e9)):
    """Porian et al. 2024 at equal tokens: each run's curve read off by log-log interpolation, 12 to 16 sizes a
    table.
    """
    curves = {}
    with DATA.open() as file:
        for row in csv.DictReader(file):
            for count in ("params", "params_non_embed"):
                if row[count] and not row["family"].endswith("chinchilla"):
                    curves.setdefault((row["family"], count), {}).setdefault(float(row[count]), []).append(
                        (np.log(float(row["tokens"])), np.log(float(row["loss"])))
                    )
    for runs in curves.values():
        for d in np.log(tokens):
            table = []
            for n in sorted(runs):
                t, loss = np.array(sorted(runs[n])).T
                if len(t) >= 3 and t[0] <= d <= t[-1]:
                    table.append((n, np.exp(np.interp(d, t, loss))))
            if len(table) >= 10:
                yield tuple(np.array(table).T)


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/porian_rw.csv, which only developers have")
def test_default_extrapolates_better_on_public_runs():
    tables = list(porian())
    assert len(tables) == 10
    default, plain = errors(tables, "bayes", 6, 2), errors(tables, "least_squares", 6, 2)
    assert default[:, 0].mean() < 0.85 * plain[:, 0].mean()
    assert default[:, 0].mean() < 0.012
    assert 0.75 <= default[:, 1].mean() <= 0.99
