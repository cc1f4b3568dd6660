"""LearningRateLaw: recovery, calibrated intervals, what is not identified, edges, JSON; a flat landscape is refused."""

import json
import warnings

import numpy as np
import pytest

from hf_muscaling.errors import ConfigurationError, FitError, RecordError
from hf_muscaling.laws import ExtrapolationWarning, IdentificationWarning, LearningRateLaw
from hf_muscaling.laws.optimum import Landscape, Window, common_skew, dependence

GAMMA, DELTA = 0.3, 0.5


def best(D, B):
    return 0.02 * (D / 3e5) ** -GAMMA * (B / 1024) ** DELTA


def sweep(
    seed=0, noise=0.003, curve=0.03, skew=0.01, seeds=2, scatter=0.0, short=1.0, Ds=(1e5, 2e5, 4e5, 8e5),
    Bs=(256, 1024, 4096), lattice=(-4, -2, -1, 0, 1, 2, 4), shift=0,
):  # fmt: skip
    """Runs around each cell's best rate: noise a run (`short` times that at the shortest horizon), an offset a seed,
    and a side above that is steeper.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for D in Ds:
        for B in Bs:
            there = best(D, B) * np.exp(scatter * rng.normal())
            start = 0.016 * np.sqrt(B / 1024) * 2.0 ** (0.5 * (rng.integers(-1, 2) + shift))
            for s in range(seeds):
                offset = 0.003 * rng.normal()
                for k in lattice:
                    lr = start * 2 ** (k / 2)
                    u = np.log(lr / there)
                    own = noise * (short if D < 2e5 else 1.0) * rng.normal()
                    loss = 4 * (1 + curve * u**2 + skew * max(u, 0) ** 3 + offset + own)
                    rows.append({"D": D, "B": B, "lr": lr, "loss": loss, "seed": s, "run_id": f"{len(rows)}"})
    return rows


def fitted(rows, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)
        return LearningRateLaw(**settings).fit(rows)


def test_recovers_the_exponents_and_the_optima():
    law = fitted(sweep(noise=1e-6, skew=0.0))
    assert law.params_["gamma"] == pytest.approx(GAMMA, abs=1e-3)
    assert law.params_["delta"] == pytest.approx(DELTA, abs=1e-3)
    for cell in law.cells_:
        assert cell.lr == pytest.approx(best(cell.D, cell.B), rel=1e-3)
    assert law.penalty(2) == pytest.approx(0.03 * np.log(2) ** 2, rel=0.01)
    assert law.predict(D=8e5, B=[256, 1024]).lr == pytest.approx(best(8e5, np.array([256, 1024])), rel=1e-2)


def test_a_common_skew_takes_the_bias_away():
    """Losses rise faster above the best rate: plain quadratics put every optimum too low, which the skew repairs."""
    rows = sweep(noise=1e-5, skew=0.02)
    lands = [
        Landscape(*(np.array([r[name] for r in rows if (r["D"], r["B"]) == pair]) for name in ("lr", "loss", "seed")))
        for pair in {(r["D"], r["B"]) for r in rows}
    ]
    lands = [Landscape(np.log(one.log_lr), one.loss, one.seed) for one in lands]
    truth = sorted({np.log(best(r["D"], r["B"])) for r in rows})
    windows = [Window(one) for one in lands]
    plain = sorted(window.quadratic().minimum for window in windows)
    skewed = sorted(window.quadratic(common_skew(windows, np.zeros(12))[0]).minimum for window in windows)
    assert np.mean(np.subtract(plain, truth)) < -0.03
    assert abs(np.mean(np.subtract(skewed, truth))) < 0.5 * abs(np.mean(np.subtract(plain, truth)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"noise": 0.006}, {"scatter": 0.15}, {"curve": 0.012, "skew": 0.004}, {"short": 4.0}]
)
def test_the_intervals_hold_what_they_say(settings):
    inside, repeats = np.zeros(3), 20
    for seed in range(repeats):
        law = fitted(sweep(seed, **settings))
        for k, (name, truth) in enumerate({"gamma": GAMMA, "delta": DELTA}.items()):
            low, high = law.parameter_interval(name)
            inside[k] += low <= truth <= high
        with pytest.warns(ExtrapolationWarning, match="outside the fitted range"):
            p = law.predict(D=1.6e6, B=1024)
        there = best(1.6e6, 1024) * np.exp(settings.get("scatter", 0) * np.random.default_rng(1000 + seed).normal())
        inside[2] += p.low <= there <= p.high
    assert (inside >= 0.7 * repeats).all(), inside  # 90 % stated; below 14 of 20 has a chance under 1 %


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_flat_landscape_is_not_identified(seeds):
    """The negative control: no dependence on the rate gives no exponent, whatever the noise looks like."""
    for seed in range(10):
        with pytest.raises(FitError, match="[Nn]ot identified"):
            fitted(sweep(seed, curve=0.0, skew=0.0, seeds=seeds))
    law = fitted(sweep(seeds=seeds))  # and the same table with a minimum does
    assert law.parameter_interval("gamma")[0] < GAMMA < law.parameter_interval("gamma")[1]


def test_chance_is_what_it_says():
    """Flat tables give small probabilities as rarely as they say."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        lands = [Landscape(np.tile(np.arange(5.0), 2), rng.normal(4, 0.01, 10), np.repeat([0, 1], 5)) for _ in range(4)]
        found.append(dependence(lands))
    assert np.mean(np.array(found) < 0.1) < 0.25 and 0.35 < np.mean(found) < 0.65


