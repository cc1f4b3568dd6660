"""The evaluation protocol against tables whose answer is known."""

import warnings

import numpy as np
import pytest

from hf_muscaling.errors import ConfigurationError, FitError
from hf_muscaling.laws import ChinchillaLaw, KaplanStepLaw, PowerLaw
from hf_muscaling.laws.evaluation import evaluate_extrapolation

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
SIZES = np.geomspace(1e7, 1e9, 6)


def curve_table(sizes=SIZES, checkpoints=20, noise=0.0, bump=0.0):
    """Curves of one run a size; `noise` is relative and per run, `bump` a relative error of the largest run alone."""
    rng = np.random.default_rng(0)
    rows = []
    for i, n in enumerate(sizes):
        shift = noise * rng.normal() + (bump if i == len(sizes) - 1 else 0.0)
        for d in np.linspace(1e9, 2e10, checkpoints):
            loss = float(ChinchillaLaw.loss(n, d, **TRUTH)) * (1 + shift)
            rows.append({"run_id": f"run-{i}", "N": n, "D": d, "loss": loss})
    return rows


def test_the_true_law_is_found_and_the_largest_run_is_the_target():
    found = evaluate_extrapolation(curve_table(), ChinchillaLaw("huber"), level=None)
    (target,) = found.targets
    assert found.are < 1e-5 and target.run == "run-5" and target.models == 5
    assert pytest.approx(1e9) == target.N and target.extrapolation == pytest.approx(1e9 / SIZES[-2])
    assert target.checkpoints == 7  # of 20 checkpoints from 1e9 to 2e10, those from 1.4e10 on
    assert np.isnan(found.coverage) and np.isnan(found.half_width)


def test_the_error_of_the_target_is_measured_not_hidden():
    """Negative control: the target lies 3 % off the law, and the protocol must say so."""
    found = evaluate_extrapolation(curve_table(bump=0.03), ChinchillaLaw("huber"), level=None)
    assert found.are == pytest.approx(1 - 1 / 1.03, rel=1e-3)
    assert found.targets[0].predicted < found.targets[0].loss


def test_the_target_is_never_fitted():
    """The same law comes out whatever the target's losses are."""
    fits = [evaluate_extrapolation(curve_table(bump=b), ChinchillaLaw("huber"), level=None).law for b in (0.0, 0.5)]
    assert fits[0].params_ == fits[1].params_


def test_intervals_are_scored():
    table = curve_table(noise=0.004)
    found = evaluate_extrapolation(table, ChinchillaLaw)
    target = found.targets[0]
    assert target.low < target.predicted < target.high and 0 <= found.coverage <= 1
    assert found.half_width == pytest.approx(target.half_width) and found.level == 0.9
    far = evaluate_extrapolation(curve_table(noise=0.004, bump=0.5), ChinchillaLaw)
    assert far.coverage == 0.0  # a target 50 % off lies outside every interval worth the name
    assert "half-width" in str(found) and "run-5" in str(found)


def test_seen_models_and_last():
    table = curve_table(noise=0.004)
    full = evaluate_extrapolation(table, ChinchillaLaw(window=0.0), level=None)
    part = evaluate_extrapolation(table, ChinchillaLaw(window=0.0), level=None, seen=0.5)
    few = evaluate_extrapolation(table, ChinchillaLaw(window=0.0), level=None, models=4)
    assert full.law.n_runs_ == 100 and part.law.n_runs_ == 50 and few.law.n_runs_ == 80
    assert part.law.range_["D"][1] == pytest.approx(1e10) and few.law.range_["N"][1] == pytest.approx(SIZES[3])
    assert few.targets[0].models == 4
    assert evaluate_extrapolation(table, ChinchillaLaw, level=None, last=1.0).targets[0].checkpoints == 20


def test_rolling_origins_predict_each_size_from_the_smaller():
    found = evaluate_extrapolation(curve_table(), ChinchillaLaw("huber"), "rolling", level=None, smallest=4)
    assert [(t.run, t.models) for t in found.targets] == [("run-4", 4), ("run-5", 5)] and found.are < 1e-5


def test_an_origin_that_cannot_be_fitted_is_reported():
    found = evaluate_extrapolation(curve_table(), ChinchillaLaw("huber"), "rolling", level=None, smallest=1)
    assert found.skipped and "distinct N" in found.skipped[0] and str(found).count("skipped") == len(found.skipped)


@pytest.mark.parametrize(
    ("target", "names"),
    [(3e8, {"run-4", "run-5"}), ("run-3", {"run-3"}), (["run-3", "run-4"], {"run-3", "run-4"})],
)
def test_targets_by_size_and_by_name(target, names):
    found = evaluate_extrapolation(curve_table(), ChinchillaLaw("huber"), target, level=None)
    assert {t.run for t in found.targets} == names
    assert found.law.range_["N"][1] < min(t.N for t in found.targets)


def test_a_law_in_one_variable():
    n = np.geomspace(1e6, 1e8, 8)
    runs = {"N": n, "loss": 2 + 40 * n**-0.25}
    found = evaluate_extrapolation(runs, PowerLaw(objective="least_squares"), level=None)
    assert found.are < 1e-6 and found.targets[0].models == 7
    bare = {"N_non_embedding": n, "loss": 2 + 40 * n**-0.25}
    assert (
        evaluate_extrapolation(bare, PowerLaw(objective="least_squares", count="non_embedding"), level=None).are < 1e-6
    )


def test_a_law_in_n_scores_the_last_checkpoint():
    found = evaluate_extrapolation(curve_table(), PowerLaw(objective="least_squares"), level=None)
    assert found.targets[0].checkpoints == 1 and found.targets[0].are < 2e-3


