"""The map over laws, windows, models and training agrees with single evaluations, and shows what it should."""

import time
import warnings

import numpy as np
import pytest

from hf_muscaling.errors import ConfigurationError, FitError
from hf_muscaling.laws import (
    ChinchillaLaw,
    KaplanLaw,
    KaplanStepLaw,
    PowerLaw,
    evaluate_extrapolation,
    extrapolation_grid,
)
from hf_muscaling.laws.grid import thin
from hf_muscaling.laws.together import batched, estimate_together


def curves(bump=0.0, sizes=6, checkpoints=20):
    """Curves of a known law with a start that does not follow it, `bump` nats at D = 0, gone after a third."""
    rows = []
    for i, n in enumerate(np.geomspace(1e7, 1e9, sizes)):
        for d in np.linspace(1e9, 2e10, checkpoints):
            loss = 1.8 + 480 / n**0.35 + 2100 / d**0.37 + bump * np.exp(-d / 1.2e9)
            rows.append({"run_id": f"run-{i}", "N": n, "D": d, "loss": float(loss)})
    return rows


def test_cells_are_single_evaluations():
    table = curves(0.3)
    calls = []
    laws = {"chinchilla": ChinchillaLaw("huber"), "power": PowerLaw(objective="least_squares")}
    grid = extrapolation_grid(
        table, laws, (0.0, 0.3), (0.5, 1.0), (4, 5), checkpoints=None, progress=lambda *at: calls.append(at)
    )
    assert grid.are.shape == (2, 2, 2, 2) and grid.fits == 16 and calls[-1] == (16, 16) and len(calls) == 16
    one = evaluate_extrapolation(table, ChinchillaLaw("huber", window=0.3), seen=0.5, models=4, level=None)
    assert grid.are[0, 1, 0, 0] == pytest.approx(one.are, rel=1e-6)
    assert len(grid.rows()) == 16 and grid.rows()[0]["law"] == "chinchilla"
    assert "16 laws fitted" in str(grid)


def steps(sizes=4):
    """Curves of Part I's law at two batch sizes, with an irreducible loss."""
    truth = {"N_c": 1e14, "alpha_N": 0.076, "S_c": 3e3, "alpha_S": 0.67, "B_star": 2e8, "alpha_B": 0.21, "E": 0.3}
    return [
        {"run_id": f"run-{n:g}-{b:g}", "N": n, "S": s, "B": b, "loss": float(KaplanStepLaw.loss(n, s, b, **truth))}
        for n in np.geomspace(1e6, 1e9, sizes)
        for b in (1e5, 1e6)
        for s in np.geomspace(500, 2e4, 8)
    ]


LAWS = [
    ChinchillaLaw(),
    ChinchillaLaw(fixed={"A": 480.0, "alpha": 0.35}),
    ChinchillaLaw(prior={"E": (1.8, 0.1), "beta": (0.37, 0.02)}),
    ChinchillaLaw("huber"),
    ChinchillaLaw("huber", fixed={"E": 1.7}),
    ChinchillaLaw("least_squares"),
    KaplanLaw(),
    KaplanLaw("huber"),
    KaplanStepLaw(),
    KaplanStepLaw(irreducible=False),
    KaplanStepLaw("huber", fixed={"alpha_B": 0.21}, irreducible=True),
]


def noisy(law):
    rng = np.random.default_rng(0)
    table = steps() if isinstance(law, KaplanStepLaw) else curves(0.3, checkpoints=8)
    return [row | {"loss": row["loss"] * np.exp(0.003 * rng.normal())} for row in table]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{type(law).__name__}-{law.objective}")