def test_an_optimum_at_the_edge_is_left_out_by_name():
    rows = [r for r in sweep(noise=0.001) if not (r["D"] == 8e5 and r["B"] == 256 and r["lr"] < best(8e5, 256))]
    with pytest.warns(IdentificationWarning, match=r"D = 8e\+05, B = 256: the lowest loss is at the smallest rate"):
        law = LearningRateLaw().fit(rows)
    lost = [c for c in law.cells_ if c.lr is None]
    assert [(c.D, c.B) for c in lost] == [(pytest.approx(8e5), pytest.approx(256))]
    assert law.params_["gamma"] == pytest.approx(GAMMA, abs=0.03) and "smallest rate tried" in law.summary()
    with pytest.raises(FitError, match="largest rate tried"):  # everywhere: nothing is left
        fitted(sweep(lattice=(-8, -7, -6, -5), noise=0.0005))


def test_an_exponent_that_is_not_varied_stays_unknown():
    law = fitted(sweep(Bs=(1024,)))
    assert "delta" not in law.params_ and "delta is unknown" in law.summary()
    with pytest.raises(ConfigurationError, match="square-root rule"):
        law.predict(D=2e5, B=4096)
    stated = fitted(sweep(Bs=(1024,)), delta=0.5)
    with pytest.warns(ExtrapolationWarning, match="B lies 4 times"):
        ratio = stated.predict(D=2e5, B=4096).lr / stated.predict(D=2e5, B=1024).lr
    assert ratio == pytest.approx(2.0) and stated.parameter_interval("delta") == (0.5, 0.5)
    assert "delta = 0.5 (stated)" in stated.summary()
    with pytest.raises(FitError, match="move together"):
        fitted([r for r in sweep(Bs=(250, 500, 1000, 2000)) if r["B"] * 400 == r["D"]])


def test_stating_both_exponents_leaves_the_level():
    law = fitted(sweep(), gamma=GAMMA, delta=DELTA)
    low, high = law.parameter_interval("lr0")
    assert low < best(law.params_["D0"], law.params_["B0"]) < high and law._dof == 11


def test_checkpoints_of_a_run_count_once_with_their_peak_rate():
    rows = sweep(noise=0.001)
    curves = [
        r | {"D": r["D"] * share, "loss": r["loss"] + (1 - share), "lr": r["lr"] * (1.01 - share)}
        for r in rows
        for share in (0.01, 0.5, 1.0)
    ]
    assert fitted(curves).params_["gamma"] == pytest.approx(fitted(rows).params_["gamma"], abs=1e-6)


