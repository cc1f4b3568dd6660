"""ChinchillaLaw: the replication's optimum, speed of the bootstrap's refits against fresh fits, budgets, intervals."""

import csv
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_muscaling.errors import ConfigurationError, FitError, RecordError
from hf_muscaling.laws import ChinchillaLaw, PowerLaw, ScalingLaw
from hf_muscaling.laws.chinchilla import _starts
from hf_muscaling.laws.fitting import minimise, newton, resampled
from hf_muscaling.laws.problem import Problem

DATA = (
    Path(os.environ.get("HF_MUSCALING_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    / "chinchilla_epoch.csv"
)
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"needs {DATA.name}, which only developers have")


def published():
    """Besiroglu et al. 2024: the 240 points read off Hoffmann et al.'s figure 4."""
    with DATA.open() as file:
        rows = [row for row in csv.DictReader(file) if row["note"] != "epoch_outlier"]
    return {"N": [float(r["params"]) for r in rows], "D": [float(r["tokens"]) for r in rows],
            "loss": [float(r["loss"]) for r in rows]}  # fmt: skip


def synthetic(rng, noise=0.004, sizes=7, horizons=6):
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 3e9, sizes), np.geomspace(1e9, 6e10, horizons)))

    def truth(n, d):
        return 1.8 + 480 / n**0.35 + 2100 / d**0.37

    return {"N": n, "D": d, "loss": truth(n, d) * np.exp(noise * rng.normal(size=len(n)))}, truth


@needs_data
def test_reference_optimum_on_240_points():
    law = ChinchillaLaw(objective="huber").fit(published())
    assert law.n_runs_ == 240 and law.objective_value_ <= 0.0010182740179
    expected = {"E": 1.817218, "A": 477.83, "B": 2143.4, "alpha": 0.347311, "beta": 0.367172}
    for name, value in expected.items():
        assert law.params_[name] == pytest.approx(value, rel=5e-5), name
    least = ChinchillaLaw("least_squares").fit(published())
    assert least.objective_value_ <= 0.0832039 and least.params_["beta"] == pytest.approx(0.427621, rel=1e-5)


@needs_data
def test_refits_are_as_good_as_fresh_global_fits():
    """Every resample, refitted from the optimum of all runs, against a global fit of its own; one bad start is the
    control.
    """
    law = ChinchillaLaw(objective="huber").fit(published())
    problem, origin, theta = law._fitted
    problem = replace(problem, weight=law._counts(12, 3))
    refits = problem.value(resampled(problem, theta, "huber"), "huber")
    np.testing.assert_array_equal(
        law.bootstrap(12, 3)["E"], law._named(resampled(problem, theta, "huber"), origin)["E"]
    )
    lost, bad = 0, np.array([[0.0, -9.0, 2.0, -9.0, 0.05]])
    for i, refit in enumerate(refits):
        own = Problem(problem.x, problem.term, problem.loss, problem.weight[i], problem.low, problem.high)
        assert refit <= minimise(own, _starts(own, 8), "huber", polish=False, lowering=True)[1] * (1 + 1e-7)
        lost += own.value(newton(own, bad, 1e-3, steps=40), "huber")[0] > refit * 1.01
    assert lost >= 3


def test_recovers_truth_and_units_do_not_matter():
    runs, truth = synthetic(np.random.default_rng(0), noise=0.0)
    law = ChinchillaLaw("huber").fit(runs)
    for name, value in {"E": 1.8, "A": 480, "B": 2100, "alpha": 0.35, "beta": 0.37}.items():
        assert law.params_[name] == pytest.approx(value, rel=1e-4)
    noisy, _ = synthetic(np.random.default_rng(1))
    one = ChinchillaLaw().fit(noisy)
    other = ChinchillaLaw().fit(noisy | {"N": noisy["N"] / 1e6, "D": noisy["D"] / 1e6})
    assert other.params_["alpha"] == pytest.approx(one.params_["alpha"], rel=1e-5)
    assert other.predict(N=7e3, D=1e5).loss == pytest.approx(one.predict(N=7e9, D=1e11).loss, rel=1e-6)


def test_compute_optimal_is_the_minimum():
    runs, _ = synthetic(np.random.default_rng(0))
    law = ChinchillaLaw("least_squares").fit(runs)
    budget = 1e21
    n, d = law.compute_optimal(budget)
    assert 6 * n * d == pytest.approx(budget)
    best = law.loss(n, d, **law.params_)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert law.loss(n * factor, d / factor, **law.params_) > best
    many, _ = law.compute_optimal(np.array([1e20, 1e21]))
    assert many.shape == (2,) and many[1] == pytest.approx(n)
    for bad in (-1, "1e21", float("nan"), True):
        with pytest.raises(ConfigurationError, match="FLOPs"):
            law.compute_optimal(bad)


def test_interval_holds_new_runs_and_the_fit_alone_does_not():
    rng = np.random.default_rng(4)
    inside, alone = [], []
    for _ in range(25):
        runs, truth = synthetic(rng)
        law = ChinchillaLaw().fit(runs)
        n, d = 2 * runs["N"].max(), 2 * runs["D"].max()
        measured = truth(n, d) * np.exp(0.004 * rng.normal())
        p = law.predict(N=n, D=d)
        inside.append(p.low <= measured <= p.high)
        low, high = np.quantile(law.loss(n, d, **law._draws["params"]), (0.05, 0.95))
        alone.append(low <= measured <= high)
    assert np.mean(inside) >= 0.825 and np.mean(alone) < 0.8 < np.mean(inside)


def test_rows_of_one_run_are_drawn_together():
    runs, _ = synthetic(np.random.default_rng(0))
    named = runs | {"run_id": [f"run{i // 6}" for i in range(42)]}
    law = ChinchillaLaw("huber", window=0).fit(named)
    counts = law._counts(20, 0).reshape(20, 7, 6)
    assert np.all(counts == counts[:, :, :1]) and np.all(counts.sum((1, 2)) == 42)
    assert not np.all((c := ChinchillaLaw("huber").fit(runs)._counts(20, 0).reshape(20, 7, 6)) == c[:, :, :1])


def test_round_trip(tmp_path):
    runs, _ = synthetic(np.random.default_rng(0))
    law = ChinchillaLaw().fit(runs | {"run_id": [f"r{i % 21}" for i in range(42)]})
    law.to_json(tmp_path / "law.json")
    back = ScalingLaw.from_json(tmp_path / "law.json")
    assert isinstance(back, ChinchillaLaw) and back.predict(N=7e9, D=1e11) == law.predict(N=7e9, D=1e11)
    assert back.to_json() == law.to_json()
    with pytest.raises(RecordError, match="PowerLaw"):
        PowerLaw.from_json(law.to_json())
    record = json.loads(law.to_json())
    record["params"]["E"] *= 1.01
    with pytest.raises(RecordError, match="edited"):
        ScalingLaw.from_json(record)


def test_tables_it_cannot_fit():
    runs, _ = synthetic(np.random.default_rng(0))
    with pytest.raises(FitError, match="3 distinct D"):
        ChinchillaLaw("huber").fit(runs | {"D": np.full(42, 1e9)})
    with pytest.raises(FitError, match="column 'D'"):
        ChinchillaLaw().fit({"N": runs["N"], "loss": runs["loss"]})
    with pytest.raises(FitError, match="4 rows"):
        ChinchillaLaw("huber").fit({k: v[[0, 8, 16, 24]] for k, v in runs.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigurationError, match="needs 'D'"):
            ChinchillaLaw().fit(runs).predict(N=1e9)
