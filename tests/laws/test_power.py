"""PowerLaw: published numbers, invariances, identification, errors."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

from hf_muscaling.errors import ConfigurationError, FitError
from hf_muscaling.laws import ExtrapolationWarning, IdentificationWarning, PowerLaw

pytestmark = pytest.mark.filterwarnings(
    "ignore::hf_muscaling.laws.ExtrapolationWarning", "ignore::hf_muscaling.laws.IdentificationWarning"
)


def fit(n, loss, *args, **options):
    return PowerLaw(*args, **options).fit({"N": n, "loss": loss})


@pytest.mark.parametrize(
    "name, last, params, predicted",
    [
        ("gpt12", 7, (2.070, -0.518, 3.847), 3.979),
        ("gpt32", 8, (0.0768, -0.608, 3.370), 3.381),
        ("gpt64", 8, (0.2486, -0.467, 2.8216), 2.861),
    ],
)
def test_reproduces_nanolm_predictions(nanolm, name, last, params, predicted):
    n, loss = nanolm[name]
    law = fit(n[:last], loss[:last], "least_squares")
    assert list(law.params_) == ["a", "b", "c"]
    np.testing.assert_allclose(list(law.params_.values()), params, rtol=2e-3)
    assert law.predict(N=n[last]).loss == pytest.approx(predicted, abs=6e-4)


@pytest.mark.parametrize("objective", ["bayes", "least_squares", "huber", "lad"])
@pytest.mark.parametrize("b, c", [(-0.1, 0.5), (-0.34, 1.7), (-0.6, 2.9), (-1.2, 3.0)])
def test_recovers_a_noiseless_law(objective, b, c):
    n = np.geomspace(1e6, 2e7, 7)
    law = fit(n, 3 * (n / 1e6) ** b + c, objective)
    expected = 3 * 100.0**b + c
    assert law.params_["b"] == pytest.approx(b, rel=2e-3)
    assert law.predict(N=1e8).loss == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("objective", ["bayes", "least_squares", "huber", "lad"])
def test_units_of_n_do_not_matter(nanolm, objective):
    n, loss = nanolm["gpt12"]
    one, other = (fit(n[:7] * unit, loss[:7], objective) for unit in (1.0, 1e6))
    p, q = one.predict(N=n[7]), other.predict(N=n[7] * 1e6)
    np.testing.assert_allclose([p.loss, p.low, p.high], [q.loss, q.low, q.high], rtol=2e-6)
    assert one.params_["b"] == pytest.approx(other.params_["b"], rel=2e-5)
    assert other.params_["a"] == pytest.approx(one.params_["a"] * 1e6 ** -one.params_["b"], rel=1e-3)


def test_order_of_rows_does_not_matter(nanolm):
    n, loss = nanolm["gpt64"]
    order = np.random.default_rng(0).permutation(8)
    assert fit(n[:8], loss[:8]).predict(N=52.385).loss == pytest.approx(
        fit(n[order], loss[order]).predict(N=52.385).loss, rel=1e-12
    )


def test_seeds_of_one_size_are_used(make_runs):
    """More seeds narrow the interval; averaging them by hand beforehand throws the noise away and must not be as
    good.
    """
    rng = np.random.default_rng(3)
    widths = {seeds: [] for seeds in (1, 6)}
    for _ in range(12):
        for seeds, found in widths.items():
            runs, truth = make_runs(rng, seeds=seeds)
            p = PowerLaw().fit(runs).predict(N=2.7e7)
            found.append(p.high - p.low)
    assert np.median(widths[6]) < 0.75 * np.median(widths[1])


def test_weight_counts_runs():
    rows = {"N": [1e6, 2e6, 4e6, 8e6, 16e6], "loss": [4.0, 3.62, 3.31, 3.12, 2.95]}
    doubled = {name: values + values[-1:] for name, values in rows.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        one = PowerLaw("least_squares").fit(doubled)
        other = PowerLaw("least_squares").fit(rows | {"weight": [1, 1, 1, 1, 2]})
        ignored = PowerLaw("least_squares").fit(doubled | {"weight": [1, 1, 1, 1, 1, 0]})
    assert one.params_["c"] == pytest.approx(other.params_["c"], rel=1e-6)
    assert ignored.params_["c"] == pytest.approx(PowerLaw("least_squares").fit(rows).params_["c"], rel=1e-9)


def test_counts_and_variables():
    n = np.geomspace(1e6, 1e7, 6)
    rows = {"N": n + 5e5, "N_non_embedding": n, "C": 6e9 * n, "loss": 2 + 40 * n**-0.3}
    law = PowerLaw(count="non_embedding").fit(rows)
    assert law.params_["b"] == pytest.approx(-0.3, abs=1e-3) and law.range_["N"][0] == pytest.approx(1e6)
    assert law.settings()["count"] == "non_embedding" and "without embeddings" in law.units["N"]
    assert PowerLaw(variable="C").fit(rows).predict(C=1e17).extrapolation == pytest.approx(1e17 / 6e16)
    assert PowerLaw().fit(rows).params_["b"] != pytest.approx(-0.3, abs=1e-3)


def test_predict_shapes_and_text(nanolm):
    n, loss = nanolm["gpt12"]
    law = fit(n[:7], loss[:7])
    p = law.predict(N=np.array([[200.0, 300.0]]))
    assert p.loss.shape == p.low.shape == p.extrapolation.shape == (1, 2)
    assert np.all(p.low < p.loss) and np.all(p.loss < p.high)
    one = law.predict(N=200)
    assert isinstance(one.loss, float) and one.loss == p.loss[0, 0]
    assert "90 % interval" in str(one) and "1.24 × the largest fitted N" in str(one)
    assert one.loss == pytest.approx(law.params_["a"] * 200 ** law.params_["b"] + law.params_["c"], rel=1e-12)
    wide, narrow = law.predict(N=200, level=0.99), law.predict(N=200, level=0.5)
    assert wide.low < one.low < narrow.low and narrow.high < one.high < wide.high


def test_evaluate(nanolm):
    n, loss = nanolm["gpt64"]
    result = fit(n[:7], loss[:7]).evaluate({"N": n[7:], "loss": loss[7:]})
    assert 0.001 < result.are < 0.05 and result.coverage == 1.0 and "ARE" in str(result)
    wrong = fit(n[:7], loss[:7]).evaluate({"N": n[7:], "loss": loss[7:] * 1.5})
    assert wrong.are > 0.3 and wrong.coverage == 0.0


def test_warns_far_and_says_how_far(nanolm):
    n, loss = nanolm["gpt64"]
    with pytest.warns(ExtrapolationWarning, match="15.3 times beyond the largest fitted N"):
        fit(n[:8], loss[:8]).predict(N=n[8])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        fit(n[:8], loss[:8]).predict(N=n[7] * 3)


def test_warns_when_c_is_open_and_only_then():
    n = np.geomspace(1e6, 4e6, 4)
    with pytest.warns(IdentificationWarning, match="flat direction|bound"):
        fit(n, [4.0, 3.81, 3.66, 3.5])
    with pytest.warns(IdentificationWarning, match="c is at its bound 0"):
        fit(n, [4.0, 3.9, 3.7, 3.3], "least_squares")
    good = np.geomspace(1e6, 1e9, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(good, 2 + 40 * good**-0.34)


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"N": [1e6, 1e6, 1e6], "loss": [3.0, 3.1, 3.2]}, "1 distinct N"),
        ({"N": [1e6, 2e6], "loss": [3.0, 2.9]}, "2 distinct N"),
        ({"N": [1e6, 2e6, 4e6, 8e6], "loss": [3.0, 3.1, 3.2, 3.3]}, "does not fall"),
        ({"N": [1e6], "loss": [3.0]}, "at least 3 sizes"),
    ],
)
@pytest.mark.parametrize("objective", ["bayes", "least_squares", "huber", "lad"])
def test_tables_no_power_law_fits(rows, message, objective):
    with pytest.raises(FitError, match=message):
        PowerLaw(objective).fit(rows)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"objective": "mse"}, "bayes, huber, least_squares, lad"),
        ({"count": "all"}, "total, non_embedding"),
        ({"variable": "W"}, "N, D, C"),
        ({"count": "non_embedding", "variable": "D"}, "count"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ConfigurationError, match=message):
        PowerLaw(**options)


@pytest.mark.parametrize(
    "at, message",
    [
        ({"D": 1e9}, "does not know 'D'"),
        ({}, "needs 'N'"),
        ({"N": -1}, "finite numbers > 0"),
        ({"N": "7B"}, "'7B'"),
        ({"N": True}, "True"),
        ({"N": [1e6, float("nan")]}, "finite"),
        ({"N": []}, "finite"),
        ({"N": 1e6, "level": 1.0}, "between 0 and 1"),
        ({"N": 1e6, "level": "0.9"}, "between 0 and 1"),
    ],
)
def test_bad_predictions(nanolm, at, message):
    with pytest.raises(ConfigurationError, match=message):
        fit(*nanolm["gpt12"]).predict(**at)


def test_unfitted_law_says_so():
    with pytest.raises(FitError, match="not fitted yet"):
        PowerLaw().predict(N=1e6)
    with pytest.raises(FitError, match="not fitted yet"):
        PowerLaw().to_json()


def test_refit_forgets_the_first_table(nanolm):
    law = fit(*nanolm["gpt12"])
    law.predict(N=300)
    n, loss = nanolm["gpt64"]
    assert law.fit({"N": n[:8], "loss": loss[:8]}).predict(N=10.0) == fit(n[:8], loss[:8]).predict(N=10.0)


def test_large_tables_fit_quickly():
    rng = np.random.default_rng(0)
    n = np.exp(rng.uniform(np.log(1e6), np.log(1e9), 200_000))
    loss = (2 + 40 * n**-0.34) * np.exp(0.01 * rng.normal(size=len(n)))
    for objective in ("bayes", "huber"):
        law = PowerLaw(objective).fit({"N": n, "loss": loss})
        assert law.params_["b"] == pytest.approx(-0.34, abs=0.01)


def test_no_torch():
    code = (
        "import sys, hf_muscaling.laws as laws; "
        "laws.PowerLaw().fit({'N': [1, 2, 4, 8], 'loss': [4, 3.5, 3.2, 3.05]}).predict(N=16); "
        "bad = {'torch', 'transformers', 'matplotlib', 'pandas', 'datasets'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
