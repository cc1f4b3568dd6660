"""Priors, fixed parameters, identification, profile likelihood and intervals of the laws in several variables."""

import contextlib
import json

import numpy as np
import pytest
from scipy.optimize import minimize

from hf_muscaling.errors import ConfigurationError, FitError, RecordError
from hf_muscaling.laws import (
    ChinchillaLaw,
    Family,
    IdentificationWarning,
    KaplanLaw,
    PowerLaw,
    ScalingLaw,
    load_families,
    pooled_prior,
    save_families,
)
from hf_muscaling.laws.uncertainty import flat_direction

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def runs(noise=0.003, seed=0, sizes=7, horizons=6, span=60):
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 5e7 * span, sizes), np.geomspace(1e9, 6e10, horizons)))
    rng = np.random.default_rng(seed)
    return {"N": n, "D": d, "loss": ChinchillaLaw.loss(n, d, **TRUTH) * np.exp(noise * rng.normal(size=len(n)))}


def one_model(n=2.8e9, noise=0.002):
    d = np.linspace(2e9, 6e10, 40)
    loss = ChinchillaLaw.loss(n, d, **TRUTH) * np.exp(noise * np.random.default_rng(1).normal(size=40))
    return {"N": np.full(40, n), "D": d, "loss": loss, "run_id": ["r"] * 40}


@pytest.mark.parametrize("objective", ["bayes", "huber"])
def test_never_worse_than_a_multi_start(objective):
    """Nelder-Mead from a grid of starts on the very objective the law reports; a bad start is the control."""
    law = ChinchillaLaw(objective).fit(runs(0.02, sizes=5, horizons=4))
    columns = law._columns

    def value(t):
        params = {"E": np.exp(t[0]), "A": np.exp(t[1]), "B": np.exp(t[2]), "alpha": abs(t[3]), "beta": abs(t[4])}
        found = law._score(columns, params)
        return found if np.isfinite(found) else 1e9

    ends = []
    for alpha, beta in ((0.2, 0.2), (0.2, 0.6), (0.6, 0.2), (0.4, 0.4)):
        start = [np.log(1.5), np.log(0.5) + alpha * np.log(3e8), np.log(0.5) + beta * np.log(7e9), alpha, beta]
        for _ in range(2):
            end = minimize(value, start, method="Nelder-Mead", options={"maxiter": 2500, "xatol": 1e-9})
            start = end.x
        ends.append(end.fun)
    assert law.objective_value_ <= min(ends) + 1e-6 * abs(min(ends))
    assert value([0.0, 1.0, 1.0, 0.1, 0.1]) > law.objective_value_


def test_prior_pulls_only_where_the_runs_are_silent():
    strong = ChinchillaLaw(prior={"alpha": (0.6, 0.01)}).fit(one_model() | {"N": np.repeat([2.7e9, 2.8e9], 20)})
    assert strong.params_["alpha"] == pytest.approx(0.6, abs=0.02)
    told = ChinchillaLaw(prior={"alpha": (0.45, 0.1)}).fit(runs(0.0005))
    assert told.params_["alpha"] == pytest.approx(0.35, abs=0.02)
    assert "prior alpha 0.45 ± 0.1, beta 0.36 ± 0.16" in told.summary()
    assert ChinchillaLaw("huber").prior_ == {} and set(ChinchillaLaw(fixed={"alpha": 0.3}).prior_) == {"beta"}


