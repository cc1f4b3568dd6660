"""KaplanLaw and KaplanStepLaw: exact derivatives, global optima, what Part I's law answers."""

import numpy as np
import pytest
from scipy.optimize import minimize

from hf_muscaling.errors import ConfigurationError, FitError
from hf_muscaling.laws import IdentificationWarning, KaplanLaw, KaplanStepLaw, ScalingLaw

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TRUTH = {"N_c": 1e14, "alpha_N": 0.076, "S_c": 3e3, "alpha_S": 0.67, "B_star": 2e8, "alpha_B": 0.21}


def step_runs(noise=0.0, seed=0, batches=(3e4, 1e5, 1e6), **extra):
    grid = np.meshgrid([1e6, 4e6, 1.6e7, 6e7], [500.0, 2e3, 8e3], batches)
    n, s, b = (v.ravel() for v in grid)
    loss = KaplanStepLaw.loss(n, s, b, **TRUTH, **extra)
    return {"N": n, "S": s, "B": b, "loss": loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(n)))}


@pytest.mark.parametrize("law", [KaplanLaw(), KaplanStepLaw(irreducible=True)], ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("delta", [None, 0.03])
def test_derivatives_match_differences(law, delta):
    rng = np.random.default_rng(0)
    n, s, b = (np.exp(rng.normal(size=30)) * x for x in (1e7, 3e3, 1e5))
    columns = {"N": n, "D": s * b, "S": s, "B": b, "loss": 3 * np.exp(0.1 * rng.normal(size=30))}
    problem = law._problem(columns, np.ones(30), law._origin(columns))
    short, long = [1.0, 0.1, 0.5, 0.3], [1.0, 0.1, -0.5, 0.6, 0.3, 4.0, 0.3]
    theta = np.array([short if len(problem.low) == 4 else long])
    _, gradient, hessian = problem.derivatives(theta, delta)
    for j in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, j] = 1e-6
        (up, gup, _), (down, gdown, _) = (problem.derivatives(theta + s, delta) for s in (step, -step))
        np.testing.assert_allclose((up - down) / 2e-6, gradient[:, j], rtol=1e-4, atol=1e-6 * abs(gradient).max())
        if delta is None:
            found = (gup - gdown) / 2e-6
            np.testing.assert_allclose(found, hessian[:, :, j], rtol=1e-3, atol=1e-6 * abs(hessian).max())


def test_kaplan_limits_and_optimum():
    p = {"N_c": 8.8e13, "alpha_N": 0.076, "D_c": 5.4e13, "alpha_D": 0.095}
    assert KaplanLaw.loss(1e9, np.inf, **p) == pytest.approx((8.8e13 / 1e9) ** 0.076)
    assert KaplanLaw.loss(np.inf, 1e10, **p) == pytest.approx((5.4e13 / 1e10) ** 0.095)
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
    law = KaplanLaw("huber").fit({"N": n, "D": d, "loss": KaplanLaw.loss(n, d, **p)})
    best_n, best_d = law.compute_optimal(1e20)
    assert 6 * best_n * best_d == pytest.approx(1e20)
    best = law.loss(best_n, best_d, **law.params_)
    assert all(law.loss(best_n * f, best_d / f, **law.params_) > best for f in (0.5, 0.95, 1.05, 2))
    assert law.minimum_loss(N=1e9) == pytest.approx((8.8e13 / 1e9) ** 0.076, rel=1e-3)


@pytest.mark.parametrize("objective", ["huber", "least_squares"])
def test_kaplan_is_never_worse_than_a_multi_start(objective):
    rng = np.random.default_rng(3)
    n, d = np.exp(rng.uniform(np.log(1e6), np.log(1e9), 24)), np.exp(rng.uniform(np.log(1e8), np.log(1e11), 24))
    loss = (1.7 + 300 / n**0.33 + 900 / d**0.34) * np.exp(0.01 * rng.normal(size=24))  # a truth it cannot fit exactly
    law = KaplanLaw(objective).fit({"N": n, "D": d, "loss": loss})
    columns = law._columns

    def value(t):
        params = dict(zip(law.parameters, (np.exp(t[0]), abs(t[1]), np.exp(t[2]), abs(t[3])), strict=True))
        with np.errstate(all="ignore"):
            found = law._score(columns, params)
        return found if np.isfinite(found) else 1e9

    best = np.inf
    for a in (0.05, 0.2):
        for b in (0.05, 0.2, 0.5):
            start = [np.log(1e7) + 1 / a, a, np.log(1e10) + 1 / b, b]
            for _ in range(2):
                end = minimize(value, start, method="Nelder-Mead", options={"maxiter": 1500, "xatol": 1e-9})
                start = end.x
            best = min(best, end.fun)
    assert law.objective_value_ <= best * (1 + 1e-6)


def test_step_law_recovers_the_six_constants():
    law = KaplanStepLaw("huber").fit(step_runs())
    for name, value in TRUTH.items():
        assert law.params_[name] == pytest.approx(value, rel=1e-3), name
    assert law.params_["E"] == 0.0
    noisy = KaplanStepLaw("least_squares").fit(step_runs(0.002))
    assert noisy.params_["alpha_N"] == pytest.approx(0.076, rel=0.1)
    assert noisy.params_["alpha_S"] == pytest.approx(0.67, rel=0.2)


