"""Designs: what the fast criterion says against the law's interval, budgets that are kept, equal spacing beaten."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from hf_muscaling import PowerLaw, expected_interval, plan_budget
from hf_muscaling.budget import Assumptions, PowerBelief, ProxyOption, equal_spacing
from hf_muscaling.budget.design import Menu
from hf_muscaling.budget.plots import plot_budget
from hf_muscaling.budget.screening import Screen
from hf_muscaling.budget.search import Question, search
from hf_muscaling.errors import ConfigurationError

TARGET_WIDTH = 512
WIDTHS = (32, 48, 64, 80, 96, 128, 160, 192)


def options(widths=WIDTHS, **changes):
    return [ProxyOption(w, size(w), (w / TARGET_WIDTH) ** 2, **changes) for w in widths]


def size(width):
    return 24.0 * width**2


@pytest.mark.slow
def test_the_fast_criterion_ranks_as_the_law_does():
    rng = np.random.default_rng(0)
    x = np.array([size(w) for w in WIDTHS])
    screen = Screen(PowerBelief.assumed(x[0], draws=16), {"N": x}, {"N": size(TARGET_WIDTH)})
    fast, real = [], []
    for _ in range(14):
        counts = np.zeros(len(x), int)
        k = rng.integers(3, 7)
        counts[rng.choice(len(x), k, replace=False)] = rng.integers(1, 5, k)
        fast.append(screen.half_widths(counts)[0])
        real.append(expected_interval(None, x, counts, size(TARGET_WIDTH), draws=16).half_width)
    assert spearmanr(fast, real).statistic > 0.8


def test_all_runs_at_one_width_tell_nothing():
    x = np.array([size(w) for w in WIDTHS])
    screen = Screen(PowerBelief.assumed(x[0]), {"N": x}, {"N": size(TARGET_WIDTH)})
    one_width, spread = np.zeros((2, len(x)), int)
    one_width[-1], spread[[0, 3, 7]] = 50, 1
    alone, better, none = screen.half_widths(np.stack([one_width, spread, 0 * spread]))
    assert alone > 2 * better and np.isinf(none)
    with pytest.raises(ConfigurationError, match=r"1 distinct sizes; a law needs 3"):
        plan_budget(options([64]), size(TARGET_WIDTH), 1.0)


def test_a_plan_keeps_its_budget_and_beats_equal_spacing():
    plan = plan_budget(options(paid=0), size(TARGET_WIDTH), 0.2, overhead=0.02, draws=8)
    assert plan.design.cost <= 0.2
    spent = 0.02 + sum(o.cost * n for o, n in plan.design.runs)
    assert plan.design.cost == pytest.approx(spent)
    assert len(plan.design.runs) >= 3
    assert plan.equal.cost <= 0.2 and plan.design.half_width < 0.9 * plan.equal.half_width
    costs, halves = [d.cost for d in plan.curve], [d.half_width for d in plan.curve]
    assert costs == sorted(costs) and halves == sorted(halves, reverse=True) and len(costs) >= 4
    assert max(n for _, n in plan.design.runs) <= 8
    again = plan_budget(options(paid=0), size(TARGET_WIDTH), 0.2, overhead=0.02, draws=8, curve=False)
    assert again.design == plan.design and again.equal == plan.equal
    shown = str(plan)
    assert "Equal spacing" in shown and "What other budgets buy" in shown and "seeds differ by 0.1 to 0.4 %" in shown
    assert json.loads(plan.to_json())["design"]["half_width"] == plan.design.half_width


@pytest.mark.slow
def test_seeds_of_the_smallest_sizes_are_no_way_to_a_narrow_interval():
    offered = options((32, 48, 64, 80, 96, 128, 160, 192, 256))
    x, target = np.array([o.N for o in offered]), size(TARGET_WIDTH)
    plan = plan_budget(offered, target, 0.35, overhead=0.03, draws=8, curve=False)
    crowd = np.array([7, 0, 1, 1, 0, 0, 0, 0, 1])  # what a criterion that pays for degrees of freedom chose
    assert abs(Menu(tuple(offered), 0.03).cost(crowd) - plan.design.cost) < 0.02
    assert plan.design.half_width < 0.9 * expected_interval(None, x, crowd, target, draws=8).half_width


def test_the_search_finds_what_trying_everything_finds():
    few = options([32, 64, 128, 192])
    x, budget = np.array([o.N for o in few]), 0.25
    menu = Menu(tuple(few), 0.0, 3)
    screen = Screen(PowerBelief.assumed(x[0], draws=16), {"N": x}, {"N": size(TARGET_WIDTH)})
    every = np.array([c for c in itertools.product(range(4), repeat=4) if np.count_nonzero(c) >= 3])
    every = every[menu.cost(every) <= budget]
    none = {"N": np.empty(0), "loss": np.empty(0)}
    found = search(Question(screen.belief, menu, {"N": size(TARGET_WIDTH)}, PowerLaw(), none, 0.9), budget)
    assert all(menu.cost(counts) <= budget for counts in found)
    assert screen.half_widths(found[0])[0] <= 1.02 * screen.half_widths(every).min()


@pytest.mark.slow
def test_the_tolerance_buys_the_cheapest_design_that_reaches_it():
    few = options([32, 64, 96, 160, 224])
    full = plan_budget(few, size(TARGET_WIDTH), 0.4, draws=8, curve=False)
    loose = plan_budget(few, size(TARGET_WIDTH), 0.4, draws=8, tolerance=2 * full.design.half_width)
    assert loose.tight and loose.design.cost < full.design.cost
    tight = plan_budget(few, size(TARGET_WIDTH), 0.4, draws=8, tolerance=full.design.half_width / 4, curve=False)
    assert tight.tight is False and "does not reach" in str(tight)


def test_finished_runs_are_kept_and_cost_nothing_more():
    rng = np.random.default_rng(0)
    n = np.repeat([size(w) for w in (32, 64, 96)], 2)
    law = PowerLaw().fit({"N": n, "loss": (0.3 * (n / n[0]) ** -0.4 + 0.7) * (1 + 0.002 * rng.normal(size=6))})
    there = [ProxyOption(o.width, o.N, o.cost, finished=2 * (o.width in (32, 64, 96))) for o in options()]
    spent = 2 * sum(o.cost for o in there if o.finished)
    plan = plan_budget(there, size(TARGET_WIDTH), 0.3, belief=law, overhead=spent, draws=8, curve=False)
    chosen = {o.width: n for o, n in plan.design.runs}
    assert all(chosen[w] >= 2 for w in (32, 64, 96))
    assert plan.design.cost == pytest.approx(spent + sum(o.cost * (n - o.finished) for o, n in plan.design.runs))
    assert "measured by 6 runs" in plan.beliefs and plan.equal is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0.001}, "does not buy three sizes"),
        ({"budget": -1}, "budget=-1"),
        ({"tolerance": 1.5}, "tolerance=1.5"),
        ({"max_seeds": 0}, "max_seeds=0"),
        ({"overhead": -1.0}, "overhead=-1.0"),
        ({"target": 10.0}, "No option is smaller"),
        ({"options": options() * 2}, "repeat a width"),
    ],
)
def test_bad_plans_are_refused(change, message):
    given = {"options": options(), "target": size(TARGET_WIDTH), "budget": 0.2} | change
    with pytest.raises(ConfigurationError, match=message):
        plan_budget(**given)


def test_an_option_is_checked():
    with pytest.raises(ConfigurationError, match="positive numbers"):
        ProxyOption(32, 1e6, 0.0)
    with pytest.raises(ConfigurationError, match="count runs"):
        ProxyOption(32, 1e6, 0.1, finished=-1)
    with pytest.raises(ConfigurationError, match="exponent"):
        Assumptions(exponent=(-0.4, 0.3))


def test_equal_spacing_reaches_as_far_as_the_budget_goes():
    counts = equal_spacing(options(), 0.2, sizes=4, seeds=2)
    chosen = [o.width for o, n in zip(options(), counts, strict=True) if n]
    assert set(counts) == {0, 2} and chosen[0] == 32 and len(chosen) == 4
    assert equal_spacing(options(), 0.001) is None


def test_the_figure_labels_few_ticks_of_one_size():
    full = plan_budget(options(), size(TARGET_WIDTH), 0.3, draws=4, curve=False)
    for stretch in (1, 2, 8, 1000):  # from less than a factor of two to four decades
        plan = replace(full, curve=tuple(replace(full.design, cost=c) for c in (0.1, 0.3 * stretch)))
        axes = plot_budget(plan).axes[0]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            assert not any(axis.get_minor_formatter()(value, 0) for value in (0.9, 1.0, 2.0, 60.0))
            labelled = [value for value in axis.get_majorticklocs() if low <= value <= high]
            assert 2 <= len(labelled) <= 8
            gaps = np.diff(np.log(labelled)) / np.log(high / low)
            assert gaps.min() > 0.05  # none runs into the next
