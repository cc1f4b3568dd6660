"""DownstreamLaw and TwoStage: recovery, intervals, negative controls, the interval of the loss carried through."""

import json
import random
import warnings

import numpy as np
import pytest

from hf_muscaling.errors import ConfigurationError, FitError, RecordError
from hf_muscaling.laws import (
    AnnealingLaw,
    DownstreamLaw,
    ExtrapolationWarning,
    IdentificationWarning,
    PowerLaw,
    ScalingLaw,
    TwoStage,
    constant_schedule,
    cosine_schedule,
    wsd_schedule,
)
from hf_muscaling.laws.schedules import areas


def truth(loss, chance=0.25, ceiling=1.0):
    return chance + (ceiling - chance) / (1 + np.exp(4.0 * (np.asarray(loss) - 2.9)))


def scores(rng=None, runs=4, rows=10, items=1000, lowest=2.75, **kwargs):
    """Checkpoints of several runs; binomial noise when a generator is given."""
    table = {"loss": [], "score": [], "run_id": [], "items": []}
    for r in range(runs):
        loss = np.linspace(3.8, lowest + 0.15 * (runs - 1 - r), rows)
        mean = truth(loss, **kwargs)
        table["score"] += list(mean if rng is None else rng.binomial(items, mean) / items)
        table["loss"] += list(loss)
        table["run_id"] += [f"r{r}"] * rows
        table["items"] += [items] * rows
    return table


@pytest.mark.parametrize("ceiling", [1.0, None])
def test_recovers_the_sigmoid(ceiling):
    law = DownstreamLaw(chance=0.25, ceiling=ceiling).fit(scores(ceiling=1.0 if ceiling else 0.8, lowest=2.3))
    assert law.params_["k"] == pytest.approx(4.0, rel=1e-3) and law.params_["L0"] == pytest.approx(2.9, rel=1e-3)
    assert law.params_["ceiling"] == pytest.approx(ceiling or 0.8, abs=1e-3)


def test_line_leaves_out_rows_at_chance():
    loss = np.linspace(4.0, 2.5, 16)
    table = {"loss": loss, "score": np.maximum(0.25, 1.5 - 0.4 * loss)}
    law = DownstreamLaw("linear", chance=0.25).fit(table)
    assert law.params_["slope"] == pytest.approx(-0.4) and law.params_["intercept"] == pytest.approx(1.5)
    assert law.n_runs_ < 16 and "above chance" in law.selection_
    assert law.score(4.0) == 0.25 and law.score(0.1) == 1.0  # held between chance and ceiling
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blind = DownstreamLaw("linear", chance=0.0).fit(table)
    assert abs(blind.params_["slope"] + 0.4) > 0.02  # what rows at chance would do to the line


def test_chance_comes_from_the_table_too():
    assert DownstreamLaw().fit(scores() | {"chance": [0.25] * 40}).params_["chance"] == 0.25
    assert DownstreamLaw(chance=0.2).fit(scores() | {"chance": [0.25] * 40}).params_["chance"] == 0.2
    with pytest.raises(FitError, match="one task"):
        DownstreamLaw().fit(scores() | {"chance": [0.25] * 39 + [0.5]})


