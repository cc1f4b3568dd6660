"""Advice after each finished run: it stops when the interval is tight, never before, and says what a run will bring."""

import json

import numpy as np
import pytest

from hf_muscaling import PowerLaw, advise
from hf_muscaling.budget import Assumptions
from hf_muscaling.budget import half_width as budget_half_width
from hf_muscaling.errors import ConfigurationError
from tests.budget.test_plan import TARGET_WIDTH, options, size

NOISE = 0.002


def loss(width, rng, noise=NOISE):
    n = size(width)
    return 3 * (0.3 * (n / size(32)) ** -0.45 + 0.7) * (1 + noise * rng.normal())


def rows(widths, seed=0):
    rng = np.random.default_rng(seed)
    return [{"N": size(w), "loss": loss(w, rng)} for w in widths]


def half_width(runs):
    return budget_half_width(PowerLaw().fit(runs), {"N": size(TARGET_WIDTH)})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_follows_a_series_to_a_tight_interval():
    rng, runs, spent, said = np.random.default_rng(0), [], 0.0, []
    few = options([32, 64, 96, 160, 224])
    for _ in range(30):
        advice = advise(runs, few, size(TARGET_WIDTH), 0.6, tolerance=0.02, draws=12)
        said.append(advice)
        assert advice.spent == pytest.approx(spent)
        if advice.stop:
            break
        runs.append({"N": advice.add.N, "loss": loss(advice.add.width, rng)})
        spent += advice.add.cost
    assert advice.stop and advice.reason == "tight" and "interval is tight enough" in str(advice)
    assert advice.now == pytest.approx(half_width(runs)) and advice.now <= 0.02
    # it went on for as long as the interval was wider
    for k, earlier in enumerate(said[:-1]):
        known = len({row["N"] for row in runs[:k]}) >= 3
        assert not earlier.stop
        assert (earlier.now is not None) == known
        assert earlier.now is None or earlier.now > 0.02
    assert [a.add.width for a in said[:3]] == sorted({a.add.width for a in said[:3]}), "three sizes come first"
    assert spent <= 0.6
    assert "→" in str(said[-2]) and json.dumps(said[-2].to_dict())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_stop_is_said_when_tight_and_only_then():
    runs = rows([32, 48, 64, 96, 128])
    now = half_width(runs)
    at = {"runs": runs, "options": options(), "target": size(TARGET_WIDTH), "budget": 1.0, "draws": 8}
    assert advise(**at, tolerance=now * 1.001).reason == "tight"
    advice = advise(**at, tolerance=now * 0.999)
    assert not advice.stop and advice.now == pytest.approx(now) and advice.after < now
    assert str(advice).startswith(f"add {advice.add.label}")
    broke = advise(**(at | {"budget": 0.128}), tolerance=now * 0.999)
    assert broke.stop and broke.reason == "budget" and "buys no further run" in str(broke)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_expected_interval_is_about_what_comes():
    ratio = []
    for seed in range(4):
        runs = rows([32, 48, 64, 96], seed)
        advice = advise(runs, options(), size(TARGET_WIDTH), 0.5, draws=16)
        assert advice.add is not None
        rng = np.random.default_rng(100 + seed)
        ratio.append(half_width([*runs, {"N": advice.add.N, "loss": loss(advice.add.width, rng)}]) / advice.after)
    assert 0.75 < np.mean(ratio) < 1.3


def test_what_is_paid_is_not_paid_again():
    base = [type(o)(o.width, o.N, o.cost, paid=int(o.width == 32)) for o in options()]
    advice = advise(rows([32]), base, size(TARGET_WIDTH), 0.5, overhead=0.05, draws=4)
    assert advice.spent == pytest.approx(0.05)
    advice = advise(rows([32, 32, 48]), base, size(TARGET_WIDTH), 0.5, overhead=0.05, draws=4)
    assert advice.spent == pytest.approx(0.05 + base[0].cost + base[1].cost)


def test_it_is_refused_what_it_cannot_use():
    with pytest.raises(ConfigurationError, match="budget"):
        advise([], options(), size(TARGET_WIDTH), 0.0)
    with pytest.raises(ConfigurationError, match="No option is smaller"):
        advise([], options(), 1.0, 0.5)
    broke = advise([], options(), size(TARGET_WIDTH), 1e-4, assumptions=Assumptions())
    assert broke.stop and broke.reason == "budget" and broke.now is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_says_the_laws_own_interval():
    runs = {"N": [90_784, 121_320, 231_744], "loss": [5.960439682006836, 5.881518363952637, 5.865558624267578]}
    law, target = PowerLaw(objective="least_squares").fit(runs), 537_264.0
    p = law.predict(N=target)
    own = (p.high - p.low) / (2 * p.loss)
    few = [type(o)(w, N, 0.1) for o, w, N in zip(options(), (32, 40, 64, 96), (*runs["N"], 431_712), strict=False)]
    at = {"runs": runs, "options": few, "target": target, "budget": 1.0, "law": PowerLaw(objective="least_squares")}
    tight = advise(**at, tolerance=1.001 * own, draws=4)
    assert tight.reason == "tight" and tight.now == pytest.approx(own)
    assert advise(**at, tolerance=0.999 * own, draws=4).reason != "tight"
