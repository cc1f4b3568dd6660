"""The expected interval against the intervals that simulated series really get, and designs that can tell nothing."""

import warnings

import numpy as np
import pytest

from hf_muscaling import PowerLaw, expected_interval
from hf_muscaling.budget import Assumptions, PowerBelief, half_width
from hf_muscaling.budget.expected import simulate
from hf_muscaling.errors import ConfigurationError

SIZES, TARGET = np.geomspace(1e6, 8e6, 5), 4e7
NONE = {"N": np.empty(0), "loss": np.empty(0)}


def known(noise=0.002, misfit=0.3, draws=32, b=-0.4, floor=0.7):
    """A belief in which the curve and the noise are known: the same in every draw."""
    one = np.ones(draws)
    return PowerBelief((1 - floor) * one, b * one, floor * one, noise * one, misfit * one, 0.0015 * one, 1e6)


def realised(sizes, seeds, noise=0.002, misfit=0.3, series=40, b=-0.4, floor=0.7):
    """The mean half-width of `predict` on series drawn without the package's simulation."""
    rng, found = np.random.default_rng(5), []
    for _ in range(series):
        away = np.log(sizes.max() / sizes)
        delta = noise * np.sqrt(misfit) * away * rng.normal(size=len(sizes))
        loss = ((1 - floor) * (sizes / 1e6) ** b + floor)[:, None] * (
            1 + delta[:, None] + noise * rng.normal(size=(len(sizes), seeds))
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            law = PowerLaw().fit({"N": np.repeat(sizes, seeds), "loss": loss.ravel()})
            p = law.predict(N=TARGET)
        found.append((p.high - p.low) / (2 * p.loss))
    return np.mean(found)


@pytest.mark.parametrize(("seeds", "noise"), [(1, 0.002), (3, 0.002), (2, 0.005)])
def test_it_is_what_series_drawn_from_the_belief_get(seeds, noise):
    expected = expected_interval(known(noise), SIZES, seeds, TARGET)
    found = realised(SIZES, seeds, noise)
    assert expected.half_width == pytest.approx(found, rel=0.15)
    assert expected.low < expected.half_width < expected.high
    # negative control: the expectation follows from the noise, another noise is found out
    assert expected_interval(known(3 * noise), SIZES, seeds, TARGET).half_width > 1.3 * found


def test_finished_runs_stay_part_of_the_series():
    sizes = SIZES[:4]
    rng = np.random.default_rng(2)
    rows = {"N": np.repeat(sizes, 2), "loss": np.repeat(0.3 * (sizes / 1e6) ** -0.4 + 0.7, 2)}
    rows["loss"] = rows["loss"] * (1 + 0.002 * rng.normal(size=8))
    law = PowerLaw().fit(rows)
    now, p = half_width(law, {"N": TARGET}), law.predict(N=TARGET)
    nothing = expected_interval(law, [2e7], 0, TARGET, draws=4)
    assert nothing.half_width == pytest.approx(now, rel=1e-9) and nothing.error == pytest.approx(0, abs=1e-12)
    assert expected_interval(law, [2e7], 1, TARGET).half_width < 0.7 * now
    assert law.predict(N=TARGET).high == p.high, "the law that was asked is left as it was"
    # the runs that are there count: afresh, the same new sizes tell less
    fresh = expected_interval(law, [1e6, 8e6, 2e7], 1, TARGET, keep=False, draws=32).half_width
    assert expected_interval(law, [1e6, 8e6, 2e7], 1, TARGET, draws=32).half_width < fresh


def test_a_finished_size_keeps_its_own_deviation():
    belief = known(noise=0.002, misfit=30.0, draws=400)
    points = {"N": np.array([1e6, 8e6])}
    curve = belief.loss(points)[0]
    finished = {"N": np.array([1e6] * 4), "loss": np.full(4, 1.02 * curve[0])}
    more = simulate(belief, points, np.array([1, 1]), finished)
    assert np.mean(more[:, 0] / curve[0]) == pytest.approx(1.02, abs=0.002)
    fresh = simulate(belief, points, np.array([1, 1]), NONE)
    assert np.mean(fresh[:, 0] / curve[0]) == pytest.approx(1.0, abs=0.005)
    assert np.std(more[:, 0]) < 0.5 * np.std(fresh[:, 0])
    np.testing.assert_array_equal(more[:, 1], fresh[:, 1])


def test_more_seeds_larger_sizes_and_less_noise_narrow_it():
    by_seeds = [expected_interval(None, SIZES, n, TARGET, draws=32).half_width for n in (1, 2, 8)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    assert by_seeds[-1] < 0.8 * by_seeds[0]
    nearer = expected_interval(None, np.geomspace(1e6, 2e7, 5), 1, TARGET, draws=32).half_width
    assert nearer < 0.8 * by_seeds[0]
    quiet = expected_interval(Assumptions(noise=(5e-4, 1e-3)), SIZES, 1, TARGET, draws=32).half_width
    assert quiet < by_seeds[0]


def test_the_same_question_has_the_same_answer():
    assert expected_interval(None, SIZES, 2, TARGET, draws=8) == expected_interval(None, SIZES, 2, TARGET, draws=8)


def test_belief_of_a_law_is_its_posterior():
    rows = {"N": SIZES, "loss": 3 * (0.3 * (SIZES / 1e6) ** -0.4 + 0.7)}
    law = PowerLaw().fit(rows)
    belief = PowerBelief.measured(law, draws=256)
    middle = np.median(belief.loss({"N": np.array([TARGET])}))
    assert middle == pytest.approx(law.predict(N=TARGET).loss, rel=0.01)
    assert set(belief.sigma) <= set(law.interval_data().sigma)


@pytest.mark.parametrize(
    ("sizes", "seeds", "message"),
    [
        ([1e6] * 3, 5, "1 distinct sizes gives no interval"),
        ([1e6, 2e6], 8, "2 distinct sizes"),
        ([1e6, 2e6, 4e6], [1, 1, 0], "2 distinct sizes"),
        ([1e6, 2e6, -4e6], 1, "must be positive"),
        ([1e6, 2e6, 4e6], [1, 1, 1.5], "whole numbers"),
    ],
)
def test_designs_that_tell_nothing_are_refused(sizes, seeds, message):
    with pytest.raises(ConfigurationError, match=message):
        expected_interval(None, sizes, seeds, TARGET)


def test_beliefs_are_checked():
    with pytest.raises(ConfigurationError, match="fitted law"):
        expected_interval(PowerLaw(), SIZES, 1, TARGET)
    with pytest.raises(ConfigurationError, match=r"not a ChinchillaLaw|not 3"):
        expected_interval(3, SIZES, 1, TARGET)
    with pytest.raises(ConfigurationError, match="noise"):
        Assumptions(noise=(0.01, 0.001))
    with pytest.raises(ConfigurationError, match="floor"):
        Assumptions(floor=(0.5, 1.0))
    with pytest.raises(ConfigurationError, match="level"):
        expected_interval(None, SIZES, 1, TARGET, level=1.0)


def test_the_sizes_of_a_law_without_embeddings():
    n = SIZES
    law = PowerLaw(count="non_embedding").fit({"N_non_embedding": n, "loss": 0.3 * (n / 1e6) ** -0.4 + 0.7})
    assert expected_interval(law, [2e7], 1, TARGET, draws=4).half_width < 0.2
