"""Designs of widths, seeds and steps under L(N, D)."""

import warnings
from dataclasses import fields

import numpy as np
import pytest

from hf_muscaling import ChinchillaLaw, ExperimentConfig
from hf_muscaling.budget import ProxyOption, plan_horizons
from hf_muscaling.budget.experiment import offer
from hf_muscaling.budget.horizons import ChinchillaBelief
from hf_muscaling.budget.screening import Screen
from hf_muscaling.cli import main
from hf_muscaling.errors import ConfigurationError

TARGET = 24.0 * 512**2, 1e9


def options(widths=(32, 48, 64, 96, 128, 192), shares=(0.1, 0.3, 1.0)):
    return [
        ProxyOption(w, 24.0 * w**2, s * (w / 512) ** 2, D=s * TARGET[1], steps=round(1000 * s))
        for w in widths for s in shares
    ]  # fmt: skip


def screen(given):
    points = {"N": np.array([o.N for o in given]), "D": np.array([o.D for o in given])}
    return Screen(ChinchillaBelief.assumed((points["N"].min(), points["D"].min())), points, {"N": TARGET[0], "D": 1e9})


def test_the_slopes_are_the_derivatives():
    belief = ChinchillaBelief.assumed((1e5, 1e8), draws=4)
    at = {"N": np.array([3e5, 2e6]), "D": np.array([2e8, 9e8])}
    slopes, step = belief.slopes(at), 1e-6
    for k, name in enumerate(("E", "A", "alpha", "B", "beta")):
        values = {f.name: getattr(belief, f.name) for f in fields(belief)}
        values[name] = values[name] * (1 + step) if name in "EAB" else values[name] + step
        numeric = (np.log(ChinchillaBelief(**values).loss(at)) - np.log(belief.loss(at))) / step
        np.testing.assert_allclose(slopes[..., k], numeric, rtol=1e-4, atol=1e-7)


def test_runs_at_one_horizon_say_little_of_the_other():
    given = options()
    one_size = np.array([float(o.width == 64) for o in given])
    one_horizon = np.array([float(o.steps == 100) for o in given])
    both = np.array([float(o.steps == 1000 or o.width == 64) for o in given])
    alone, short, crossed = screen(given).half_widths(np.stack([8 * one_size, 3 * one_horizon, both]))
    assert crossed < 0.7 * alone and crossed < 0.7 * short


def test_the_fast_criterion_orders_as_the_law_does():
    given, rng, halves = options(), np.random.default_rng(0), []
    n, d = np.array([o.N for o in given]), np.array([o.D for o in given])
    narrow, wide = n <= 24 * 64**2, np.ones(len(n), bool)
    for there in (narrow, wide):
        loss = 0.7 + 0.15 * (n[there] / n.min()) ** -0.36 + 0.15 * (d[there] / d.min()) ** -0.36
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runs = {"N": n[there], "D": d[there], "loss": loss * (1 + 0.002 * rng.normal(size=there.sum()))}
            p = ChinchillaLaw().fit(runs).predict(N=TARGET[0], D=TARGET[1])
        halves.append((p.high - p.low) / (2 * p.loss))
    fast = screen(given).half_widths(np.stack([narrow, wide]).astype(float))
    assert halves[1] < halves[0] and fast[1] < fast[0]


@pytest.mark.slow
def test_a_plan_varies_the_steps_and_keeps_its_budget():
    plan = plan_horizons(options(), TARGET, 0.1, draws=2, max_seeds=1)
    assert plan.design.cost <= 0.1
    assert len({o.steps for o, _ in plan.design.runs}) >= 2 and len({o.width for o, _ in plan.design.runs}) >= 3
    assert f"D = {TARGET[1]:.4g}" in str(plan) and "What other budgets" not in str(plan)


def test_what_it_refuses():
    with pytest.raises(ConfigurationError, match="two horizons or more"):
        plan_horizons(options(shares=(1.0,)), TARGET, 0.1)
    with pytest.raises(ConfigurationError, match="two horizons or more"):
        plan_horizons([ProxyOption(32, 1e5, 0.1)], TARGET, 0.1)
    with pytest.raises(ConfigurationError, match="three sizes at two horizons"):
        plan_horizons(options(), TARGET, 1e-4)


@pytest.mark.slow
def test_an_experiments_options_at_several_horizons():
    offered = offer(ExperimentConfig(target_width=512, budget="10%"), 1024, [32, 48, 64])
    plan = offered.plan_horizons([0.5], draws=2, max_seeds=1)
    assert {run.steps for run, _ in plan.design.runs} == {400, 800}
    assert plan.target["D"] == 800 * 32 * 64
    full = {o.width: o.cost for o in offered.options}
    assert all(o.cost == pytest.approx(full[o.width] * o.steps / 800) for o, _ in plan.design.runs)
    with pytest.raises(ConfigurationError, match="shares of the target's steps"):
        offered.plan_horizons([1.5])


def test_the_command_plans_horizons_before_any_run(capsys):
    assert main(["plan", "--budget", "50%", "--horizons", "0.5", "--law", "x.json"]) == 2
    assert "plans before any run" in capsys.readouterr().err
