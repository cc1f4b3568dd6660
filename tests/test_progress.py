"""The bars: several runs at once, a total that shrinks for runs read back, and no trust in the wall clock."""

import time

import pytest

from hf_muscaling.progress import SeriesProgress


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr("sys.stderr", __import__("io").StringIO())
    bars = SeriesProgress([10.0, 30.0, 60.0])
    yield bars
    bars.close()


def test_runs_side_by_side(shown):
    first, second = shown.start("a", 10.0), shown.start("b", 30.0)
    assert (first.line, second.line) == (1, 2)
    first.begin(steps=100, first=0)
    second.begin(steps=10, first=5)  # continued from a checkpoint
    first.reach(50)
    second.reach(8)
    assert shown.bar.n == pytest.approx(5 + 24)
    assert (first.bar.n, second.bar.n) == (50, 8)
    first.finish()
    assert shown.bar.n == pytest.approx(10 + 24)
    assert shown.start("c", 60.0).line == 1  # the line that is free again
    second.begin(steps=10, first=5)  # its worker was lost: the checkpoint is behind what was shown
    second.reach(6)
    assert shown.bar.n == pytest.approx(10 + 24)
    second.finish()
    assert shown.bar.n == pytest.approx(40)


def test_runs_read_back_leave_the_total(shown):
    shown.skip(30.0)
    shown.start("a", 10.0).finish()
    assert shown.bar.total == pytest.approx(60)


def test_the_wall_clock_may_jump(shown, monkeypatch):
    """tqdm's own clock would freeze the bar until the wall clock is back where it was."""
    run = shown.start("a", 10.0)
    run.begin(steps=100, first=0)
    monkeypatch.setattr("time.time", lambda: 0.0)
    for bar in (shown.bar, run.bar):
        assert bar._time is time.monotonic
        assert 0 <= bar.format_dict["elapsed"] < 60


def test_a_disabled_bar_counts_nothing_and_breaks_nothing():
    bars = SeriesProgress([1.0], enabled=False)
    run = bars.start("a", 1.0)
    run.begin(10, 0)
    run.reach(5)
    run.show_loss(1.0)
    run.finish()
    bars.skip(0.5)
    bars.close()