def test_json_round_trip_and_refusals(tmp_path):
    law = fitted(sweep())
    path = tmp_path / "law.json"
    text = law.to_json(path)
    for source in (path, str(path), text, json.loads(text)):
        back = LearningRateLaw.from_json(source)
        assert back.summary() == law.summary() and back.to_json() == text
    for key, value in (("equation", 7), ("units", "nats"), ("units", {"lr": 3})):
        with pytest.raises(RecordError, match=f"'{key}' must be"):
            LearningRateLaw.from_json(json.loads(text) | {key: value})
        assert back.predict(D=4e5, B=512, level=0.8) == law.predict(D=4e5, B=512, level=0.8)
    for change, said in (
        (lambda d: d["params"].update(gamma=0.9), "gamma"),
        (lambda d: d["rows"]["loss"].__setitem__(slice(0, 20), [3.0] * 20), "params do not go|do not give"),
        (lambda d: d["rows"].pop("lr"), "lr"),
        (lambda d: d["settings"].update(gamma="x"), "gamma"),
        (lambda d: d.update(format="hf_muscaling.law"), "format"),
        (lambda d: d["params"].pop("lr0"), "params"),
        (lambda d: d["params"].update(lr0=float("nan")), "lr0"),
    ):
        record = json.loads(text)
        change(record)
        with pytest.raises(RecordError, match=said):
            LearningRateLaw.from_json(record)
    with pytest.raises(RecordError):
        LearningRateLaw.from_json('{"format": ')


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda rows: [r | {"lr": 0.0} for r in rows], FitError, "peak learning rate"),
        (lambda rows: [r | {"loss": float("nan")} for r in rows], FitError, "loss"),
        (lambda rows: [{k: v for k, v in r.items() if k != "B"} for r in rows], FitError, "'B'"),
        (lambda rows: [r for r in rows if r["lr"] > 0.02], FitError, "three learning rates|[Nn]ot identified"),
        (
            lambda rows: [r for r in rows if 0.8 < r["lr"] / best(r["D"], r["B"]) < 3 and not r["seed"]],
            FitError,
            "nothing",
        ),
        (lambda rows: [], FitError, "no rows|'lr'"),
    ],
)
def test_refuses_a_table_it_cannot_fit(change, error, said):
    with pytest.raises(error, match=said):
        fitted(change(sweep(Ds=(1e5, 2e5), Bs=(256,))))


def test_refuses_impossible_arguments():
    for wrong in ({"gamma": "0.3"}, {"delta": float("inf")}, {"gamma": True}):
        with pytest.raises(ConfigurationError):
            LearningRateLaw(**wrong)
    law = LearningRateLaw()
    with pytest.raises(FitError, match="not fitted"):
        law.predict(D=1, B=1)
    law = fitted(sweep())
    for wrong in (
        {"D": -1, "B": 1},
        {"D": "x", "B": 1},
        {"D": [1, 2], "B": [1, 2, 3]},
        {"D": 1e5, "B": 1e3, "level": 2},
    ):
        with pytest.raises(ConfigurationError):
            law.predict(**wrong)
    with pytest.raises(ConfigurationError, match="parameters"):
        law.parameter_interval("alpha")
    with pytest.raises(ConfigurationError, match="landscapes"):
        law.plot("residuals")


def test_prediction_reads_well_and_warns_far_away():
    law = fitted(sweep())
    with pytest.warns(ExtrapolationWarning, match="D lies 10 times"):
        p = law.predict(D=8e6, B=1024)
    assert "10 × outside" in str(p) and p.beyond == {"D": pytest.approx(10.0), "B": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = law.predict(D=3e5, B=1024)
    assert "outside" not in str(inside) and (p.high / p.low) > (inside.high / inside.low)


def test_plots_show_what_was_fitted():
    law = fitted(sweep())
    figure = law.plot()
    axes = figure.axes[0]
    assert "learning rate" in axes.get_ylabel() and "D" in axes.get_xlabel()
    assert len([line for line in axes.get_lines() if "B = " in str(line.get_label())]) == 3
    panels = law.plot("landscapes").axes
    assert [axes.get_title() for axes in panels] == [f"B = {b:,} tokens per step" for b in (256, 1024, 4096)]
