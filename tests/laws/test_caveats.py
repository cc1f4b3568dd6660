"""What the laws say beside their numbers: unequal horizons, losses that rise, repeated data, points below the runs."""

import json
import warnings

import numpy as np
import pytest

from hf_muscaling.errors import ConfigurationError, FitError, RecordError
from hf_muscaling.laws import (
    ChinchillaLaw,
    ExtrapolationWarning,
    IdentificationWarning,
    KaplanLaw,
    KaplanStepLaw,
    PowerLaw,
    ScalingLaw,
    evaluate_extrapolation,
)
from hf_muscaling.laws.caveats import horizons

N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 3e10, 5)))
NOISE = np.exp(0.002 * np.random.default_rng(0).normal(size=25))
RUNS = {"N": N, "D": D, "loss": (1.8 + 480 / N**0.35 + 2100 / D**0.37) * NOISE}


def messages(law, table):
    """Every warning of a fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        law.fit(table)
    return [str(w.message) for w in caught]


class TestHorizons:
    n = np.geomspace(1e7, 1e9, 7)

    def table(self, d, **columns):
        return {"N": self.n, "D": d, "loss": 1.8 + 480 / self.n**0.35 + 2100 / np.asarray(d) ** 0.37} | columns

    def test_a_law_in_n_says_that_runs_differ_in_tokens(self):
        law = PowerLaw()
        said = messages(law, self.table(np.geomspace(1e9, 4e9, 7)[[3, 0, 5, 1, 6, 2, 4]]))
        assert any("different numbers of tokens (D from 1e+09 to 4e+09)" in m for m in said)
        assert "D from 1e+09 to 4e+09" in law.summary()

    def test_tokens_in_proportion_to_size_are_named(self):
        (said,) = [m for m in messages(PowerLaw(), self.table(20 * self.n)) if "D/N" in m]
        assert "D/N = 20" in said

    def test_one_horizon_says_nothing(self):
        for d in (np.full(7, 2e9), 2e9 * (1 + 0.01 * np.arange(7))):
            law = PowerLaw()
            assert not [m for m in messages(law, self.table(d)) if "D" in m]
            assert "D from" not in law.selection_

    def test_of_curves_the_last_row_counts(self):
        d = np.tile(np.linspace(1e8, 2e9, 10), 7)
        n = np.repeat(self.n, 10)
        table = {"N": n, "D": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37, "run_id": [f"r{v:.3g}" for v in n]}
        assert not [m for m in messages(PowerLaw(), table) if "horizon" in m]
        table["D"] = d * (1 + (n > 5e7))
        assert [m for m in messages(PowerLaw(), table) if "horizon" in m]

    def test_a_law_in_d_says_that_runs_differ_in_size(self):
        d = np.geomspace(1e9, 1e11, 7)
        table = {"D": d, "N": np.geomspace(1e8, 1e7, 7), "loss": 2 + 900 / d**0.3}
        assert any("of different sizes" in m for m in messages(PowerLaw(variable="D"), table))
        assert not [m for m in messages(PowerLaw(variable="C"), table | {"C": 6 * table["N"] * d}) if "N" in m]

    def test_a_column_without_numbers_is_no_horizon(self):
        assert not [m for m in messages(PowerLaw(), self.table(np.full(7, 1e9)) | {"D": [None] * 7}) if "D" in m]


class TestRising:
    up = RUNS | {"loss": (2 + 0.05 * np.log(N / 1e7) + 2100 / D**0.37) * NOISE}

    @pytest.mark.parametrize("law", [ChinchillaLaw(), ChinchillaLaw("huber"), ChinchillaLaw("lad"), KaplanLaw()])
    def test_a_loss_that_rises_with_size_is_said(self, law):
        with pytest.warns(IdentificationWarning, match="rises with N in these runs"):
            law.fit(self.up)
        assert "rises with N" in law.summary() and "rises with D" not in law.summary()
        found = law.predict(N=1e8, D=1e10)
        assert found.low < found.loss < found.high

    def test_so_is_one_that_rises_with_tokens(self):
        with pytest.warns(IdentificationWarning, match="rises with D in these runs"):
            ChinchillaLaw().fit(RUNS | {"loss": (2 + 0.05 * np.log(D / 1e9) + 480 / N**0.35) * NOISE})

    def test_where_no_end_is_finite_the_error_says_what_to_check(self):
        with pytest.raises(Exception, match="N_c overflows.*does not fall"):
            KaplanLaw("huber").fit(self.up)

    @pytest.mark.parametrize("seed", range(4))
    def test_noise_is_no_rise(self, seed):
        rng = np.random.default_rng(seed)
        flat = RUNS | {"loss": (2 + 2100 / D**0.37) * np.exp(0.005 * rng.normal(size=25))}
        for table in (RUNS, flat):
            assert not [m for m in messages(ChinchillaLaw(), table) if "rises" in m]

    def test_tokens_in_proportion_to_size_cannot_be_told_apart(self):
        line = {"N": N[:5], "D": 20 * N[:5], "loss": np.array([2.0, 2.1, 2.2, 2.3, 2.4])}
        assert not [m for m in messages(ChinchillaLaw(), line) if "rises" in m]

    def test_steps_and_batches(self):
        n, s, b = (v.ravel() for v in np.meshgrid([1e6, 1e7, 6e7], [500.0, 2e3, 8e3], [3e4, 1e5, 1e6]))
        truth = {"N_c": 1e14, "alpha_N": 0.076, "S_c": 3e3, "alpha_S": 0.67, "B_star": 2e8, "alpha_B": 0.21}
        table = {"N": n, "S": s, "B": b, "loss": KaplanStepLaw.loss(n, s, b, **truth)}
        assert not [m for m in messages(KaplanStepLaw(), table) if "rises" in m]
        table["loss"] = table["loss"] * (n / 1e6) ** 0.2
        assert [m for m in messages(KaplanStepLaw(), table) if "rises with N" in m]


class TestBelow:
    def test_far_below_the_smallest_run_warns(self):
        law = ChinchillaLaw().fit(RUNS)
        with pytest.warns(ExtrapolationWarning, match="D lies 20 times below the smallest fitted D"):
            shown = str(law.predict(N=1e8, D=5e7))
        assert "20 times below the smallest fitted D" in shown and "0.1 × the largest fitted N" in shown

    def test_near_the_runs_is_quiet(self):
        law = ChinchillaLaw().fit(RUNS)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ExtrapolationWarning)
            near = law.predict(N=[2e6, 1e9], D=[5e8, 2e11])
        assert near.below["N"][0] == pytest.approx(5) and near.beyond["D"][1] == pytest.approx(2e11 / 3e10)
        assert "5 times below the smallest fitted N" in str(near).splitlines()[0]


def test_repeated_data_are_named():
    law = ChinchillaLaw()
    said = messages(law, RUNS | {"unique_tokens": np.minimum(D, 5e9)})
    assert any("15 of 25 rows repeat their data, up to 6 times" in m for m in said)
    assert "repeated up to 6 times" in law.selection_
    assert not [m for m in messages(ChinchillaLaw(), RUNS | {"unique_tokens": D}) if "repeat" in m]
    assert not [m for m in messages(ChinchillaLaw(), RUNS | {"unique_tokens": [""] * 25}) if "repeat" in m]


@pytest.mark.parametrize("law", [ChinchillaLaw(), KaplanLaw()])
def test_lines_of_equal_loss(law):
    law.fit(RUNS)
    (axes,) = law.plot("contours").axes
    lines = axes.collections[0]
    for value, path in zip(lines.levels, lines.get_paths(), strict=True):
        on = np.asarray(law.loss(*path.vertices.T, **law.params_))
        np.testing.assert_allclose(on, value, rtol=2e-3)
    best = next(line for line in axes.lines if "lowest loss" in str(line.get_label()))
    n, d = best.get_data()
    for shift in (0.9, 1.1):  # any other N for the same compute does worse
        assert (law.loss(n * shift, d / shift, **law.params_) > law.loss(n, d, **law.params_)).all()


def test_a_table_that_does_not_name_its_runs_says_how_it_was_read():
    law = ChinchillaLaw().fit(RUNS)
    assert "each counted as a run of its own" in law.summary()
    named = ChinchillaLaw().fit(RUNS | {"run_id": [f"r{i}" for i in range(25)]})
    few = ChinchillaLaw().fit({name: values[::2] for name, values in RUNS.items()})
    assert "run of its own" not in named.selection_ + few.selection_


def test_columns_that_no_law_reads_cannot_break_a_fit():
    n = np.geomspace(1e7, 1e9, 7)
    table = {"N": n, "loss": 1.8 + 480 / n**0.35}
    for odd in ([1e9], ["many"] * 7, [None, 1e9, 2e9, "x", 3e9, np.nan, np.inf], [[1.0, 2.0]] * 7):
        PowerLaw().fit(table | {"D": odd, "unique_tokens": odd})
        ChinchillaLaw().fit(RUNS | {"unique_tokens": odd})
    PowerLaw().fit(table | {"D": np.geomspace(1e9, 2e9, 7), "run_id": ["a"]})


def test_a_million_rows_are_read_at_once():
    n = np.tile(np.geomspace(1e7, 1e9, 10), 100_000)
    d = np.tile(np.geomspace(1e9, 1e10, 1000), 1000)
    said, words = horizons({"N": n, "D": d, "loss": n}, "N")
    assert "different numbers of tokens" in said[0] and words == "; D from 1e+09 to 1e+10"


class TestDoubtfulTables:
    n = np.geomspace(5e7, 3e9, 6)

    def test_three_single_runs_leave_no_residual(self):
        few = PowerLaw().fit({"N": self.n[:3], "loss": 2 + 40 * self.n[:3] ** -0.25})
        assert any("leave no residual" in m for m in few.caveats()) and "leave no residual" in few.summary()
        for n in (self.n, np.repeat(self.n[:3], 2)):
            noise = np.exp(0.002 * np.random.default_rng(0).normal(size=6))
            law = PowerLaw().fit({"N": n, "loss": (2 + 40 * n**-0.25) * noise})
            assert not any("leave no residual" in m for m in law.caveats())

    def mixed(self):
        return RUNS | {"N": np.where(np.arange(25) % 2, N / 1e6, N)}

    def test_mixed_units_are_said_in_fit_and_evaluation(self):
        law = ChinchillaLaw()
        said = messages(law, self.mixed())
        assert any("N jumps from 1000 to 1e+07" in m for m in said) and "jumps" in law.summary()
        assert any("Half of the rows lie more than" in m for m in said)
        with pytest.warns(UserWarning, match="N jumps from 1000"):
            evaluate_extrapolation(self.mixed(), ChinchillaLaw, level=None)

    def test_large_residuals_are_said_without_a_jump(self):
        wild = RUNS | {"loss": RUNS["loss"] * np.exp(0.5 * np.random.default_rng(0).normal(size=25))}
        for use in (ChinchillaLaw().fit, lambda t: evaluate_extrapolation(t, ChinchillaLaw, level=None)):
            with pytest.warns(IdentificationWarning, match="Half of the rows lie more than"):
                use(wild)

    def test_good_tables_are_left_alone(self, nanolm):
        tables = [(PowerLaw(), {"N": n, "loss": loss}) for n, loss in nanolm.values()]
        tables.append((PowerLaw(), {"N": np.array([3e4, 6e4, 1e5, 7e9]), "loss": np.array([5.0, 4.6, 4.4, 2.2])}))
        for law, table in [*tables, (ChinchillaLaw(), RUNS)]:
            assert not [m for m in messages(law, table) if "jumps" in m or "Half of" in m]

    def test_equal_compute_is_no_copy(self):
        n, d = np.repeat([1e8, 2e8, 4e8], 3), np.tile([1e9, 2e9, 4e9], 3)
        runs = {"N": n, "D": d, "loss": [3.2, 3.0, 2.9, 3.0, 2.8, 2.7, 2.9, 2.7, 2.6]}
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            found = evaluate_extrapolation(runs, ChinchillaLaw, "largest_compute", level=None)
        assert "distinct C" in str(found)


def test_the_legend_tells_line_band_and_runs_apart():
    n = np.geomspace(1e6, 2e7, 6)
    axes = PowerLaw().fit({"N": n, "loss": 2 + 40 * n**-0.25}).plot().axes[0]
    assert {t.get_text() for t in axes.get_legend().get_texts()} >= {"fit", "90% interval", "runs"}
    assert axes.lines[0].get_label() == "fit"
    law = ChinchillaLaw("huber").fit(RUNS)
    said = [t.get_text() for t in law.plot().axes[0].get_legend().get_texts()]
    assert said.count("90% interval") == 1
    labels = [t.get_text() for t in law.plot("residuals").legends[0].get_texts()]
    assert labels[-1] != labels[0] and any(" to " in label for label in labels)


def test_a_law_says_which_letter_its_class_forgot():
    class Bare(ChinchillaLaw):
        bounds = {"E": (0.0, np.inf)}

    with pytest.raises(ConfigurationError, match="Bare.bounds lacks 'A'.*Define bounds in the class"):
        Bare()
    Bare.bounds = ChinchillaLaw.bounds | {"gamma": (0.0, 1.0)}
    with pytest.raises(ConfigurationError, match="Bare.bounds names 'gamma'"):
        Bare()


def test_a_stored_law_of_an_unknown_class_asks_for_its_module():
    record = json.loads(PowerLaw().fit({"N": N[:5], "loss": 2 + 40 * N[:5] ** -0.25}).to_json())
    with pytest.raises(RecordError, match="Import the module that defines the class first"):
        ScalingLaw.from_json(record | {"law": "MyOwnLaw"})
    with pytest.raises(RecordError, match="expected .*ChinchillaLaw"):
        ChinchillaLaw.from_json(record)


def test_a_size_that_has_no_effect_divides_by_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = KaplanStepLaw.loss(1e6, 1e3, 1e5, 0.0, 0.1, 3e3, 0.6, 2e8, 0.21, 1.5)
    assert np.isfinite(found)


class TestDivergedRun:
    """A run of the largest size at twice the law's loss pulls the fit, so that it stays within a factor of two."""

    def table(self, sizes, horizons, factor=2.0, noise=0.003, seed=0):
        n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 3e9, sizes), np.geomspace(1e9, 6e10, horizons)))
        loss = 1.8 + 480 / n**0.35 + 2100 / d**0.37
        loss = loss * np.exp(noise * np.random.default_rng(seed).standard_t(3, size=len(n)))
        loss[np.argmax(n * d)] *= factor
        return {"N": n, "D": d, "loss": loss}

    @pytest.mark.parametrize("law", [ChinchillaLaw, KaplanLaw])
    @pytest.mark.parametrize("objective", ["bayes", "huber"])
    @pytest.mark.parametrize("sizes, horizons", [(5, 4), (7, 6)])
    def test_is_named(self, law, objective, sizes, horizons):
        fitted = law(objective)
        said = messages(fitted, self.table(sizes, horizons))
        assert any("The run at N = 3e+09, D = 6e+10 has loss 4." in m for m in said)
        if (sizes, objective) == (5, "bayes"):  # the fit is pulled to less than a factor of two
            assert fitted.loss(3e9, 6e10, **fitted.params_) > 2.26 and any("if it diverged" in m for m in said)

    def test_heavy_tails_are_none(self):
        for seed in range(5):
            table = self.table(5, 4, factor=1.0, noise=0.01, seed=seed)
            assert not [m for m in messages(ChinchillaLaw(), table) if "The run at" in m]

    def test_nor_is_a_short_run_that_the_law_does_not_hold_for(self):
        table = self.table(5, 4, factor=1.0)
        table["loss"][0] *= 1.6
        assert not [m for m in messages(ChinchillaLaw(), table) if "The run at" in m]
        table["loss"][0] *= 1.6
        assert [m for m in messages(ChinchillaLaw(), table) if "The run at N = 5e+07, D = 1e+09" in m]


