"""Joint draws: each design keeps its own distribution, the difference narrows by what they share, exponents pool."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri

from hf_muscaling.designs.joint import Predictive, joint_draws
from hf_muscaling.designs.pairing import Pairing
from hf_muscaling.designs.verdict import compare_series
from tests.designs.synthetic import TARGET, make_design

U = (np.arange(2048) + 0.5) / 2048


def predictive(centre=1.0, spread=0.01, noise=0.002, misfit=0.003, exponent=-0.7, width=0.3):
    curve = centre + spread * ndtri(U)
    return Predictive(curve, np.full(2048, noise), np.full(2048, misfit), exponent + width * ndtri(U))


def known(rho, alignment=1.0, same_seeds=True):
    return Pairing(4003, 4000.0, rho, alignment, same_seeds)


def test_a_design_keeps_its_own_distribution():
    own = predictive()
    draws = joint_draws([own, predictive(1.2)], {(0, 1): known(0.8)}, alike=np.inf)
    assert draws.log_loss[:, 0].mean() == pytest.approx(1.0, abs=2e-4)
    assert draws.log_loss[:, 0].std() == pytest.approx(np.sqrt(0.01**2 + 0.002**2 + 0.003**2), rel=0.02)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.6, 0.9])
def test_the_difference_narrows_by_what_is_shared(rho):
    draws = joint_draws([predictive(), predictive(1.01)], {(0, 1): known(rho)}, alike=np.inf)
    alone = np.sqrt(0.01**2 + 0.002**2 + 0.003**2)
    assert draws.difference(0, 1).std() == pytest.approx(alone * np.sqrt(2 * (1 - rho)), rel=0.04)


def test_run_noise_is_independent_without_common_seeds_and_averaged_over_seeds():
    both = [predictive(spread=1e-6, misfit=0.0)] * 2
    shared = joint_draws(both, {(0, 1): known(0.9)}, alike=np.inf).difference(0, 1).std()
    apart = joint_draws(both, {(0, 1): known(0.9, same_seeds=False)}, alike=np.inf).difference(0, 1).std()
    four = joint_draws(both, {}, seeds=[4, 4], alike=np.inf).difference(0, 1).std()
    assert apart == pytest.approx(0.002 * np.sqrt(2), rel=0.02)
    assert shared == pytest.approx(apart * np.sqrt(0.1), rel=0.05)
    assert four == pytest.approx(apart / 2, rel=0.02)


def test_probabilities_are_those_of_normal_distributions():
    draws = joint_draws([predictive(1.0), predictive(1.01), predictive(1.5)], {}, alike=np.inf)
    spread = np.sqrt(2 * (0.01**2 + 0.002**2 + 0.003**2))
    from scipy.special import ndtr

    assert draws.beats(0, 1) == pytest.approx(ndtr(0.01 / spread), abs=0.005)
    assert draws.beats(0, 1) + draws.beats(1, 0) == pytest.approx(1)
    assert draws.best().sum() == pytest.approx(1)
    assert draws.best()[2] == 0
    assert draws.best()[0] == pytest.approx(draws.beats(0, 1), abs=0.005)


def test_correlations_that_contradict_each_other_are_bent_not_refused():
    pairings = {(0, 1): known(0.9), (0, 2): known(0.9), (1, 2): known(-0.9)}
    draws = joint_draws([predictive()] * 3, pairings, alike=np.inf)
    assert np.isfinite(draws.log_loss).all()
    assert draws.log_loss.std(0) == pytest.approx(np.sqrt(0.01**2 + 0.002**2 + 0.003**2), rel=0.02)


def test_exponents_pool_in_part():
    """Curves whose height follows an exponent that each design knows badly: pooled, the difference is narrower."""

    def open_design(middle):
        log = middle + 0.3 * ndtri(U)
        return Predictive(1 + 0.05 * log, np.full(2048, 1e-4), np.full(2048, 1e-4), log)

    both = [open_design(-0.7), open_design(-0.7)]
    alone = joint_draws(both, {}, alike=np.inf).difference(0, 1).std()
    pooled = joint_draws(both, {}).difference(0, 1).std()
    tight = joint_draws(both, {}, alike=0.05).difference(0, 1).std()
    assert alone == pytest.approx(0.05 * 0.3 * np.sqrt(2), rel=0.03)
    assert tight < pooled < 0.85 * alone
    different = [open_design(-0.4), open_design(-1.0)]
    between = joint_draws(different, {}).difference(0, 1).mean()
    assert 0 < between < joint_draws(different, {}, alike=np.inf).difference(0, 1).mean()


def test_the_same_numbers_every_time():
    first, second = (joint_draws([predictive(), predictive(1.01)], {}).log_loss for _ in range(2))
    assert (first == second).all()


def few_and_noisy():
    """Three widths, two seeds, noise nearly as large as what the law falls by: the sign of a is open."""
    rng = np.random.default_rng(3)
    three = [r for r in make_design(rng, shift=0.0, noise=0.05) if r.width < 70]
    other = [r for r in make_design(rng, shift=0.0, noise=0.004) if r.width < 70]
    return {"noisy": three, "quiet": other}


def test_a_target_is_no_worse_than_every_run_and_pooling_does_not_widen():
    series = few_and_noisy()
    worst = np.log(max(run.loss for run in series["noisy"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pooled, alone = (compare_series(series, TARGET, alike=alike) for alike in (0.2, np.inf))
    assert pooled.calls["noisy", "quiet"].spread < 1.1 * alone.calls["noisy", "quiet"].spread
    own = pooled.designs[0].predictive
    for verdict in (pooled, alone):
        curve = own.centre[verdict.draws.draw[:, 0]]
        assert (curve > worst).mean() < 0.005
    # negative control: with every candidate of the posterior alike, curves far above every run are drawn, more of them
    # when pooled
    design = pooled.designs[0]
    candidates, _ = design.law._posterior._candidates(2048)
    scale = design.law._posterior.scale
    curve = candidates["a"] * np.exp(candidates["b"] * np.log(design.N / scale)) + candidates["c"]
    equal = [replace(own, centre=np.log(curve), exponent=np.log(-candidates["b"])), pooled.designs[1].predictive]
    above = [(equal[0].centre[joint_draws(equal, {}, alike=x).draw[:, 0]] > worst).mean() for x in (0.2, np.inf)]
    assert min(above) > 0.02
