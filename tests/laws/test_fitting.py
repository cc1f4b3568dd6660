"""The global fits: never worse than a dense multi-start, exact derivatives."""

import numpy as np
import pytest
from scipy.optimize import minimize

from hf_muscaling.laws.fitting import OBJECTIVES, newton
from hf_muscaling.laws.power_fit import fit_power, power_problem
from hf_muscaling.laws.problem import Problem, objective_value

BOUNDS = (-8.0, -1e-3)


def multi_start(x, loss, objective, starts=40):
    """The written-out competitor: Nelder-Mead from a grid of b, (a, c) by linear regression."""
    z, weight = np.log(x) - np.log(x).mean(), np.ones_like(loss)

    def value(p):
        if not BOUNDS[0] <= p[1] <= BOUNDS[1]:
            return np.inf
        return objective_value(objective, np.log(np.exp(p[0] + p[1] * z) + max(p[2], 0.0)), loss, weight)

    best = np.inf
    for b in -np.geomspace(0.01, 4, starts):
        a, c = np.linalg.lstsq(np.stack([np.exp(b * z), np.ones_like(z)], 1), loss, rcond=None)[0]
        start = [np.log(max(a, 1e-3)), b, max(c, 0.0)]
        for _ in range(3):
            found = minimize(
                value, start, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-15, "maxiter": 2000}
            )
            start = found.x
        best = min(best, found.fun)
    return best


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_never_worse_than_multi_start(nanolm, objective):
    rng = np.random.default_rng(1)
    tables = [(n[:8], loss[:8]) for n, loss in nanolm.values()]
    tables += [
        (np.geomspace(1, 20, 6), 3 + rng.uniform(0.5, 2) * np.geomspace(1, 20, 6) ** -0.3 + 0.05 * rng.normal(size=6))
        for _ in range(4)
    ]
    for x, loss in tables:
        ours = fit_power(x, loss, np.ones_like(loss), objective, BOUNDS)[3]
        theirs = multi_start(x, loss, objective, 12)
        assert ours <= theirs * (1 + 1e-7) + 1e-13, (objective, x, ours, theirs)


def test_one_start_is_worse_somewhere():
    """The control: the objectives do have local minima, so a single start must lose on some table."""
    rng = np.random.default_rng(0)
    lost = 0
    for _ in range(40):
        x = np.geomspace(1, 20, 6)
        loss = 3 + x**-0.3 + 0.05 * rng.normal(size=6)
        problem, _ = power_problem(x, loss, np.ones_like(loss), BOUNDS)
        one = newton(problem, np.array([[0.0, -0.3, 1.0]]), 1e-3)
        lost += problem.value(one, "huber")[0] > 1.001 * fit_power(x, loss, np.ones_like(loss), "huber", BOUNDS)[3]
    assert lost >= 3


@pytest.mark.parametrize("delta", [None, 0.05, 10.0])
def test_derivatives_match_differences(delta):
    rng = np.random.default_rng(0)
    n = 9
    x = np.stack([np.ones(n), rng.normal(size=n), np.ones(n), rng.normal(size=n), np.ones(n)], 1)
    problem = Problem(
        x,
        np.array([0, 0, 1, 1, 2]),
        np.exp(rng.normal(size=n)),
        rng.uniform(0.5, 2, n),
        np.full(5, -9.0),
        np.full(5, 9.0),
    )
    theta = 0.3 * rng.normal(size=(2, 5))
    _, gradient, hessian = problem.derivatives(theta, delta)
    for j in range(5):
        step = 1e-6 * np.eye(5)[j]
        up, down = (problem.derivatives(theta + s, delta) for s in (step, -step))
        np.testing.assert_allclose(gradient[:, j], (up[0] - down[0]) / 2e-6, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(hessian[:, j], (up[1] - down[1]) / 2e-6, rtol=1e-4, atol=1e-5)


def test_b_stays_in_its_bounds():
    x = np.array([1.0, 2, 4, 8, 16])
    _, b, c, _ = fit_power(x, np.array([9.0, 3, 3, 3, 3]), np.ones(5), "least_squares", BOUNDS)
    assert BOUNDS[0] <= b < -4 and c == pytest.approx(3, rel=5e-3)
    _, b, c, _ = fit_power(x, 5 - 0.1 * np.log(x) ** 2 - 0.2 * np.log(x), np.ones(5), "least_squares", BOUNDS)
    assert c == 0.0 and b <= BOUNDS[1]
