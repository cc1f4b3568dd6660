"""Which runs lie side by side: a function of their costs alone, and no worse than either extreme."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.placement import GAIN, RATE, START, assign, place, speed_up

SECOND = RATE["cpu"]  # the cost of a second on one thread
costs_of_runs = st.lists(st.floats(0.1, 1000.0), min_size=1, max_size=12).map(lambda x: [c * SECOND for c in x])


def together(costs, lanes):
    return sum(costs) / SECOND / speed_up(lanes)


@given(costs_of_runs, st.sampled_from([1, 2, 3, 4, 8, 64]), st.sampled_from(["auto", "together", "apart"]))
def test_every_run_is_placed_once(costs, lanes, mode):
    plan = place(costs, lanes, mode)
    assert sorted((*plan.together, *plan.apart)) == list(range(len(costs)))
    assert 1 <= plan.workers * plan.width <= max(lanes, 1)
    assert [costs[k] for k in plan.apart] == sorted((costs[k] for k in plan.apart), reverse=True)
    assert plan == place(list(costs), lanes, mode)
    if mode != "auto":
        assert not (plan.together if mode == "apart" else plan.apart)


@given(costs_of_runs, st.sampled_from([2, 4, 16]))
def test_auto_is_never_expected_to_be_slower_than_together(costs, lanes):
    plan = place(costs, lanes)
    assert plan.seconds <= together(costs, lanes) * (1 + 1e-9)
    if plan.apart:
        assert plan.seconds < GAIN * together(costs, lanes)


@given(st.lists(st.floats(1.0, 100.0), min_size=1, max_size=6), st.integers(1, 3))
def test_longest_first_is_within_a_third_of_the_best_schedule(seconds, lanes):
    """Graham 1969: at most 4/3 − 1/(3 lanes) of the best, found here by trying all."""
    seconds = sorted(seconds, reverse=True)
    best = min(
        max(sum(s for s, lane in zip(seconds, chosen, strict=True) if lane == k) for k in range(lanes))
        for chosen in itertools.product(range(lanes), repeat=len(seconds))
    )
    assert assign(seconds, [0.0] * lanes)[1] <= (4 / 3 - 1 / (3 * lanes)) * best * (1 + 1e-9)


def test_small_runs_side_by_side_and_a_large_one_on_everything():
    plan = place([50 * SECOND] * 8 + [600 * SECOND], lanes=2)
    assert plan.together == (8,) and plan.apart == tuple(range(8)) and (plan.workers, plan.width) == (2, 1)


def test_an_odd_grid_does_not_leave_a_thread_idle():
    """Of three equal runs on two threads the first gets both: 31 + 3 + 50 seconds instead of 94."""
    plan = place([50 * SECOND] * 3, lanes=2)
    assert len(plan.together) == 1 and len(plan.apart) == 2
    assert plan.seconds == pytest.approx(50 / speed_up(2) + START / 2 + 50)


def test_runs_too_short_to_wait_for_a_worker():
    assert place([START / 10 * SECOND] * 4, lanes=2).apart == ()


def test_many_threads_and_few_runs_are_not_one_thread_each():
    plan = place([100 * SECOND] * 4, lanes=64)
    assert plan.width > 1


def test_memory_limits_the_workers_and_lanes():
    costs = [100 * SECOND] * 8
    assert place(costs, 8, "apart", memory=[1e9] * 8, memory_limit=3.5e9).workers == 3
    plan = place(costs, 8, memory=[1e9] * 7 + [9e9], lane_memory=8e9, own_lane=False, wide=False)
    assert plan.together == (7,) and len(plan.apart) == 7


def test_an_unknown_mode():
    with pytest.raises(ConfigurationError, match="placement='alone' is unknown; use one of auto, together, apart"):
        place([1.0], 2, "alone")