@pytest.mark.slow
@pytest.mark.parametrize(("counted", "ceiling"), [(True, 1.0), (False, 0.85)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_interval_covers_new_scores(counted, ceiling):
    inside, width = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        table = scores(rng, ceiling=ceiling)
        if not counted:
            del table["items"]
        loss = rng.uniform(2.45, 3.3)
        p = DownstreamLaw(chance=0.25).fit(table).predict(loss)
        inside.append(p.low <= rng.binomial(1000, truth(loss, ceiling=ceiling)) / 1000 <= p.high)
        width.append(p.high - p.low)
    assert np.mean(inside) >= 0.75 and np.median(width) < 0.15  # measured: 86 to 92 % of 80


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_wrong_ceiling_misleads_and_the_default_does_not():
    """The negative control: what stating 1 does to a task that levels off at 0.85."""
    inside = {None: [], 1.0: []}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        table, measured = scores(rng, ceiling=0.85), rng.binomial(1000, truth(2.3, ceiling=0.85)) / 1000
        for ceiling, found in inside.items():
            p = DownstreamLaw(chance=0.25, ceiling=ceiling).fit(table).predict(2.3)
            found.append(p.low <= measured <= p.high)
    assert np.mean(inside[1.0]) < 0.3 and np.mean(inside[None]) >= 0.75


def test_score_rises_as_the_loss_falls():
    p = DownstreamLaw(chance=0.25).fit(scores(np.random.default_rng(0))).predict(np.linspace(4, 2, 40))
    assert (np.diff(p.score) > 0).all() and (p.low <= p.score).all() and (p.score <= p.high).all()
    assert p.low.min() >= 0 and p.high.max() <= 1 and (p.extrapolation[p.loss > 2.75] == 0).all()


def test_shuffled_scores_are_called_out():
    """The negative control: the same scores in another order say nothing, and the law says so."""
    rng = np.random.default_rng(0)
    table = scores(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("error", IdentificationWarning)
        good = DownstreamLaw(chance=0.25).fit(table)
    shuffled = table | {"score": list(rng.permutation(table["score"]))}
    with pytest.warns(IdentificationWarning, match="does not follow the loss"):
        law = DownstreamLaw(chance=0.25).fit(shuffled)
    wide, narrow = law.predict(2.6), good.predict(2.6)
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)
    assert "does not follow" in law.summary()


def test_says_what_the_scores_leave_open():
    loss = np.linspace(4.0, 3.0, 12)
    rng = np.random.default_rng(1)
    with pytest.warns(IdentificationWarning, match="above chance"):
        DownstreamLaw(chance=0.25).fit({"loss": loss, "score": 0.25 + 0.005 * rng.normal(size=12)})
    with pytest.raises(FitError, match="need"):
        DownstreamLaw("linear", chance=0.25).fit({"loss": loss, "score": np.full(12, 0.25)})
    with pytest.warns(IdentificationWarning, match="ceiling"):
        DownstreamLaw(chance=0.25, ceiling=None).fit(scores(lowest=3.0))
    with pytest.warns(IdentificationWarning, match="bend"):
        DownstreamLaw("linear", chance=0.25).fit(scores(lowest=2.6))
    with pytest.warns(ExtrapolationWarning, match="ranges below"):
        DownstreamLaw(chance=0.25).fit(scores()).predict(1.2)


def test_solve_inverts():
    for form in ("sigmoid", "linear"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            law = DownstreamLaw(form, chance=0.25).fit(scores())
        loss = law.solve(score=np.array([0.3, 0.6]))
        np.testing.assert_allclose(law.score(loss), [0.3, 0.6])
        assert np.isnan(law.solve(score=0.2))  # below chance


# -- two stages --------------------------------------------------------------------------------------------------------


def first_stage(rng, noise=0.004):
    n = np.repeat(np.geomspace(1e7, 1.6e8, 6), 2)
    return PowerLaw("least_squares").fit({"N": n, "loss": loss_at(n) * np.exp(noise * rng.normal(size=12))})


def loss_at(n):
    return 1.8 + 30 * np.asarray(n) ** -0.2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_both_stages_cover_the_score_of_a_larger_model():
    inside, wider = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        stages = TwoStage(first_stage(rng), DownstreamLaw(chance=0.25).fit(scores(rng)))
        p = stages.predict(N=6.4e8)
        measured = rng.binomial(1000, truth(loss_at(6.4e8) * np.exp(0.004 * rng.normal()))) / 1000
        inside.append(p.low <= measured <= p.high)
        loss = stages.law.predict(N=6.4e8)
        wider.append(p.high - p.low > stages.downstream.score(loss.low) - stages.downstream.score(loss.high))
    assert np.mean(inside) >= 0.75 and all(wider)


def test_the_interval_of_the_loss_is_carried_through():
    rng = np.random.default_rng(3)
    law, down = first_stage(rng), DownstreamLaw(chance=0.25).fit(scores(rng))
    stages, loss = TwoStage(law, down), law.predict(N=6.4e8, level=0.9)
    both, exact, given = stages.predict(N=6.4e8), down.predict(float(loss.loss)), down.predict(loss)
    assert both.score == exact.score == given.score
    assert both.high - both.low > exact.high - exact.low  # the first stage adds to it
    through = down.score(loss.low) - down.score(loss.high)
    assert both.high - both.low > through  # and endpoints alone would leave out the second stage
    assert given.high - given.low == pytest.approx(both.high - both.low, rel=0.25)
    curve = stages.predict(N=np.array([1e8, 6.4e8]), level=0.5)
    assert curve.score.shape == (2,) and curve.score[1] == both.score and curve.at["N"][0] == 1e8
    assert curve.high[1] - curve.low[1] < both.high - both.low
    needed = stages.solve("N", score=0.6)
    assert down.score(law.predict(N=needed).loss) == pytest.approx(0.6, abs=1e-6)
    assert stages.solve("N", score=0.1) == np.inf
    assert "DownstreamLaw" in stages.summary() and "PowerLaw" in stages.summary()


def test_score_at_the_annealed_end():
    rates = {"constant": constant_schedule(1000, 1e-2, 50), "cooled": wsd_schedule(1000, 1e-2, 300, warmup=50)}
    rows = []
    for name, lr in rates.items():
        s1, s2 = areas(lr, 0.99)
        rows += [
            {"run_id": name, "step": i, "lr": lr[i - 1], "loss": 2.6 + 0.8 * s1[i - 1] ** -0.4 - 0.4 * s2[i - 1]}
            for i in range(20, 1001, 20)
        ]
    stages = TwoStage(AnnealingLaw(lambda_=0.99).fit(rows), DownstreamLaw(chance=0.25).fit(scores()))
    p = stages.predict(schedule=cosine_schedule(2000, 1e-2, 0.0, 50), step=2000)
    assert 0.3 < p.low < p.score < p.high < 0.95 and p.at["step"] == 2000


def test_two_stages_need_fitted_laws():
    down = DownstreamLaw(chance=0.25).fit(scores())
    with pytest.raises(FitError, match="not fitted"):
        TwoStage(PowerLaw(), down)
    with pytest.raises(FitError, match="not fitted"):
        TwoStage(first_stage(np.random.default_rng(0)), DownstreamLaw())
    with pytest.raises(ConfigurationError, match="TwoStage"):
        TwoStage(down, down)


# -- bad tables, settings, JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"score": [float("nan")] + [0.3] * 39}, "score"),
        ({"score": [-0.1] + [0.3] * 39}, "score"),
        ({"score": [45.0] + [0.3] * 39}, "Divide percentages"),
        ({"score": ["x"] + [0.3] * 39}, "score"),
        ({"loss": [0.0] + [3.0] * 39}, "loss"),
        ({"loss": [3.0] * 40}, "differ"),
        ({"items": [0] * 40}, "items"),
        ({"task": ["a"] * 20 + ["b"] * 20}, "2 tasks"),
        ({"score": [0.3]}, "lengths"),
    ],
)
def test_bad_tables_are_named(change, match):
    with pytest.raises(FitError, match=match):
        DownstreamLaw(chance=0.25).fit(scores() | change)


def test_too_small_tables():
    for rows in ([], [{"loss": 3.0, "score": 0.4}], {"loss": [3.0, 2.9], "score": [0.4, 0.5]}):
        with pytest.raises(FitError):
            DownstreamLaw().fit(rows)
    with pytest.raises(FitError, match="'score'.*accuracy|Rename"):
        DownstreamLaw().fit({"loss": [3.0], "accuracy": [0.4]})


@pytest.mark.parametrize(
    "settings",
    [
        {"form": "cubic"}, {"chance": 25}, {"chance": -0.1}, {"chance": "0.25"}, {"chance": True}, {"ceiling": 1.5},
        {"chance": 0.5, "ceiling": 0.5}, {"form": None}, {"chance": 1.0},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigurationError):
        DownstreamLaw(**settings)


def test_bad_questions_are_refused():
    law = DownstreamLaw(chance=0.25).fit(scores())
    for loss in (-1.0, 0, "3", float("nan"), [], None):
        with pytest.raises(ConfigurationError, match="loss"):
            law.predict(loss)
    with pytest.raises(ConfigurationError, match="level"):
        law.predict(3.0, level=90)
    with pytest.raises(FitError, match="not fitted"):
        DownstreamLaw().predict(3.0)


@pytest.mark.parametrize("settings", [{}, {"ceiling": None}, {"form": "linear"}])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_round_trip(settings, tmp_path):
    law = DownstreamLaw(chance=0.25, **settings).fit(scores(np.random.default_rng(2)))
    path = tmp_path / "law.json"
    law.to_json(path)
    back = DownstreamLaw.from_json(path)
    assert back.to_json() == law.to_json() and back.summary() == law.summary()
    assert back.predict(2.7) == law.predict(2.7) and str(law.predict(2.7)).startswith("loss 2.7000: score")
    with pytest.raises(RecordError, match="format"):
        ScalingLaw.from_json(path)
    with pytest.raises(RecordError, match="format"):
        DownstreamLaw.from_json(first_stage(np.random.default_rng(0)).to_json())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fuzzed_records_are_refused_cleanly():
    law = DownstreamLaw(chance=0.25, ceiling=1.0).fit(scores(np.random.default_rng(2)))
    for key, value in (("equation", 7), ("units", "nats"), ("units", {"loss": 3})):
        with pytest.raises(RecordError, match=f"'{key}' must be"):
            DownstreamLaw.from_json(json.loads(law.to_json()) | {key: value})
    text, rng, refused = law.to_json(), random.Random(0), 0
    junk = [None, True, -1, 0, 1e308, 5e-324, 10**400, "", "x", [], [1], {}, float("nan"), -0.0]
    for i in range(300):
        if i % 3:
            edited = json.loads(text)
            place, key = edited, rng.choice(list(edited))
            while isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.8:
                place = place[key]
                key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            place[key] = rng.choice(junk)
        else:
            at = rng.randrange(len(text))
            edited = text[:at] + rng.choice(["", "}", "\x00", "9", '"', "-"]) + text[at + rng.randrange(1, 30) :]
        try:
            DownstreamLaw.from_json(edited).predict(2.8)
        except RecordError:
            refused += 1
    assert refused > 200


def test_evaluation_and_plots():
    law = DownstreamLaw(chance=0.25).fit(scores(np.random.default_rng(2)))
    found = law.evaluate(scores(np.random.default_rng(5)))
    assert found.mae < 0.03 and found.coverage > 0.75 and "points" in str(found)
    labels = [t.get_text() for t in law.plot().axes[0].get_legend().get_texts()]
    assert {"extrapolation", "chance", "checkpoints", "90% interval"} == set(labels)
    assert law.plot("residuals").axes[0].get_ylabel() == "measured - fitted, points"
    with pytest.raises(ConfigurationError, match="kind"):
        law.plot("contours")


@pytest.mark.parametrize("items", [None, 1000])
def test_scores_above_the_stated_ceiling_are_pointed_out(items):
    table = scores(np.random.default_rng(4), ceiling=0.8, lowest=1.5)
    if items is None:
        table.pop("items")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DownstreamLaw(chance=0.25, ceiling=0.8).fit(table)  # noise about the true ceiling is none
    with pytest.warns(
        IdentificationWarning, match=r"scores lie above ceiling=0.6, up to 0\.8\d*: leave the ceiling out"
    ):
        DownstreamLaw(chance=0.25, ceiling=0.6).fit(table)


def test_a_chance_above_the_scores_is_pointed_out():
    loss = np.linspace(2.2, 3.8, 12)
    scores = {"loss": loss, "score": 0.25 + 0.7 / (1 + np.exp(4 * (loss - 2.8)))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DownstreamLaw(chance=0.25).fit(scores)
    with pytest.warns(UserWarning, match="6 of 12 scores lie below chance=0.5"):
        DownstreamLaw(chance=0.5).fit(scores)
