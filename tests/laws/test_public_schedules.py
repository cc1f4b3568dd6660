"""AnnealingLaw on the Multi-Power Law's public curves: fitted to two or three short runs, scored on all the others.

The splits were fixed before any fit; the interval's prior was set with these curves in view.
"""

import csv
import gzip
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from hf_muscaling.laws import AnnealingLaw

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = Path(os.environ.get("HF_MUSCALING_DATA", SHARED))
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data, which only developers have")
SPLITS = (
    ("constant_24000", "cosine_24000", "wsdcon_9"),
    ("constant_24000", "wsdcon_9"),
    ("constant_24000", "wsd_20000_24000"),
    ("constant_24000", "cosine_24000"),
)


def read(size):
    text = gzip.decompress((DATA / f"mpl_curves_{size}.csv.gz").read_bytes()).decode()
    runs = {}
    for row in csv.DictReader(text.splitlines()):
        name = row["run_id"].split("_", 1)[1]
        values = {key: float(row[key]) for key in ("lr", "loss")} | {"step": int(row["step"]), "run_id": name}
        runs.setdefault(name, []).append(values)
    return runs


def blind_error(runs, fitted, name):
    """The end of a run by a power law in steps that ignores the rate: Gauss-Newton on log loss over a grid."""
    x, y = (np.array([row[key] for run in fitted for row in runs[run]], float) for key in ("step", "loss"))
    best = None
    for alpha in np.linspace(0.1, 1.5, 57):
        terms = np.stack([np.ones_like(x), (x / 1e4) ** -alpha], 1) / y[:, None]
        found, rest, *_ = np.linalg.lstsq(terms, np.ones_like(y), rcond=None)
        if best is None or rest[0] < best[0]:
            best = rest[0], alpha, found
    _, alpha, (floor, scale) = best
    last = runs[name][-1]
    return abs((floor + scale * (last["step"] / 1e4) ** -alpha) / last["loss"] - 1)


@pytest.mark.parametrize("size", ["25M", "100M"])
def test_annealed_ends_and_curves_of_schedules_not_fitted(size):
    runs, ends, curves, inside, blind, width = read(size), [], [], [], [], []
    for fitted in SPLITS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            law = AnnealingLaw().fit([row for name in fitted for row in runs[name]])
        for name in set(runs) - set(fitted):
            found = law.evaluate(runs[name])
            late = slice(int(0.22 * len(found.errors)), None)  # with the window, the first 30 % of the run
            p, measured = found.prediction, found.prediction.loss / (1 + found.errors)
            curves.append(np.abs(found.errors[late]).mean())
            ends.append(np.abs(found.errors[-3:]).mean())
            inside.append(((p.low <= measured) & (measured <= p.high))[-3:].mean())
            width.append(0.5 * (p.high - p.low)[-1] / p.loss[-1])
            blind.append(blind_error(runs, fitted, name))
    print(f"{size}: ends {np.mean(ends):.4f} curves {np.mean(curves):.4f} blind {np.mean(blind):.4f} "
          f"coverage {np.mean(inside):.3f} half-width {np.median(width):.4f}")  # fmt: skip
    assert np.mean(ends) < 0.003 and np.mean(curves) < 0.003
    assert np.mean(blind) > 3 * np.mean(ends)
    assert np.mean(inside) >= 0.85 and np.median(width) < 0.01
