"""Matched runs and the correlation of their residuals, shrunk."""

import numpy as np
import pytest

from hf_muscaling import PowerLaw
from hf_muscaling.designs.pairing import FittedRuns, Pairing, pair
from tests.designs.synthetic import TARGET, make_design, make_noise


def fitted(runs):
    law = PowerLaw(objective="least_squares").fit({"N": [r.N for r in runs], "loss": [r.loss for r in runs]})
    return FittedRuns.of(law, runs, TARGET)


def test_shared_noise_is_found_and_none_where_there_is_none():
    rng = np.random.default_rng(0)
    shared = make_noise(rng)
    together = pair(fitted(make_design(rng, shared=shared)), fitted(make_design(rng, shift=0.02, shared=shared)))
    assert together.matched == 10 and together.dof == 7 and together.same_seeds
    assert together.correlation > 0.8
    assert 0.5 < together.shrunk < together.correlation
    apart = [pair(fitted(make_design(rng)), fitted(make_design(rng))).shrunk for _ in range(20)]
    assert abs(np.mean(apart)) < 0.15


def test_the_same_runs_weigh_alike_and_fewer_weigh_less():
    rng = np.random.default_rng(1)
    runs, others = make_design(rng), make_design(rng)
    assert pair(fitted(runs), fitted(others)).alignment == pytest.approx(1, abs=0.02)
    half = pair(fitted(runs), fitted(make_design(rng, seeds=range(1))))
    assert half.matched == 5
    assert 0.5 < half.alignment < 0.85  # half of the first design's runs have a partner: 1/√2


def test_without_a_common_seed_sizes_are_matched():
    rng = np.random.default_rng(2)
    found = pair(fitted(make_design(rng)), fitted(make_design(rng, seeds=range(5, 7))))
    assert not found.same_seeds
    assert (found.matched, found.dof) == (5, 2)
    assert found.alignment == pytest.approx(1, abs=0.05)


def test_leverages_are_the_derivatives_of_the_prediction():
    rng = np.random.default_rng(3)
    runs = make_design(rng, noise=1e-3)
    law = PowerLaw(objective="least_squares")
    table = {"N": np.array([r.N for r in runs], float), "loss": np.array([r.loss for r in runs])}
    own = FittedRuns.of(law.fit(table), runs, 6e5).leverage
    for i in (0, 9):
        moved = table["loss"].copy()
        ends = []
        for step in (-1e-4, 1e-4):
            moved[i] = table["loss"][i] * np.exp(step)
            ends.append(np.log(PowerLaw(objective="least_squares").fit({**table, "loss": moved}).predict(N=6e5).loss))
        assert own[i] == pytest.approx((ends[1] - ends[0]) / 2e-4, abs=0.06)


@pytest.mark.parametrize("r", [-0.8, 0.0, 0.8])
def test_more_runs_shrink_less(r):
    few, many = Pairing(5, 2.0, r, 1.0, True).shrunk, Pairing(200, 197.0, r, 1.0, True).shrunk
    assert abs(few) <= abs(many) + 1e-9
    assert many == pytest.approx(r, abs=0.04)
