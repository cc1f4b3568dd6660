"""Accuracy and coverage of the default laws at the largest models of public runs: the numbers of the protocol in
recipes/benchmarks/extrapolation.py, which chose the defaults inside the training parts of these sets.
"""

import csv
import gzip
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_muscaling.errors import FitError
from hf_muscaling.laws import ChinchillaLaw, Family, KaplanLaw, KaplanStepLaw, evaluate_extrapolation
from hf_muscaling.laws.caveats import strays

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = Path(os.environ.get("HF_MUSCALING_DATA", SHARED))
pytestmark = [
    pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data, which only developers have"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def read(name, keep=lambda row: True):
    text = (DATA / name).read_bytes()
    text = (gzip.decompress(text) if name.endswith("gz") else text).decode()
    rows = [row for row in csv.DictReader(text.splitlines()) if keep(row)]
    for row in rows:
        row["N"] = float(row.get("params") or row.get("params_non_embed"))
        row["D"], row["loss"] = float(row["tokens"]), float(row["loss"])
    return [{k: row[k] for k in ("N", "D", "loss", "run_id")} | {"family": row["family"]} for row in rows]


@pytest.fixture(scope="module")
def protocol():
    """The benchmark's functions; its synthetic truths lie beside it."""
    folder = Path(__file__).resolve().parents[2] / "recipes" / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("extrapolation_benchmark", folder / "extrapolation.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


@pytest.fixture(scope="module")
def sets(protocol):
    found = protocol.read_sets(DATA, ("kyo_takano_llm.csv",))
    return [data for data in found if not data.repeats]


def at_the_largest(sets, law):
    """Mean ARE and coverage of each set: its three largest sizes, each predicted from all smaller ones."""
    found = []
    for data in sets:
        n, scores = data.table["N"], []
        for top in np.unique(np.round(np.log(n), 2))[:-4:-1]:
            rows = {k: v[np.log(n) < top + 0.01] for k, v in data.table.items()}
            try:
                e = evaluate_extrapolation(rows, law, float(np.exp(top - 0.01)))
            except FitError:  # the two smallest of three sizes have nothing below them
                continue
            scores.append((e.are, e.coverage, e.half_width))
        found.append(np.mean(scores, 0))
    return np.array(found)


def test_curves_at_the_largest_models(sets):
    """Measured: 0.9 %, 96 % inside; plain Huber cannot be fitted to one of the six sets."""
    curves = [data for data in sets if data.kind == "curves"]
    found = at_the_largest(curves, ChinchillaLaw())
    assert len(found) == 6
    assert found[:, 0].mean() < 0.011 and found[:, 1].mean() >= 0.85 and np.median(found[:, 2]) < 0.04


def test_finals_at_the_largest_models(sets):
    """Measured: 1.2, 6.1 and 0.7 %: C4's largest models hold two runs that lie 10 % off their neighbours."""
    finals = {data.name.split()[0]: data for data in sets if data.kind == "finals"}
    assert len(finals) == 3
    found = dict(zip(finals, at_the_largest(finals.values(), ChinchillaLaw()), strict=True))
    plain = dict(zip(finals, at_the_largest(finals.values(), ChinchillaLaw("huber")), strict=True))
    ordinary = [name for name in finals if name != "datablations_c4"]
    assert np.mean([found[name][0] for name in ordinary]) < 0.013
    assert found["datablations_c4"][0] < 0.08
    assert np.mean([v[0] for v in found.values()]) < np.mean([v[0] for v in plain.values()])


def test_the_interval_holds_at_the_largest_models(sets):
    """Measured: 91 % of the mean of nine sets, median half-width 1.8 %; without misfit fewer."""

    class Exact(ChinchillaLaw):
        exact = True

    usual = [data for data in sets if data.kind != "batch"]
    (inside, width), (bare, _) = (
        (found[:, 1].mean(), np.median(found[:, 2]))
        for found in (at_the_largest(usual, law()) for law in (ChinchillaLaw, Exact))
    )
    assert 0.85 <= inside <= 0.97 and width < 0.04
    assert bare < inside - 0.1


def test_finals_by_compute(sets):
    """Measured: 1.4, 0.9 and 0.5 %; plain Huber 2.6, 1.9 and 1.8 %."""
    tables = [data.table for data in sets if data.kind == "finals"]
    own, plain = (
        [evaluate_extrapolation(table, ChinchillaLaw(name), "largest_compute", level=None).are for table in tables]
        for name in ("bayes", "huber")
    )
    assert len(own) == 3 and np.mean(own) < 0.012 and np.mean(own) < 0.6 * np.mean(plain)


@pytest.mark.slow
def test_rolling_origins_inside_the_training_parts(protocol, sets):
    """What chose the defaults: better than plain Huber on every kind of set, and intervals that hold by set."""
    inside, ratio = [], []
    for data in (data for data in sets if data.kind != "batch"):
        rows, errors = [], []
        for small, large in list(protocol.origins(data.parts[0]))[::2]:
            own, plain = ChinchillaLaw().fit(small), ChinchillaLaw("huber").fit(small)
            p = own.predict(N=large["N"], D=large["D"])
            rows += list((p.low <= large["loss"]) & (large["loss"] <= p.high))
            errors.append([protocol.mean_error(law, large) + protocol.SEED_NOISE for law in (own, plain)])
        if rows:
            inside.append(np.mean(rows))
            ratio.append(np.mean(np.diff(np.log(errors), axis=1)))
    assert len(inside) == 8
    assert 0.85 <= np.mean(inside) <= 0.97
    assert np.mean(ratio) > 0.1  # log of Huber's error over the default's


def test_changing_batch_size(sets):
    """Fitted to C ≤ 2e16, scored above 4e16 FLOPs."""
    (table,) = (data.table for data in sets if data.kind == "batch")
    compute = 6 * table["N"] * table["D"]
    small, large = ({k: v[rows] for k, v in table.items()} for rows in (compute <= 2e16, compute > 4e16))
    own = KaplanStepLaw().fit(small).evaluate(large)
    six = KaplanStepLaw(irreducible=False).fit(small).evaluate(large)
    assert own.are < 0.026 and own.coverage >= 0.8 and own.are < 0.7 * six.are


def test_borrowed_parameters_predict_from_one_model():
    """The 2.8B curve of C4 and A, alpha of the Chinchilla points give the 8.7B model; without borrowing it cannot."""
    points = read("chinchilla_epoch.csv", lambda row: row["note"] != "epoch_outlier")
    other = Family.of(ChinchillaLaw("huber").fit([{k: r[k] for k in ("N", "D", "loss")} for r in points]), "Chinchilla")
    rows = read("datablations_c4_curves.csv.gz", lambda row: row["note"] == "epochs_total=1")
    train = [row for row in rows if row["N"] < 3e9]
    target = sorted((row for row in rows if row["N"] > 8e9), key=lambda row: row["D"])[-5:]
    own = ChinchillaLaw(fixed=other.fixed("A", "alpha")).fit(train).evaluate(target)
    assert own.are < 0.015 and own.coverage == 1.0


@pytest.mark.parametrize("law", [ChinchillaLaw(), ChinchillaLaw("huber"), KaplanLaw()])
def test_no_run_of_sound_public_tables_is_called_diverged(law):
    """The control: runs that repeated their data up to 44 times lie 28 % above laws that know nothing of it."""
    chinchilla = read("chinchilla_epoch.csv", lambda row: row["note"] != "epoch_outlier")
    curves = read("datablations_c4_curves.csv.gz", lambda row: row["note"] == "epochs_total=1")
    for rows in (chinchilla, curves, read("kyo_takano_llm.csv")):
        assert not strays(law.fit(rows))
    (said,) = strays(law.fit(read("datablations_c4_curves.csv.gz")))
    assert "has loss 3.121" in said and "if it diverged" in said