def test_step_law_adds_an_irreducible_loss_only_where_there_is_one():
    with_floor = KaplanStepLaw("huber").fit(step_runs(0.001, E=1.5))
    assert with_floor.params_["E"] == pytest.approx(1.5, rel=0.25)
    assert KaplanStepLaw("huber", irreducible=False).fit(step_runs(0.001, E=1.5)).params_["E"] == 0.0


def test_step_law_is_never_worse_than_a_multi_start():
    runs = step_runs(0.02, seed=5)
    law = KaplanStepLaw("least_squares", irreducible=False).fit(runs)
    problem, _, _ = law._fitted
    rng = np.random.default_rng(0)
    free = slice(0, 6)

    def value(t):
        theta = np.clip(np.append(t, problem.low[6]), problem.low, problem.high)[None]
        v, g, _ = problem.derivatives(theta, None)
        return float(v[0]), g[0, free]

    best = np.inf
    for _ in range(25):
        start = rng.uniform([-1, 0.05, -3, 0.2, -3, 1], [1.5, 0.4, 0, 1.2, 3, 8])
        box = list(zip(problem.low[free], problem.high[free], strict=True))
        best = min(best, minimize(value, start, jac=True, method="L-BFGS-B", bounds=box).fun)
    assert law.objective_value_ <= best * (1 + 1e-6)


@pytest.fixture(scope="module")
def fitted():
    return KaplanStepLaw("huber", irreducible=False).fit(step_runs())


def test_what_part_one_asks(fitted):
    """Minimum loss, steps, tokens and time to a loss, critical batch size, trade-off, whole curves: all consistent."""
    n, b, loss = 1e9, 5e5, 3.5
    steps = fitted.steps_to(loss, n, b)
    assert fitted.loss(n, steps, b, **fitted.params_) == pytest.approx(loss)
    assert fitted.tokens_to(loss, n, b) == pytest.approx(steps * b)
    assert fitted.time_to(loss, n, b, seconds_per_step=2.0) == pytest.approx(2 * steps)
    assert fitted.solve("S", loss=loss, N=n, B=b) == pytest.approx(steps)
    critical = fitted.critical_batch_size(loss)
    assert critical == pytest.approx(2e8 / loss ** (1 / 0.21), rel=1e-2)
    assert fitted.steps_to(loss, n, critical) == pytest.approx(2 * fitted.minimal_steps(loss, n))
    ways = fitted.trade_off(loss, n)
    np.testing.assert_allclose((ways.relative_time - 1) * (ways.relative_compute - 1), 1)
    curve = fitted.loss_curve(n, b, [1e3, 1e4, 1e5])
    assert np.all(np.diff(curve) < 0) and curve[-1] > fitted.minimum_loss(N=n)
    assert fitted.minimum_loss(N=n) == pytest.approx((1e14 / n) ** 0.076, rel=1e-3)


def test_unreachable_losses(fitted):
    below = fitted.minimum_loss(N=1e9) * 0.99
    assert fitted.steps_to(below, 1e9, 1e6) == np.inf and fitted.solve("S", loss=below, N=1e9, B=1e6) == np.inf
    with pytest.raises(ConfigurationError, match="cannot reach"):
        fitted.trade_off(below, 1e9)
    for bad in (-1, "3", float("nan"), []):
        with pytest.raises(ConfigurationError, match="loss"):
            fitted.critical_batch_size(bad)


def test_compute_optimal_is_the_minimum(fitted):
    n, s = fitted.compute_optimal(1e19, 5e5)
    assert 6 * n * s * 5e5 == pytest.approx(1e19)
    best = fitted.loss(n, s, 5e5, **fitted.params_)
    assert all(fitted.loss(n * f, s / f, 5e5, **fitted.params_) > best for f in (0.5, 0.95, 1.05, 2))


def test_batches_far_above_the_critical_one_do_not_tell_it():
    with pytest.warns(IdentificationWarning, match=r"(B_star|alpha_B).* not identified"):
        KaplanStepLaw("huber", irreducible=False).fit(step_runs(0.005, batches=(3e8, 6e8)))


def test_tables_and_round_trip(tmp_path):
    runs = step_runs(0.002)
    law = KaplanStepLaw("huber").fit({k: v for k, v in runs.items() if k != "S"} | {"D": runs["S"] * runs["B"]})
    assert law.params_["alpha_N"] == pytest.approx(0.076, rel=0.2)
    law.to_json(tmp_path / "law.json")
    back = ScalingLaw.from_json(tmp_path / "law.json")
    assert isinstance(back, KaplanStepLaw) and back.to_json() == law.to_json()
    assert back.predict(N=1e9, S=1e5, B=1e6) == law.predict(N=1e9, S=1e5, B=1e6)
    with pytest.raises(FitError, match="distinct N"):
        KaplanStepLaw().fit(runs | {"N": np.full(36, 1e6)})
    with pytest.raises(FitError, match="column 'B'"):
        KaplanStepLaw().fit({"N": runs["N"], "S": runs["S"], "loss": runs["loss"]})
