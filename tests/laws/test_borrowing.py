"""Parameters from elsewhere: what one size or one horizon needs, and published constants scored on one's runs."""

import numpy as np
import pytest

from hf_muscaling.errors import FitError
from hf_muscaling.laws import ChinchillaLaw, KaplanLaw, KaplanStepLaw, ScalingLaw

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
KAPLAN = {"N_c": 8.8e13, "alpha_N": 0.076, "D_c": 5.4e13, "alpha_D": 0.095}
STEP = {"N_c": 1e14, "alpha_N": 0.076, "S_c": 3e3, "alpha_S": 0.67, "B_star": 2e8, "alpha_B": 0.21}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def table(n, d, law=ChinchillaLaw, truth=TRUTH):
    n, d = (v.ravel() for v in np.meshgrid(n, d))
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=len(n)))
    return {"N": n, "D": d, "loss": law.loss(n, d, **truth) * noise}


SIZES, HORIZONS = np.geomspace(5e7, 3e9, 8), np.geomspace(1e9, 6e10, 8)
ONE_D, ONE_N = table(SIZES, [2e10]), table([5e8], HORIZONS)


@pytest.mark.parametrize(
    "runs, borrowed",
    [
        (ONE_D, {"fixed": {"beta": 0.37}}),
        (ONE_D, {"fixed": {"B": 2100.0}}),
        (ONE_D, {"prior": {"beta": (0.37, 0.05)}}),
        (ONE_D, {"objective": "huber", "fixed": {"beta": 0.37}}),
        (ONE_D | {"D": 2e10 * (1 + 1e-5 * np.arange(8))}, {"fixed": {"beta": 0.37}}),
        (ONE_N, {"fixed": {"alpha": 0.35}}),
        (ONE_N, {"prior": {"alpha": (0.35, 0.05)}}),
    ],
)
def test_an_exponent_alone_does_not_split_one_number(runs, borrowed):
    with pytest.raises(FitError, match=r"is one number there.*borrow.*('beta': …, 'B': …|'alpha': …, 'A': …)"):
        ChinchillaLaw(**borrowed).fit(runs)


def test_a_floor_is_no_constant_while_the_other_term_is_open():
    few = table([5e8], [1e9, 3e10])
    with pytest.raises(FitError, match="at least 3 distinct D, the table has 2"):
        ChinchillaLaw("huber", fixed={"E": 1.8, "alpha": 0.35}).fit(few)  # A + B/D^beta: three letters, two numbers
    ChinchillaLaw("huber", fixed={"E": 1.8, "alpha": 0.35, "beta": 0.37}).fit(few)


@pytest.mark.parametrize(
    "borrowed",
    [
        {"fixed": {"beta": 0.37, "B": 2100.0}},
        {"fixed": {"beta": 0.37, "E": 1.8}},
        {"fixed": {"B": 2100.0, "E": 1.8}},
        {"fixed": {"beta": 0.37}, "prior": {"B": (2100.0, 0.2)}},
        {"prior": {"beta": (0.37, 0.02), "E": (1.8, 0.05)}},
    ],
)
def test_two_letters_of_three_give_other_horizons(borrowed):
    p = ChinchillaLaw(**borrowed).fit(ONE_D).predict(N=3e9, D=2e12)
    assert p.low < ChinchillaLaw.loss(3e9, 2e12, **TRUTH) < p.high
    assert p.high - p.low < 0.5