def test_a_law_in_one_variable_says_what_it_does_not_see():
    n = np.geomspace(1e7, 1e9, 12)
    loss = 1.8 + 480 / n**0.35
    loss[8] *= 1.35
    (said,) = [m for m in messages(PowerLaw(), {"N": n, "loss": loss}) if "The run at" in m]
    assert "if it diverged, drop it; runs must be alike in all but N" in said


class TestUnits:
    n, d = (v.ravel() for v in np.meshgrid([125.0, 350, 1300, 6700, 13000], [2.0, 10, 50, 260]))

    def test_a_whole_table_in_millions_and_billions(self):
        law = ChinchillaLaw()
        table = {"N": self.n, "D": self.d, "loss": 1.8 + 480 / (self.n * 1e6) ** 0.35 + 2100 / (self.d * 1e9) ** 0.37}
        said = messages(law, table)
        assert any(m.startswith("N runs from 125 to 1.3e+04, and no language model is so small") for m in said)
        assert any(m.startswith("D runs from 2 to 260, and no run has so few tokens") for m in said)
        assert "; N all below 2e4; D all below 2e4" in law.selection_

    def test_one_column_of_them(self):
        table = {"N": self.n * 1e6, "loss": 1.8 + 480 / (self.n * 1e6) ** 0.35 + 2100 / (self.d * 1e9) ** 0.37}
        assert [m for m in messages(ChinchillaLaw(), table | {"D": self.d}) if m.startswith("D runs from 2 to 260")]
        assert not [m for m in messages(ChinchillaLaw(), table | {"D": self.d * 1e9}) if "plain units" in m]

    def test_a_tiny_model_beside_real_ones_is_none(self):
        n = np.array([1e4, 6e4, 1e5, 7e6])
        assert not [m for m in messages(PowerLaw(), {"N": n, "loss": 2 + 40 * n**-0.25}) if "plain units" in m]


