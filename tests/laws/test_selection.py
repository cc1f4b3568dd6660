"""Curves lose their beginning and every run counts the same; finals stay, or the upper half by compute."""

import numpy as np
import pytest

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.laws import ChinchillaLaw, PowerLaw
from hf_muscaling.laws.selection import select

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def curves(checkpoints=(10, 20), sizes=(1e7, 4e7, 1.6e8, 6.4e8), garbage=False):
    """Runs of several sizes with differing numbers of checkpoints; the first fifth of each may be garbage."""
    rows = []
    for i, n in enumerate(sizes):
        count = checkpoints[i % len(checkpoints)]
        for k in range(count):
            d = 20 * n * (k + 1) / count
            loss = 1.8 + 480 / n**0.35 + 2100 / d**0.37
            rows.append({"N": n, "D": d, "loss": loss * (3 if garbage and k < count / 5 else 1), "run_id": f"r{i}"})
    return rows


def columns(rows):
    return {name: np.array([row[name] for row in rows], object if name == "run_id" else float) for name in rows[0]}


def test_window_and_equal_weight():
    found = select(columns(curves()))
    run, kept = found.columns["run_id"], found.columns["weight"]
    assert found.curves and len(kept) == 7 + 14 + 7 + 14
    sums = [kept[run == r].sum() for r in ("r0", "r1", "r2", "r3")]
    np.testing.assert_allclose(sums, sums[0])
    assert "first 30 %" in found.text and "equal weight by run" in found.text
    first = found.columns["D"][run == "r0"].min() / found.columns["D"][run == "r0"].max()
    assert first == pytest.approx(0.4)


def test_order_of_rows_does_not_matter_and_weights_are_kept():
    table = columns(curves())
    order = np.random.default_rng(0).permutation(len(table["N"]))
    mixed = select({name: values[order] for name, values in table.items()})
    plain = select(table)
    assert sorted(mixed.columns["D"]) == sorted(plain.columns["D"])
    heavy = select(table | {"weight": np.where(table["run_id"] == "r0", 3.0, 1.0)}).columns
    assert heavy["weight"][heavy["run_id"] == "r0"].sum() == pytest.approx(
        3 * heavy["weight"][heavy["run_id"] == "r1"].sum()
    )


def test_finals_and_upper_half():
    table = columns(curves())
    del table["run_id"]
    assert len(select(table).columns["N"]) == 60 and not select(table).curves
    half = select(table, rows="upper_half")
    compute = half.columns["N"] * half.columns["D"]
    assert "upper half by compute" in half.text
    assert len(compute) == 30 and compute.min() >= np.median(table["N"] * table["D"])


def test_the_window_protects_the_fit():
    """Garbage at the start of every run does no harm with the default window; without one it does."""
    kept = ChinchillaLaw("least_squares").fit(curves(garbage=True))
    assert kept.params_["alpha"] == pytest.approx(0.35, abs=1e-3)
    lost = ChinchillaLaw("least_squares", window=0).fit(curves(garbage=True))
    assert abs(lost.params_["alpha"] - 0.35) > 0.05
    assert "the first 30 % of each left out, 42 of 60 rows kept" in kept.summary()


def test_steps_name_the_checkpoints_when_no_run_does():
    rows = [{k: v for k, v in row.items() if k != "run_id"} | {"step": i} for i, row in enumerate(curves(), 1)]
    assert "curves of 4 runs" in ChinchillaLaw("huber").fit(rows).selection_


def test_power_law_takes_the_last_checkpoint():
    law = PowerLaw().fit(curves())
    assert law.n_runs_ == 4 and "last checkpoint" in law.summary()
    one = [row for row in curves() if row["run_id"] == "r1"]
    assert PowerLaw(variable="D").fit(one).n_runs_ == 14


@pytest.mark.parametrize("bad", [{"window": 1.0}, {"window": -0.1}, {"window": "30%"}, {"window": True}, {"rows": "x"}])
def test_bad_settings(bad):
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        ChinchillaLaw(**bad)


def test_several_families_warn():
    rows = [row | {"family": "ab"[i % 2]} for i, row in enumerate(curves())]
    with pytest.warns(UserWarning, match="2 families"):
        ChinchillaLaw("huber").fit(rows)
