"""Curves as tables: windows that grow, nothing logged lost, the first step at which a loss is reached."""

import math

import numpy as np
import pytest

from hf_muscaling import Run, curve_table
from hf_muscaling.curves import steps_to_loss
from hf_muscaling.errors import ConfigurationError


def after(updates):
    """The loss after so many updates."""
    return 2 + 30 / max(updates, 0.5) ** 0.5


def run(every=1, steps=1000, status="finished", loss=lambda s: after(s - 1)):
    """A run whose rows are the means of the steps since the row before; a step's loss is taken before its update."""
    curve, before = [], 0
    for step in [1, *range(max(every, 2), steps + 1, every)]:
        mean = float(np.mean([loss(s) for s in range(before + 1, step + 1)]))
        curve.append({"step": step, "tokens": 64 * step, "loss": mean, "lr": 0.1})
        before = step
    final = {"status": status, "loss": 2.0 if status == "finished" else None}
    return Run("r", N=100, N_non_embedding=60, D=64 * steps, S=steps, B=64, C=1.0, width=8, seed=0, lr=0.1,
               curve=curve, **final)  # fmt: skip


@pytest.mark.parametrize("every", [1, 5])
def test_windows_lie_on_the_curve(every):
    rows = curve_table([run(every)], skip=0.02)
    steps, losses = np.array([r["S"] for r in rows]), np.array([r["loss"] for r in rows])
    np.testing.assert_allclose(losses, 2 + 30 / steps**0.5, rtol=4e-3)
    assert steps.min() >= 20 and len(rows) > 15 and (np.diff(steps) > 0).all()
    assert rows[0]["D"] == pytest.approx(64 * rows[0]["S"]) and rows[0]["N_non_embedding"] == 60


def test_nothing_logged_is_lost():
    flat = run(loss=lambda s: 1.0 if s % 2 else 3.0)
    rows = curve_table([flat], ratio=4.0)
    assert all(row["loss"] == pytest.approx(2.0, abs=0.5) for row in rows)
    weights = np.diff([4, 16, 64, 256, 1000])  # the first window ends where the second begins
    whole = np.dot([r["loss"] for r in rows], weights) / weights.sum()
    assert whole == pytest.approx(np.mean([3.0 if s % 2 == 0 else 1.0 for s in range(5, 1001)]))


def test_noise_is_averaged_away():
    rng = np.random.default_rng(0)
    noisy = curve_table([run(loss=lambda s: 3 + 0.1 * rng.normal())], skip=0.3)
    assert np.std([row["loss"] for row in noisy]) < 0.025


def test_runs_without_a_curve_are_refused():
    with pytest.raises(ConfigurationError, match="No finished run has a curve"):
        curve_table([run(status="diverged")])
    with pytest.raises(ConfigurationError, match="ratio"):
        curve_table([run()], ratio=1.0)
    with pytest.raises(ConfigurationError, match="skip"):
        curve_table([run()], skip=1.0)


def test_the_first_step_at_a_loss():
    steps, losses = [10, 100, 1000], [5.0, 4.0, 3.0]
    assert steps_to_loss(steps, losses, 3.5) == pytest.approx(10**2.5)
    assert steps_to_loss(steps, losses, 2.5) == math.inf and math.isnan(steps_to_loss(steps, losses, 6.0))
    assert steps_to_loss([10, 100, 1000], [5.0, 3.0, 4.0], 3.5) < 100