class TestOneLine:
    n = np.geomspace(1e7, 1e9, 7)

    def table(self, per):
        d = per * self.n
        return {"N": self.n, "D": d, "loss": 1.8 + 480 / self.n**0.35 + 2100 / d**0.37}

    @pytest.mark.parametrize("law", [ChinchillaLaw(), KaplanLaw()])
    def test_tokens_in_proportion_to_size(self, law):
        assert any("D grows with N in these runs (D/N = 20)" in m for m in messages(law, self.table(20)))
        assert "D/N = 20" in law.summary() and "D/N = 20" in type(law).from_json(law.to_json()).summary()
        with pytest.warns(ExtrapolationWarning, match="D/N lies a factor of 5 off the 20 of every run"):
            law.predict(N=1e9, D=1e11)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ExtrapolationWarning)
            law.predict(N=[1e9, 2e9], D=[2e10, 4.4e10])

    def test_other_runs_are_on_no_line(self):
        uneven = self.table(20 * (1 + 0.1 * np.arange(7)))
        for table in (uneven, RUNS):
            law = ChinchillaLaw()
            assert not [m for m in messages(law, table) if "D/N" in m]
            with warnings.catch_warnings():
                warnings.simplefilter("error", ExtrapolationWarning)
                law.predict(N=1e9, D=1e11)


