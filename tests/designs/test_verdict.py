"""Verdicts on runs whose truth is known: a null pair, a difference, pairing, and what does not compare."""

import warnings

import numpy as np
import pytest

from hf_muscaling.designs.crossing import crossing
from hf_muscaling.designs.narrowing import purchases
from hf_muscaling.designs.verdict import compare_series
from hf_muscaling.errors import ConfigurationError, FitError
from tests.designs.synthetic import TARGET, make_design, make_noise


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # far extrapolation is the point
        yield


def call(first, second, **options):
    return compare_series({"first": first, "second": second}, TARGET, **options).calls["first", "second"]


def called(repeats, shift, *, share=None, paired=True, seed=0, noise=0.002, shift_b=0.0):
    """Return how many of so many pairs were called, and how many of these wrongly."""
    rng = np.random.default_rng(seed)
    right = wrong = 0
    for _ in range(repeats):
        shared = make_noise(rng) if share else None
        other = range(2) if share else range(5, 7)
        first = make_design(rng, shared=shared, share=share or 0, noise=noise)
        second = make_design(rng, shift=shift, seeds=other, shared=shared, share=share or 0, noise=noise)
        winner = call(first, second, paired=paired).winner
        right, wrong = right + (winner == "first"), wrong + (winner == "second")
    return right, wrong


def test_a_null_pair_is_too_close_to_call():
    right, wrong = called(25, 0.0)
    assert right + wrong <= 1


def test_the_larger_a_difference_the_more_often_it_is_called_and_never_wrongly():
    rates = [called(12, shift) for shift in (0.005, 0.03, 0.06)]
    assert [wrong for _, wrong in rates] == [0, 0, 0]
    assert rates[0][0] < rates[1][0] < rates[2][0] == 12


def test_an_unpaired_analysis_of_runs_that_share_their_noise_loses_power():
    paired, wrong = called(15, 0.02, share=0.97, noise=0.004)
    unpaired, _ = called(15, 0.02, share=0.97, noise=0.004, paired=False)
    assert wrong == 0
    assert paired >= unpaired + 4


def test_turned_around_it_is_the_same_verdict():
    rng = np.random.default_rng(4)
    first, second = make_design(rng), make_design(rng, shift=0.02)
    there, back = call(first, second), call(second, first)
    assert there.probability == pytest.approx(1 - back.probability, abs=0.01)
    assert there.difference == pytest.approx(-back.difference, abs=1e-3)


def test_several_designs_have_a_matrix_and_a_best():
    rng = np.random.default_rng(5)
    designs = {name: make_design(rng, shift=shift) for name, shift in (("a", 0.0), ("b", 0.005), ("c", 0.2))}
    verdict = compare_series(designs, TARGET)
    assert set(verdict.calls) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert verdict.probability("c", "a") == 1 - verdict.probability("a", "c") < 0.01
    assert sum(verdict.best.values()) == pytest.approx(1)
    assert verdict.best["c"] < 0.01
    assert "probability of being best" in str(verdict)
    assert verdict.to_dict()["N"]["a"] == TARGET


def test_each_design_may_have_a_target_of_its_own():
    rng = np.random.default_rng(6)
    runs = make_design(rng)
    larger = compare_series({"small": runs, "large": runs}, {"small": 1e6, "large": 4e6})
    assert larger.probability("large", "small") > 0.95


def test_curves_that_cross():
    rng = np.random.default_rng(7)
    flat, steep = make_design(rng, noise=1e-4, b=-0.3), make_design(rng, noise=1e-4, b=-0.7)
    verdict = compare_series({"flat": flat, "steep": steep}, TARGET)
    found = crossing(verdict, "flat", "steep")
    assert pytest.approx(3e5, rel=0.1) == found.N
    never = compare_series({"a": flat, "b": make_design(rng, noise=1e-4, b=-0.3, shift=0.05)}, TARGET)
    assert crossing(never, "a", "b").N is None
    assert crossing(never, "a", "b").turned < 0.01


def test_more_proxies_narrow_the_difference_and_a_wider_one_narrows_most():
    rng = np.random.default_rng(8)
    verdict = compare_series({"a": make_design(rng), "b": make_design(rng, shift=0.01)}, TARGET)
    seed, size = purchases(verdict, "a", "b", {"a": 8e5, "b": 8e5})
    assert seed.before == size.before == verdict.calls["a", "b"].spread
    assert seed.after < seed.before
    assert size.after < seed.after
    assert seed.flops == pytest.approx(2 * 6 * 1_256_000 * 1e6)
    assert size.flops == pytest.approx(2 * 2 * 6 * 8e5 * 1e6)
    now = verdict.calls["a", "b"].probability
    assert size.probability > seed.probability > max(now, 1 - now)


def test_a_skewed_difference_that_narrows_is_never_less_sure_and_three_designs_have_one_spread():
    rng = np.random.default_rng(11)
    few = [run for run in make_design(rng, noise=0.02) if run.width < 70]
    verdict = compare_series({"few": few, "b": make_design(rng), "c": make_design(rng)}, TARGET)
    for pair in verdict.calls.values():
        now = max(pair.probability, 1 - pair.probability)
        for bought in purchases(verdict, pair.first, pair.second, {"few": 8e5, "b": 8e5, "c": 8e5}):
            assert bought.before == pair.spread
            assert bought.after < bought.before
            assert bought.probability >= now


def test_the_expected_narrowing_is_what_more_seeds_bring():
    rng = np.random.default_rng(9)
    promised, found = [], []
    for _ in range(8):
        first, second = make_design(rng, seeds=range(3)), make_design(rng, seeds=range(3, 6))
        fewer = [[run for run in runs if run.seed % 3 < 2] for runs in (first, second)]
        verdict = compare_series({"a": fewer[0], "b": fewer[1]}, TARGET)
        promised.append(purchases(verdict, "a", "b", {"a": 8e5, "b": 8e5})[0].after)
        found.append(call(first, second).spread)
    assert np.mean(promised) == pytest.approx(np.mean(found), rel=0.15)


def test_runs_that_do_not_compare_are_refused():
    rng = np.random.default_rng(10)
    runs = make_design(rng)
    with pytest.raises(ConfigurationError, match=r"tokens per run.*a: 1000000; b: 2000000.*as many tokens"):
        compare_series({"a": runs, "b": make_design(rng, D=2 * 10**6)}, TARGET)
    with pytest.raises(ConfigurationError, match=r"tokenizer.*aaa.*bbb.*bits per byte"):
        compare_series(
            {"a": make_design(rng, tokenizer_hash="aaa"), "b": make_design(rng, tokenizer_hash="bbb")}, TARGET
        )
    masked = make_design(rng, settings={"objective": {"name": "masked"}})
    with pytest.raises(ConfigurationError, match=r"objective.*causal.*masked"):
        compare_series({"a": runs, "b": masked}, TARGET)
    with pytest.raises(ConfigurationError, match="two designs or more, got 1"):
        compare_series({"a": runs}, TARGET)
    with pytest.raises(ConfigurationError, match="threshold"):
        compare_series({"a": runs, "b": runs}, TARGET, threshold=0.3)
    with pytest.raises(FitError, match=r"'b' has 2 finished widths"):
        compare_series({"a": runs, "b": [run for run in runs if run.width < 60]}, TARGET)