def test_one_term_of_two_equal_exponents():
    runs = {"N": SIZES, "D": 20 * SIZES, "loss": ChinchillaLaw.loss(SIZES, 20 * SIZES, **TRUTH)}
    alike = {"alpha": 0.36, "beta": 0.36}
    with pytest.raises(FitError, match="one term, which does not tell A and B apart"):
        ChinchillaLaw(fixed=alike).fit(runs)
    ChinchillaLaw(fixed=alike | {"B": 2100.0}).fit(runs)
    ChinchillaLaw(fixed=alike).fit(table(SIZES, HORIZONS))
    alike = {"alpha_N": 0.09, "alpha_D": 0.09}
    with pytest.raises(FitError, match="one term, which does not tell N_c and D_c apart"):
        KaplanLaw(fixed=alike).fit(runs)
    KaplanLaw(fixed=alike | {"D_c": 5.4e13}).fit(runs)
    KaplanLaw(fixed=alike).fit(table(SIZES, HORIZONS))


def test_runs_at_too_few_points_count_once():
    twice = {name: np.tile(v[[0, 63]], 4) for name, v in table(SIZES, HORIZONS).items()}
    with pytest.raises(FitError, match=r"8 rows at 2 distinct \(N, D\)"):
        ChinchillaLaw().fit(twice)
    with pytest.raises(FitError, match=r"8 rows at 2 distinct \(N, D\)"):
        KaplanLaw().fit(twice)


def test_kaplans_exponent_is_enough_where_the_law_has_no_floor():
    runs = table(SIZES, [2e10], KaplanLaw, KAPLAN)
    p = KaplanLaw(fixed={"alpha_D": 0.095}).fit(runs).predict(N=3e9, D=1e11)
    assert p.low < KaplanLaw.loss(3e9, 1e11, **KAPLAN) < p.high
    with pytest.raises(FitError, match=r"borrow from another family: fixed=\{'alpha_D': …, 'D_c': …\}"):
        KaplanLaw().fit(runs)
    point = {name: np.tile(v[:1], 6) for name, v in runs.items()}
    with pytest.raises(FitError, match=r"6 rows at 1 distinct \(N, D\)"):
        KaplanLaw(fixed={"alpha_D": 0.095, "alpha_N": 0.076}).fit(point)


def test_one_size_with_a_floor_needs_both_letters():
    s, b = (v.ravel() for v in np.meshgrid(np.geomspace(500, 2e4, 6), [3e4, 1e5, 1e6]))
    runs = {"N": np.full(18, 1e7), "S": s, "B": b, "loss": KaplanStepLaw.loss(1e7, s, b, **STEP)}
    with pytest.raises(FitError, match=r"fixed=\{'alpha_N': …, 'N_c': …\}"):
        KaplanStepLaw(irreducible=True, fixed={"alpha_N": 0.076}).fit(runs)
    assert KaplanStepLaw(fixed={"alpha_N": 0.076}).fit(runs).params_["E"] == 0  # "auto" leaves out what it cannot tell
    KaplanStepLaw(irreducible=True, fixed={"alpha_N": 0.076, "N_c": 1e14}).fit(runs)


@pytest.mark.parametrize("objective", ["bayes", "huber", "lad", "least_squares"])
@pytest.mark.parametrize("law, truth", [(ChinchillaLaw, TRUTH), (KaplanLaw, KAPLAN)])
def test_published_constants_are_scored(law, truth, objective):
    runs = table(SIZES, HORIZONS, law, truth)
    scored = law(objective, fixed=truth).fit(runs)
    assert scored.params_ == truth
    p, measured = scored.predict(N=7e9, D=1e11), law.loss(7e9, 1e11, **truth)
    assert p.loss == pytest.approx(measured) and p.low < measured < p.high
    assert 0.005 < (p.high - p.low) / p.loss < 0.02  # 0.3 % of noise
    assert "noise of one run 0.3" in scored.summary() or "noise of one run 0.2" in scored.summary()
    assert ScalingLaw.from_json(scored.to_json()).predict(N=7e9, D=1e11) == p
    wrong = law(objective, fixed=truth | ({"E": 1.7} if law is ChinchillaLaw else {"N_c": 6e13})).fit(runs)
    off = wrong.predict(N=7e9, D=1e11)
    assert off.high - off.low > 2 * (p.high - p.low)  # the residuals say that these constants are others'
