"""The interval holds what it promises, on truth that is a power law and on published truth that is not quite."""

import time

import numpy as np
import pytest
from scipy.special import ndtr

from hf_muscaling.laws import ChinchillaLaw, PowerLaw, intervals
from hf_muscaling.laws.intervals import drift_quantiles, mixture_interval, mixture_intervals, rolling_origin
from hf_muscaling.laws.posterior import (
    CENTRE,
    DEGREES,
    FLATTEST,
    NOISE,
    QUIET,
    RHO,
    SCALE,
    STEEPEST,
    Groups,
    Posterior,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TRUTHS = [{"b": -0.34, "floor": 0.6}, {"b": -0.5, "floor": 0.85}, {"b": -0.25, "floor": 0.5}, {"b": -0.8, "floor": 0.9}]


@pytest.fixture(scope="module")
def coverage(make_runs):
    """Of 280 new runs at 3 × the largest size: share in the 90 % interval, share in the parameters' spread alone,
    half-width.
    """
    rng = np.random.default_rng(11)
    found = []
    for truth in TRUTHS:
        for _ in range(70):
            runs, loss = make_runs(rng, **truth)
            law, target = PowerLaw().fit(runs), 3 * runs["N"].max()
            measured = loss(target) * np.exp(0.003 * rng.normal())
            p = law.predict(N=target)
            low, high = np.quantile(law._curves(target), (0.05, 0.95))
            found.append((p.low <= measured <= p.high, low <= measured <= high, (p.high - p.low) / 2 / measured))
    inside, alone, width = np.array(found).T
    return inside.mean(), alone.mean(), np.median(width)


def test_coverage_on_synthetic_truth(coverage):
    """7 sizes × 2 seeds over 9×, noise 0.3 %: the 90 % interval holds 86 to 97 % (280 runs tell that to ± 3 %)."""
    inside, _, width = coverage
    assert 0.86 <= inside <= 0.97 and width < 0.015


def test_without_noise_and_drift_it_undercovers(coverage):
    """The control: the parameters' spread alone is not a prediction interval."""
    inside, alone, _ = coverage
    assert alone < 0.88 and alone < inside - 0.03


@pytest.mark.parametrize("objective", ["bayes", "least_squares", "huber"])
@pytest.mark.parametrize("name, last", [("gpt32", 7), ("gpt64", 5)])
def test_few_proxies_of_nanolm_do_not_mislead(nanolm, objective, name, last):
    """Widths ≤ 1024 (32 layers) and ≤ 768 (64 layers): the point is 6 % and 8 % off, the interval holds the truth,
    3.41 and 2.883.
    """
    n, loss = nanolm[name]
    p = PowerLaw(objective).fit({"N": n[:last], "loss": loss[:last]}).predict(N=n[8])
    assert p.low < loss[8] < p.high
    near = PowerLaw(objective).fit({"N": n[:last], "loss": loss[:last]}).predict(N=n[last - 1])
    assert near.high - near.low < 0.5 * (p.high - p.low)


def test_parameters_alone_would_have_misled(nanolm):
    """The control of the test above, on the 32-layer table."""
    n, loss = nanolm["gpt32"]
    law = PowerLaw().fit({"N": n[:7], "loss": loss[:7]})
    assert np.quantile(law._curves(n[8]), 0.95) < loss[8]


def test_published_targets_inside(nanolm):
    """Every published μP target from every window of at least five sizes: at least 80 % inside."""
    inside = []
    for name in ("gpt12", "gpt32", "gpt64", "bert12"):
        n, loss = nanolm[name]
        for k in range(5, len(n)):
            inside.append(
                PowerLaw().fit({"N": n[:k], "loss": loss[:k]}).evaluate({"N": n[-1:], "loss": loss[-1:]}).coverage
            )
    assert np.mean(inside) >= 0.8


def test_interval_grows_with_distance(make_runs):
    runs, _ = make_runs(np.random.default_rng(0))
    p = PowerLaw().fit(runs).predict(N=9e6 * np.array([1, 3, 10, 30, 100.0]))
    assert np.all(np.diff(p.high - p.low) > 0)


def test_draws_agree_with_the_grid(make_runs):
    runs, _ = make_runs(np.random.default_rng(5))
    posterior = Posterior(Groups.of(runs["N"], runs["loss"]))
    draws = posterior.draws(4096)
    assert np.mean(draws["b"]) == pytest.approx(np.sum(posterior.weight * posterior.b), rel=0.02)
    assert np.all(draws["c"] >= 0) and np.all(draws["a"] > 0) and np.all(draws["b"] < 0)
    assert np.median(draws["sigma"]) == pytest.approx(0.003, rel=0.4)


def by_force(groups, target, n=1_500_000):
    """P(the curve at the target lies above every loss) and the median log sigma, by weighing draws of the prior."""
    rng = np.random.default_rng(0)
    b = -CENTRE * np.exp(SCALE * rng.standard_t(DEGREES, n))
    b = b[(b > -STEEPEST) & (b < -FLATTEST)]
    n = len(b)
    sigma, rho = NOISE / np.abs(rng.normal(size=n)), rng.choice(RHO, n)
    scale = np.exp(np.average(np.log(groups.x), weights=groups.runs))
    low, high = rng.uniform(0, 1.3 * groups.loss.max(), (2, n))
    log = -groups.n * np.log(sigma) - groups.within / 2 / sigma**2
    for x, loss, runs in zip(groups.x, groups.loss, groups.runs, strict=True):
        variance = 1 / runs + rho * np.log(groups.x.max() / x) ** 2
        residual = (low * (x / scale) ** b + high) / loss - 1
        log = log - 0.5 * residual**2 / sigma**2 / variance - 0.5 * np.log(variance)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    above = low * (target / scale) ** b + high > groups.loss.max()
    order = np.argsort(sigma)
    return weight[above].sum(), np.log(sigma[order][np.searchsorted(np.cumsum(weight[order]), 0.5)])


def test_draws_are_the_posterior_where_few_runs_hardly_fall():
    """Three sizes, two seeds, noise nearly as large as the fall: against a brute-force posterior."""
    x, rng = np.repeat([1e6, 2e6, 4e6], 2), np.random.default_rng(1)
    groups = Groups.of(x, 3 * (x / 1e6) ** -0.01 * np.exp(0.02 * rng.normal(size=6)))
    above, sigma = by_force(groups, 1.2e7)
    posterior = Posterior(groups)

    def share(draws):
        curve = draws["a"] * np.exp(draws["b"] * np.log(1.2e7 / posterior.scale)) + draws["c"]
        return np.mean(curve > groups.loss.max())

    draws = posterior.draws(4096)
    assert share(draws) == pytest.approx(above, abs=0.01)
    assert np.median(np.log(draws["sigma"])) == pytest.approx(sigma, abs=0.05)
    # the control: candidates that are not weighed
    assert share(posterior._candidates(4096)[0]) > above + 0.05


def test_three_single_runs(make_runs):
    """100 series: nothing measures sigma, and the interval holds new runs all the same; with next to no prior of the
    noise, the control, it does not.
    """
    rng, held = np.random.default_rng(7), {NOISE: [], QUIET: []}
    for k in range(100):
        runs, loss = make_runs(rng, **TRUTHS[k % 4], noise=0.003, sizes=3, seeds=1)
        measured = loss(2.7e7) * np.exp(0.003 * rng.normal())
        for prior, found in held.items():
            law = PowerLaw().fit(runs)
            law._posterior = Posterior(Groups.of(runs["N"], runs["loss"]), noise=prior)
            p = law.predict(N=2.7e7)
            found.append(p.low <= measured <= p.high)
    assert np.mean(held[NOISE]) >= 0.88 > 0.8 > np.mean(held[QUIET])


def test_noise_between_seeds_is_measured(make_runs):
    for noise in (0.001, 0.01):
        runs, _ = make_runs(np.random.default_rng(2), noise=noise, seeds=6)
        assert np.median(Posterior(Groups.of(runs["N"], runs["loss"])).draws(512)["sigma"]) == pytest.approx(
            noise, rel=0.25
        )


def test_rolling_origin_sees_a_bend():
    """A table whose law bends at large sizes gets a larger tau than one that does not."""
    sizes, u = np.geomspace(1, 64, 8), np.array([0.5])

    def tau(bend):
        def score(k):
            distance = np.log(sizes[k:] / sizes[k - 1])
            return bend * distance**2, np.full(len(distance), 0.002)

        return drift_quantiles(rolling_origin(sizes, score), u)[0]

    assert tau(0.02) > 5 * tau(0.0)
    assert drift_quantiles(rolling_origin(sizes[:4], lambda k: (np.empty(0), np.empty(0))), u)[0] == pytest.approx(
        0.0015, rel=0.05
    )


def test_mixture_interval_of_one_normal():
    low, high = mixture_interval(np.array([1.0]), np.array([0.1]), 0.9)
    assert (low, high) == pytest.approx((1 - 0.16449, 1 + 0.16449), abs=1e-4)


def bisected(centre, deviation, level):
    """The same ends by 60 halvings, as the page in the browser finds them."""
    ends = []
    for probability in (0.5 * (1 - level), 0.5 * (1 + level)):
        low, high = np.min(centre - 12 * deviation), np.max(centre + 12 * deviation)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = ndtr((middle - centre) / deviation).mean() < probability
            low, high = (middle, high) if below else (low, middle)
        ends.append(0.5 * (low + high))
    return ends


MIXTURES = {
    "one normal": lambda rng, m: (np.full(m, rng.normal()), np.full(m, 0.01)),
    "draws": lambda rng, m: (0.01 * rng.standard_t(2, size=m), 0.003 / np.sqrt(rng.chisquare(2, m) / 2)),
    "two heaps": lambda rng, m: (np.where(rng.random(m) < rng.random(), -1, 1.0), np.full(m, 0.003)),
    "one tail": lambda rng, m: (rng.lognormal(size=m), np.full(m, 0.1)),
    "all scales": lambda rng, m: (0.01 * rng.normal(size=m), 10.0 ** rng.uniform(-5, 0, m)),
    "a floor": lambda rng, m: (np.where(np.arange(m) < 3, -690, 0.8) + 0.01 * rng.normal(size=m), np.full(m, 0.003)),
}


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", MIXTURES)
def test_many_mixtures_at_once_are_bisected_ones(name, level, monkeypatch):
    rng = np.random.default_rng(1)
    centre, deviation = (np.array(v) for v in zip(*(MIXTURES[name](rng, 401) for _ in range(12)), strict=True))
    expected = np.array([bisected(*one, level) for one in zip(centre, deviation, strict=True)]).T
    found = np.array(mixture_interval(centre, deviation, level))
    np.testing.assert_allclose(np.exp(found), np.exp(expected), rtol=1e-10)
    monkeypatch.setattr(intervals, "AT_ONCE", 5 * 401)
    blocks = mixture_intervals(lambda rows: (centre[rows], deviation[rows]), 12, 401, level)
    np.testing.assert_array_equal(blocks, found)
    monkeypatch.setattr(intervals, "TURNS", 1)  # the control: the start is not the answer
    if name != "one normal":
        rough = np.array(mixture_interval(centre, deviation, level))
        assert np.abs(np.exp(rough) / np.exp(expected) - 1).max() > 1e-6


def test_arrays_are_predicted_as_their_points(make_runs):
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 3e9, 5), np.geomspace(1e9, 6e10, 4)))
    runs = {"N": n, "D": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37}
    one = make_runs(np.random.default_rng(0))[0]
    for law, table in ((ChinchillaLaw(), runs), (PowerLaw(), one), (PowerLaw(variable="D"), {"D": n, **runs})):
        law.fit(table)
        at = {name: np.geomspace(3e6, 3e10, 700) for name in law.variables}
        many = law.predict(**at)
        for i in (0, 299, 699):
            alone = law.predict(**{name: values[i] for name, values in at.items()})
            assert alone.low == pytest.approx(many.low[i], rel=1e-12)
            assert alone.high == pytest.approx(many.high[i], rel=1e-12)


def test_a_large_array_is_predicted_in_seconds():
    """100,000 points took 120 s by bisection of one after the other, and take 5."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 3e9, 5), np.geomspace(1e9, 6e10, 4)))
    law = ChinchillaLaw().fit({"N": n, "D": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37})
    sizes, began = np.geomspace(1e8, 1e10, 20_000), time.process_time()
    law.predict(N=sizes, D=20 * sizes)
    assert time.process_time() - began < 8