@pytest.mark.parametrize("objective", ["bayes", "huber", "least_squares", "lad"])
def test_fixed_parameters_stay(objective):
    law = ChinchillaLaw(objective, fixed={"alpha": 0.35, "A": 480.0}).fit(runs(0.002))
    assert law.params_["alpha"] == 0.35 and law.params_["A"] == 480.0
    assert law.params_["E"] == pytest.approx(1.8, rel=0.03)
    assert law.predict(N=1e10, D=1e11).low < ChinchillaLaw.loss(1e10, 1e11, **TRUTH) < law.predict(N=1e10, D=1e11).high
    kaplan = KaplanLaw(objective, fixed={"N_c": 1e13}).fit(runs(0.002))
    assert kaplan.params_["N_c"] == 1e13


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"fixed": {"gamma": 1}}, "gamma"),
        ({"fixed": {"alpha": -1}}, "alpha"),
        ({"fixed": {"alpha": "1"}}, "alpha"),
        ({"prior": {"alpha": 0.3}}, "pair"),
        ({"prior": {"alpha": (0.3, 0)}}, "> 0"),
        ({"prior": {"alpha": (0.3, 0.1)}, "fixed": {"alpha": 0.3}}, "both"),
        ({"prior": {"alpha": (0.3, 0.1)}, "objective": "huber"}, "bayes"),
        ({"objective": "mse"}, "mse"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ChinchillaLaw(**settings)
    with pytest.raises(ConfigurationError, match="no prior on N_c"):
        KaplanLaw(prior={"N_c": (1e13, 1.0)})


def test_unidentified_fits_say_so():
    """Three nearly equal sizes tell E and alpha together only; a grid of sizes and horizons tells everything."""
    with pytest.warns(IdentificationWarning, match="not identified by these runs: from .E = "):
        law = ChinchillaLaw("huber").fit(runs(0.004, sizes=3, span=1.3))
    along = flat_direction(law)
    assert along.size > 1 and "not identified" in law.summary()
    assert along.high["E"] > 1.5 * along.low["E"] or along.high["alpha"] > 1.5 * along.low["alpha"]
    grid = ChinchillaLaw("huber").fit(runs(0.002))
    assert flat_direction(grid).size < 1 and "not identified" not in grid.summary()


def test_along_the_flat_direction_the_fit_hardly_changes():
    """A step along it moves the losses a tenth, at most, of what the same step in E alone does."""
    law = ChinchillaLaw("least_squares").fit(runs(0.004, seed=3, sizes=3, span=1.3))
    problem, origin, theta = law._fitted
    along = flat_direction(law)
    low, high = law._internal({k: [along.low[k], along.high[k]] for k in along.low}, origin)
    unit = law._material(theta)
    step = (high - low) / unit
    step *= 0.05 / np.linalg.norm(step)

    def moved(by):
        return np.abs(problem.log_loss((theta + by * unit)[None]) - problem.log_loss(theta[None])).max()

    assert moved(step) < 0.1 * moved(np.array([0.05, 0, 0, 0, 0]))


def test_profile_intervals_hold_the_truth():
    """90 % intervals of alpha and E under normal noise, 10 tables, least squares: 18 of 20 expected."""
    inside, widths = [], []
    for seed in range(10):
        law = ChinchillaLaw("least_squares").fit(runs(0.004, seed=seed))
        for name in ("alpha", "E"):
            low, high = law.parameter_interval(name, 0.9)
            assert low < law.params_[name] < high
            inside.append(low <= TRUTH[name] <= high)
            widths.append((high - low) / TRUTH[name])
    assert sum(inside) >= 14 and np.median(widths) < 0.3
    law = ChinchillaLaw("huber").fit(runs(0.004))
    narrow, wide = law.parameter_interval("beta", 0.5), law.parameter_interval("beta", 0.95)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    with pytest.raises(ConfigurationError, match="gamma"):
        law.parameter_interval("gamma")


def test_interval_of_curves_resamples_whole_runs():
    """Errors shared by all checkpoints of a run: treating rows as independent gives intervals far too narrow."""
    rng = np.random.default_rng(2)
    rows = []
    for i, n in enumerate(np.geomspace(5e7, 3e9, 8)):
        d = 20 * n * np.linspace(0.1, 1, 15)
        loss = ChinchillaLaw.loss(n, d, **TRUTH) * np.exp(0.01 * rng.normal())
        rows += [{"N": n, "D": x, "loss": y, "run_id": i} for x, y in zip(d, loss, strict=True)]
    law = ChinchillaLaw("least_squares").fit(rows)
    alone = ChinchillaLaw("least_squares", window=0).fit([{k: r[k] for k in ("N", "D", "loss")} for r in rows])
    whole, apart = law.bootstrap(200)["beta"].std(), alone.bootstrap(200)["beta"].std()
    assert whole > 1.5 * apart


def test_one_model_and_borrowed_parameters():
    """A single model cannot give the law; with A and alpha of another family it predicts one three times larger."""
    other = Family.of(ChinchillaLaw("huber").fit(runs(0.002)), "other")
    with pytest.raises(FitError, match="borrow"):
        ChinchillaLaw("huber").fit(one_model())
    law = ChinchillaLaw(fixed=other.fixed("A", "alpha")).fit(one_model())
    p = law.predict(N=8.4e9, D=1.8e11)
    truth = ChinchillaLaw.loss(8.4e9, 1.8e11, **TRUTH)
    assert p.loss == pytest.approx(truth, rel=0.02) and p.low < truth < p.high
    prior = pooled_prior([other], "alpha", "A")
    soft = ChinchillaLaw(prior=prior).fit(one_model())
    assert soft.predict(N=8.4e9, D=1.8e11).loss == pytest.approx(truth, rel=0.03)


@pytest.fixture(scope="module")
def families():
    return [Family.of(ChinchillaLaw("huber").fit(runs(0.003, seed)), f"f{seed}") for seed in (0, 1)]


def test_families_are_stored_and_pooled(families, tmp_path):
    save_families(families, tmp_path / "families.json")
    assert load_families(tmp_path / "families.json") == families
    prior = pooled_prior(families, "alpha", "E")
    values = [f.params["alpha"] for f in families]
    assert prior["alpha"][0] == pytest.approx(np.mean(values)) and prior["alpha"][1] >= np.std(values, ddof=1)
    for wrong, said in [
        ({f.name: f for f in families}, "list of Family, not 'dict'. Pass a list of its values"),
        (families[0], "list of Family, not 'Family'"),
        ("families.json", "list of Family, not 'str'"),
        ([families[0], {"name": "x"}], "found {'name': 'x'} in it.*Family.of"),
    ]:
        with pytest.raises(ConfigurationError, match=said):
            save_families(wrong, tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()
    with pytest.raises(ConfigurationError, match="gamma"):
        families[0].fixed("gamma")
    with pytest.raises(ConfigurationError, match="at least one"):
        pooled_prior([], "alpha")
    with pytest.raises(FitError, match="PowerLaw"):
        Family.of(PowerLaw().fit({"N": [1e6, 2e6, 4e6, 8e6], "loss": [4, 3.6, 3.3, 3.1]}), "x")


def test_fuzzed_records_are_refused_cleanly(families, tmp_path):
    """Whatever a record's values are turned into: it loads, or a `RecordError` says why."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    save_families(families, tmp_path / "families.json")
    law = ChinchillaLaw(prior={"alpha": (0.36, 0.06)}, fixed={"beta": 0.37}).fit(runs(sizes=4, horizons=3))
    records = [json.loads((tmp_path / "families.json").read_text()), json.loads(law.to_json())]
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    values = leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=3), leaves, max_size=3)

    def paths(node, at=()):
        yield at
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in items:
            yield from paths(child, (*at, key))

    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
    @hypothesis.given(st.data())
    def fuzz(data):
        which = data.draw(st.integers(0, 1))
        record = json.loads(json.dumps(records[which]))
        path = data.draw(st.sampled_from([at for at in paths(record) if at]))
        node = record
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = data.draw(values)
        with contextlib.suppress(RecordError):
            (load_families if which == 0 else ScalingLaw.from_json)(record)

    fuzz()


@pytest.mark.parametrize("law", [ChinchillaLaw, KaplanLaw])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss": [3.0, float("nan")]}, "'loss', row 1"),
        ({"loss": [3.0, -2.0]}, "> 0"),
        ({"loss": ["3.0", "2.0"]}, "expected a number"),
        ({"N": [1e6, 1e6]}, "distinct N"),
        ({"N": [1e6], "D": [1e9], "loss": [3.0]}, "distinct N"),
    ],
)
def test_bad_tables(law, change, message):
    with pytest.raises(FitError, match=message):
        law("huber").fit({"N": [1e6, 2e6], "D": [1e9, 2e9], "loss": [3.0, 2.9]} | change)


def test_mixed_units_and_copies_warn():
    table = runs(sizes=4, horizons=3)
    with pytest.warns(UserWarning, match="plain units"):
        ChinchillaLaw("huber").fit(table | {"D": table["D"] / 1e9})
    doubled = {name: np.concatenate([values, values[:2]]) for name, values in table.items()}
    with pytest.warns(UserWarning, match="repeat"):
        ChinchillaLaw("huber").fit(doubled)


def test_draws_for_large_tables_agree_with_refits(monkeypatch):
    """Where a table is too large to refit, the normal approximation stands in; here both are at hand."""
    law = ChinchillaLaw("least_squares").fit(runs(0.004, sizes=12, horizons=10))
    refits = law._resample(300, 0)
    monkeypatch.setattr("hf_muscaling.laws.bootstrap.AT_ONCE", 1)
    normal = law._resample(300, 0)
    np.testing.assert_allclose(normal.std(0), refits.std(0), rtol=0.35)
    assert len(law.bootstrap(3)["E"]) == 3


@pytest.mark.slow
def test_a_million_rows():
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(np.log(5e7), np.log(3e9), 10**6)), np.exp(rng.uniform(np.log(1e9), np.log(6e10), 10**6))
    loss = ChinchillaLaw.loss(n, d, **TRUTH) * np.exp(0.01 * rng.normal(size=10**6))
    law = ChinchillaLaw("huber").fit({"N": n, "D": d, "loss": loss})
    assert law.params_["alpha"] == pytest.approx(0.35, rel=0.02)
    p = law.predict(N=6e9, D=1.2e11)
    assert p.low < ChinchillaLaw.loss(6e9, 1.2e11, **TRUTH) < p.high


@pytest.mark.slow
def test_coverage_on_synthetic_truth():
    """New runs at 1 to 4 times the largest N and D, three noise levels: 93 % inside over 150 tables; here 60."""
    rng = np.random.default_rng(7)
    inside, widths = [], []
    for i in range(60):
        noise, sizes = ((0.004, 7), (0.002, 5), (0.01, 9))[i % 3]
        table = runs(noise, seed=100 + i, sizes=sizes, horizons=5)
        law = ChinchillaLaw().fit(table)
        at = np.array([1.0, 2.0, 4.0])
        n, d = at * table["N"].max(), at * table["D"].max()
        measured = ChinchillaLaw.loss(n, d, **TRUTH) * np.exp(noise * rng.normal(size=3))
        p = law.predict(N=n, D=d)
        inside.append((p.low <= measured) & (measured <= p.high))
        widths.append((p.high - p.low) / (2 * p.loss) / noise)
    assert 0.85 <= np.mean(inside) <= 0.97
    assert np.median(widths) < 5  # half-widths in units of the noise; 1.645 would be the noise alone