def test_laws_fitted_together_are_laws_fitted_alone(law):
    assert batched(law)
    table, models = noisy(law), (3,) if isinstance(law, KaplanStepLaw) else (2, 3, 5)
    grid = extrapolation_grid(table, {"law": law}, (0.0, 0.3), (0.4, 1.0), models, checkpoints=None)
    for row in grid.rows():
        one = type(law)(**law.settings() | {"window": row["window"]})
        try:
            alone = evaluate_extrapolation(table, one, seen=row["seen"], models=row["models"], level=None).are
        except FitError:
            assert row["are"] is None
        else:
            assert row["are"] == pytest.approx(alone, rel=1e-3, abs=2e-6)
    assert grid.fits >= 4 and not np.allclose(grid.are[..., 0], grid.are[..., 1], atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("law", LAWS[3:6] + LAWS[7:], ids=lambda law: f"{type(law).__name__}-{law.objective}")
def test_they_reach_the_same_objective(law):
    """Also where the runs leave the parameters open; and a part's length does not matter to the others."""
    table = noisy(law)
    sizes = np.unique([row["N"] for row in table])
    parts = [
        law._selected([row for row in table if row["N"] < sizes[k] and row.get("S", 1e9) > least])[0]
        for k in (3, len(sizes) - 1)
        for least in (0, 2e3)
    ]
    found = estimate_together(law, parts)
    for columns, params in zip(parts, found, strict=True):
        alone, value = law._estimate(columns)
        assert law._score(columns, params) == pytest.approx(value, rel=1e-9)
        worse = params | {
            "alpha_N" if "alpha_N" in params else "alpha": 1.02 * alone.get("alpha_N", alone.get("alpha"))
        }
        assert law._score(columns, worse) > value * (1 + 1e-6)  # and this is no flat objective


def test_many_fits_together_take_less_than_alone():
    """What the batch is for: here 80 fits, of each law that was slow."""
    laws = {"chinchilla": (ChinchillaLaw("huber"), curves(0.3, checkpoints=12)), "step": (KaplanStepLaw(), steps())}
    for name, (law, table) in laws.items():
        start = time.process_time()
        grid = extrapolation_grid(table, {name: law}, (0.0, 0.3), np.linspace(0.4, 1, 20), (2, 3), checkpoints=None)
        together = (time.process_time() - start) / grid.fits
        start = time.process_time()
        for _ in range(5):
            evaluate_extrapolation(table, law, seen=0.7, models=3, level=None)
        assert together < 0.7 * (time.process_time() - start) / 5


def test_a_law_without_its_columns_is_blank_beside_others():
    table = [{name: row[name] for name in ("run_id", "N", "loss")} | {"step": row["D"] / 1e6} for row in curves()]
    grid = extrapolation_grid(table, {"p": PowerLaw(), "c": ChinchillaLaw()}, (0.3,), (1.0,), (4,))
    assert np.isfinite(grid.are[0]).all() and np.isnan(grid.are[1]).all()


def test_a_start_that_does_not_follow_the_law_is_visible_in_the_map():
    """With a bump, the window that drops it is better by far; without one (the control) both recover the truth."""
    laws = {"chinchilla": ChinchillaLaw("least_squares")}
    bad = extrapolation_grid(curves(3.0), laws, (0.0, 0.3), (1.0,), (5,)).are[0, :, 0, 0]
    good = extrapolation_grid(curves(0.0), laws, (0.0, 0.3), (1.0,), (5,)).are[0, :, 0, 0]
    assert bad[1] < bad[0] / 5 and good.max() < 1e-5


def test_cells_without_a_fit_are_blank():
    grid = extrapolation_grid(curves(), {"c": ChinchillaLaw("huber")}, (0.3,), (0.01, 1.0), (2, 5))
    assert np.isnan(grid.are[0, 0, 0]).all()  # two sizes do not make a law
    assert np.isnan(grid.are[0, 0, 1, 0]) and np.isfinite(grid.are[0, 0, 1, 1])
    assert {row["are"] for row in grid.rows()} >= {None} and grid.fits == 1


@pytest.mark.slow  # two processes import everything anew
def test_processes_share_the_work():
    laws = {"c": ChinchillaLaw("huber")}
    one, two = (extrapolation_grid(curves(0.3), laws, (0.3,), (0.5, 1.0), (4, 5), processes=k) for k in (1, 2))
    np.testing.assert_allclose(one.are, two.are, rtol=1e-6)  # which parts are stacked together moves the last digits


def test_numbers_of_models_by_default():
    assert extrapolation_grid(curves(), {"c": ChinchillaLaw("huber")}, (0.3,), (1.0,)).models == (3, 4, 5)


def test_what_cannot_be_mapped_says_why():
    with pytest.raises(FitError, match="at least 3"):
        extrapolation_grid(curves(sizes=3), {"p": PowerLaw()}, (0.3,), (1.0,))
    with pytest.raises(FitError, match="No row is left"):
        extrapolation_grid(curves(), {"c": KaplanLaw()}, target=1.0)
    with pytest.raises(ConfigurationError, match="at least one law"):
        extrapolation_grid(curves(), {})
    with pytest.raises(ConfigurationError, match="checkpoints=1"):
        thin({"run_id": np.array(["a"])}, 1)


def test_a_list_of_laws_goes_by_its_classes():
    laws = [PowerLaw(), ChinchillaLaw("huber"), ChinchillaLaw(), KaplanLaw, KaplanLaw(fixed={"alpha_N": 0.08})]
    grid = extrapolation_grid(curves(), laws, (0.3,), (1.0,), (4,))
    names = ("PowerLaw", "ChinchillaLaw huber", "ChinchillaLaw bayes", "KaplanLaw bayes 4", "KaplanLaw bayes 5")
    assert grid.laws == names
    named = extrapolation_grid(curves(), dict(zip(names, laws, strict=True)), (0.3,), (1.0,), (4,))
    np.testing.assert_array_equal(grid.are, named.are)
    assert extrapolation_grid(curves(), ChinchillaLaw(), (0.3,), (1.0,), (4,)).laws == ("ChinchillaLaw",)
    for wrong in (["chinchilla"], "chinchilla", {"c": None}, [ChinchillaLaw(), 3]):
        with pytest.raises(ConfigurationError, match="is not a law. Pass one, such as"):
            extrapolation_grid(curves(), wrong)


def test_a_map_of_clean_curves_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extrapolation_grid(curves(0.1), {"c": ChinchillaLaw(), "k": KaplanLaw()}, (0.0, 0.3), (0.2, 1.0), (2, 4))


def test_thinning_keeps_each_run_and_its_end():
    table = {name: np.array([row[name] for row in curves()]) for name in ("run_id", "N", "D", "loss")}
    thinned = thin(table, 5)
    assert len(thinned["loss"]) == 30 and set(thinned["run_id"]) == set(table["run_id"])
    assert (np.sort(thinned["D"])[-6:] == 2e10).all()
    assert thin({"N": table["N"], "loss": table["loss"]}, 5)["N"].size == 120  # no runs named: nothing to thin


def test_it_draws():
    laws = {"chinchilla": ChinchillaLaw("huber"), "power": PowerLaw()}
    figure = extrapolation_grid(curves(), laws, (0.0, 0.3), (0.5, 1.0), (4, 5)).plot("t")
    assert len(figure.axes) == 5  # four panels and the colour bar


@pytest.mark.parametrize("objective", ["huber", "lad"])  # all cells at once, and one by one
def test_what_a_table_warns_of_is_said_once(objective):
    table = [row | {"precision": "bf16" if row["N"] > 1e8 else "fp32"} for row in curves(checkpoints=6)]
    table.append(dict(table[-1]))
    laws = {"chinchilla": ChinchillaLaw(objective), "kaplan": KaplanLaw(objective)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extrapolation_grid(table, laws, (0.0, 0.3), (0.5, 1.0), (4, 5), checkpoints=None)
    said = [str(w.message) for w in caught]
    assert len(said) == 2 and "1 rows repeat" in said[0] and "mixes precisions" in said[1]
    assert {w.filename for w in caught} == {__file__}