def test_a_law_in_steps_reads_steps_from_tokens():
    n, s, b = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 6e7, 5), np.geomspace(300, 9e3, 6), [3e4, 1e5, 1e6]))
    truth = {"N_c": 1e14, "alpha_N": 0.076, "S_c": 3e3, "alpha_S": 0.67, "B_star": 2e8, "alpha_B": 0.21}
    loss = KaplanStepLaw.loss(n, s, b, **truth)
    for table in ({"N": n, "S": s, "B": b, "loss": loss}, {"N": n, "D": s * b, "B": b, "loss": loss}):
        assert evaluate_extrapolation(table, KaplanStepLaw(objective="huber"), level=None).are < 1e-4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"law": "chinchilla"}, ConfigurationError, "not a law"),
        ({"seen": 0}, ConfigurationError, "seen=0"),
        ({"seen": "all"}, ConfigurationError, "seen="),
        ({"level": 1}, ConfigurationError, "level=1"),
        ({"last": 1.5}, ConfigurationError, "last=1.5"),
        ({"models": 2.5}, ConfigurationError, "models=2.5"),
        ({"models": 9}, FitError, "5 sizes below"),
        ({"target": "run-9"}, ConfigurationError, "No run is called 'run-9'"),
        ({"target": -3}, ConfigurationError, "target=-3"),
        ({"target": None}, ConfigurationError, "target=None"),
        ({"target": 1e12}, FitError, "the largest is 1e"),
        ({"target": 1.0}, FitError, "No row is left"),
        ({"target": "run-0"}, FitError, "No row is left"),
        ({"seen": 0.01}, FitError, "No row is left"),
        ({"target": "rolling", "smallest": 9}, FitError, "more than 9 sizes"),
    ],
)
def test_impossible_requests_are_named(options, error, message):
    options = {"law": ChinchillaLaw, "level": None, **options}
    with pytest.raises(error, match=message):
        evaluate_extrapolation(curve_table(), options.pop("law"), options.pop("target", "largest"), **options)


@pytest.mark.parametrize("loss", [-1.0, float("nan"), "three"])
def test_an_impossible_loss_is_named(loss):
    table = curve_table()
    table[3]["loss"] = loss
    with pytest.raises(FitError, match="row 3"):
        evaluate_extrapolation(table, ChinchillaLaw)


def test_several_families_are_refused():
    table = [row | {"family": "ab"[i % 2]} for i, row in enumerate(curve_table())]
    with pytest.raises(FitError, match="2 families"):
        evaluate_extrapolation(table, ChinchillaLaw)


def test_it_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_extrapolation(curve_table(noise=0.004), ChinchillaLaw, "rolling")


class TestByCompute:
    """A grid in N and D: the largest model trained briefly is no far target, the run of most compute is."""

    def table(self):
        n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 3e10, 6)))
        return {"N": n, "D": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37}

    def test_targets_are_the_runs_of_most_compute(self):
        table = self.table()
        compute = table["N"] * table["D"]
        spoilt = table | {"loss": np.where(compute >= compute.max() / 2, table["loss"] * 1.1, table["loss"])}
        found = evaluate_extrapolation(spoilt, ChinchillaLaw("huber"), "largest_compute", level=None)
        assert len(found.targets) == (compute >= compute.max() / 2).sum() == 2
        assert found.are == pytest.approx(1 - 1 / 1.1, rel=1e-3)  # none of the spoilt runs was fitted
        assert evaluate_extrapolation(table, ChinchillaLaw("huber"), "largest_compute", level=None).are < 1e-4

    def test_it_is_not_the_largest_model(self):
        table = self.table()
        short = (table["N"] == table["N"].max()) & (table["D"] == table["D"].min())
        table["loss"] = np.where(short, table["loss"] * 1.1, table["loss"])
        assert evaluate_extrapolation(table, ChinchillaLaw("huber"), level=None).are > 0.01
        assert evaluate_extrapolation(table, ChinchillaLaw("huber"), "largest_compute", level=None).are < 1e-3

    def test_compute_from_steps_and_batches_or_a_column(self):
        n, s, b = (v.ravel() for v in np.meshgrid([1e6, 1e7, 6e7], [500.0, 2e3, 8e3], [3e4, 1e5, 1e6]))
        truth = {"N_c": 1e14, "alpha_N": 0.076, "S_c": 3e3, "alpha_S": 0.67, "B_star": 2e8, "alpha_B": 0.21}
        table = {"N": n, "S": s, "B": b, "loss": KaplanStepLaw.loss(n, s, b, **truth)}
        law = KaplanStepLaw("huber", irreducible=False)
        found = evaluate_extrapolation(table, law, "largest_compute", level=None)
        assert len(found.targets) == 1 and found.are < 1e-3
        given = evaluate_extrapolation(table | {"C": 6 * n * s * b}, law, "largest_compute", level=None)
        assert given.are == found.are

    def test_without_compute_it_says_what_is_missing(self):
        with pytest.raises(FitError, match="needs the training FLOPs: a column C, or N and D"):
            evaluate_extrapolation(
                {"N": [1e6, 2e6, 4e6, 8e6], "loss": [4, 3.8, 3.6, 3.5]}, PowerLaw(), "largest_compute"
            )


def test_repeated_data_are_said_once():
    table = TestByCompute().table()
    with pytest.warns(UserWarning, match="repeat their data") as caught:
        evaluate_extrapolation(table | {"unique_tokens": np.minimum(table["D"], 5e9)}, ChinchillaLaw(), level=None)
    assert sum("repeat" in str(w.message) for w in caught) == 1
