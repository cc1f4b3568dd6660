"""Stage by stage the constants of Part I come back, with the points of every regression and a plot."""

import numpy as np
import pytest

from hf_muscaling.errors import ConfigurationError, FitError
from hf_muscaling.laws import ChinchillaLaw, KaplanStepLaw, PowerLaw, envelope, estimate_stages, isoflop

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TRUTH = {"N_c": 1e14, "alpha_N": 0.076, "S_c": 3e3, "alpha_S": 0.67, "B_star": 2e8, "alpha_B": 0.21}


def table(noise=0.0, sizes=(1e6, 4e6, 1.6e7, 6e7), batches=(5e4, 2e5, 8e5)):
    rng = np.random.default_rng(0)
    return [
        {"N": n, "S": s, "B": b, "run_id": f"{n} {b}",
         "loss": float(KaplanStepLaw.loss(n, s, b, **TRUTH)) * np.exp(noise * rng.normal())}
        for n in sizes for b in batches for s in np.geomspace(500, 5e4, 40)
    ]  # fmt: skip


def test_constants_come_back():
    exact = estimate_stages(table())
    for name, tolerance in {"alpha_N": 0.02, "alpha_S": 0.02, "alpha_B": 0.02, "B_star": 0.1, "S_c": 0.05}.items():
        assert exact.params[name] == pytest.approx(TRUTH[name], rel=tolerance), name
    noisy = estimate_stages(table(0.002))
    for name, tolerance in {"alpha_N": 0.1, "alpha_S": 0.1, "alpha_B": 0.25}.items():
        assert noisy.params[name] == pytest.approx(TRUTH[name], rel=tolerance), name
    critical = noisy.critical
    np.testing.assert_allclose(critical["B_crit"], critical["E_min"] / critical["S_min"])


def test_each_stage_says_what_it_lacks():
    with pytest.raises(FitError, match="Stage 1"):
        estimate_stages(table(batches=(5e4, 2e5)))
    with pytest.raises(FitError, match="Stage 2"):
        estimate_stages(table(sizes=(1e6, 4e6)))
    with pytest.raises(FitError, match="run_id"):
        estimate_stages([{k: v for k, v in row.items() if k != "run_id"} for row in table()])


def test_runs_too_short_for_a_limit_still_tell_the_critical_batch_size():
    """Two sizes show no limit over N; curves at one batch size show no B_crit, with or without `partial`."""
    two = table(sizes=(1e6, 4e6))
    stages = estimate_stages(two, partial=True)
    assert "Stage 2" in stages.lacking and set(stages.params) == {"B_star", "alpha_B"}
    whole = estimate_stages(table())
    assert not whole.lacking
    for loss in (6.0, 5.0):
        truth = TRUTH["B_star"] / loss ** (1 / TRUTH["alpha_B"])
        assert stages.critical_batch_size(loss) == pytest.approx(truth, rel=0.1)
        assert whole.critical_batch_size(loss) == pytest.approx(truth, rel=0.1)
    assert len(stages.plot().axes) == 1
    text = stages.compare(KaplanStepLaw("huber", irreducible=False).fit(table()[::5]))
    assert text.count("  open ") == 4 and "open: Stage 2" in text
    with pytest.raises(FitError, match="Stage 1"):
        estimate_stages(table(batches=(5e4,)), partial=True)


def test_every_plot_has_content():
    stages = estimate_stages(table(0.002))
    figure = stages.plot()
    assert len(figure.axes) == 3 and all(axes.lines for axes in figure.axes)
    joint = KaplanStepLaw("huber", irreducible=False).fit(table(0.002)[::5])
    assert "alpha_B" in stages.compare(joint)
    for kind in ("fit", "residuals", "contours"):
        assert joint.plot(kind).axes[0].lines
    power = PowerLaw().fit({"N": [1e6, 2e6, 4e6, 8e6, 2e7], "loss": [4, 3.7, 3.5, 3.35, 3.2]})
    axes = power.plot().axes[0]
    assert axes.patches and axes.get_xlim()[1] == pytest.approx(2e8)  # the shaded extrapolation
    for bad in ("contours", "x"):
        with pytest.raises(ConfigurationError, match="fit, residuals"):
            power.plot(bad)


def grid(budgets=(1e19, 1e20, 1e21), sizes=16):
    n, c = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e10, sizes), budgets))
    d = c / (6 * n)
    return {"N": n, "D": d, "loss": 1.8 + 400 / n**0.34 + 400 / d**0.28}


def test_isoflop_and_envelope_agree_with_the_law():
    """N_opt ∝ C^(beta/(alpha+beta)) = C^0.452, from runs alone."""
    law = ChinchillaLaw("huber").fit(grid())
    for found, tolerance in ((isoflop(grid()), 0.03), (envelope(grid(sizes=60)), 0.06)):
        assert found.exponent == pytest.approx(0.28 / 0.62, abs=tolerance)
        assert found.compute_optimal(1e20)[0] == pytest.approx(law.compute_optimal(1e20)[0], rel=0.25)
        n, d = found.compute_optimal(np.array([1e20, 1e22]))
        np.testing.assert_allclose(6 * n * d, [1e20, 1e22])


def test_curves_are_read_off_at_budgets():
    rows = []
    for n in np.geomspace(1e7, 1e9, 12):
        for d in np.geomspace(1e8, 3e11, 40):
            rows.append({"N": n, "D": d, "loss": 1.8 + 400 / n**0.34 + 400 / d**0.28, "run_id": n})
    found = isoflop(rows, budgets=[3e18, 1e19, 3e19, 1e20])
    assert found.exponent == pytest.approx(0.452, abs=0.04)
    np.testing.assert_allclose(found.C, [3e18, 1e19, 3e19, 1e20])
    assert envelope(rows).exponent == pytest.approx(0.452, abs=0.08)
    with pytest.raises(ConfigurationError, match="run of its own"):
        isoflop(grid(), budgets=[1e20])
    with pytest.raises(FitError, match="budgets"):
        isoflop({k: v[:5] for k, v in grid().items()})