def test_what_the_window_left_out_is_said():
    rows = [{"N": n, "D": d, "loss": 1.8 + 480 / n**0.35 + 2100 / d**0.37, "run_id": f"{n:g}"}
            for n in np.geomspace(1e7, 1e9, 5) for d in (2e8, 1e9)]  # fmt: skip
    with pytest.raises(FitError, match="has 1 .*first 30 % of each left out, 5 of 10 rows kept.*window=0 keeps all"):
        ChinchillaLaw().fit(rows)
    assert ChinchillaLaw(window=0).fit(rows).n_runs_ == 10
    with pytest.raises(FitError) as raised:
        ChinchillaLaw().fit([row | {"run_id": f"{i}", "D": 1e9} for i, row in enumerate(rows)])
    assert "window=0" not in str(raised.value)


@pytest.mark.parametrize("law", [PowerLaw, ChinchillaLaw, KaplanLaw, KaplanStepLaw])
def test_an_unfitted_law_says_so(law):
    for use in (law().summary, law().caveats, law().to_json):
        with pytest.raises(FitError, match="is not fitted yet"):
            use()


@pytest.mark.parametrize("digits", [400, 5000])  # Python writes no integer of more than 4300
def test_numbers_that_no_float_holds(digits):
    number = 10**digits
    law = ChinchillaLaw().fit(RUNS)
    for use in (
        lambda: law.predict(N=number, D=1e9),
        lambda: law.predict(N=[1e9, number], D=1e9),
        lambda: law.predict(N=1e9, D=1e9, level=number),
        lambda: law.compute_optimal(C=number),
        lambda: law.solve("N", loss=number, D=1e9),
        lambda: ChinchillaLaw(fixed={"A": number}),
        lambda: ChinchillaLaw(prior={"A": (number, 1)}),
    ):
        with pytest.raises(ConfigurationError):
            use()
    with pytest.raises(FitError, match="expected a number"):
        PowerLaw().fit({"N": [number, 1e6, 2e6], "loss": [3.0, 2.9, 2.8]})
