"""The pruning rule replayed on recorded grids: the optimum's basin survives, and median pruning stops members of it.

`curves/grid.json` holds real runs of `muscaling sweep`'s cells without pruning: width 32, two layers, 320 steps of 16
sequences of 64 tokens of the embedded corpus, cosine schedule, nine learning rates 0.0005·2^k, their training losses up
to half of the run and their held-out losses at the end.
"""

import json
import random
from pathlib import Path

import pytest

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.pruning import basin_pruner, hopeless, require_optuna, rung_loss, rungs

STEPS = 320
ROWS = json.loads((Path(__file__).parent / "curves" / "grid.json").read_text())
ORDERS = 60


def grids():
    found = {}
    for row in ROWS:
        curve = [{"step": step, "loss": loss} for step, loss in row["curve"]]
        losses = {rung: rung_loss(curve, rung) for rung in rungs(STEPS)}
        found.setdefault((row["architecture"], row["init_std"]), {})[row["learning_rate"]] = (losses, row["loss"])
    return found


def replay(grid, order, pruner):
    """Run the grid's trials in an order through Optuna; return learning rate → the rung at which it was stopped."""
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(pruner=pruner)
    stopped = {}
    for lr in order:
        trial = study.ask()
        losses, final = grid[lr]
        for rung, loss in losses.items():
            trial.report(loss, rung)
            if trial.should_prune():
                stopped[lr] = rung
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, final)
    return stopped


def basin(grid):
    """The learning rates within a factor of 4 of the best, and those whose loss is within 3 % of the lowest."""
    best = min(grid, key=lambda lr: grid[lr][1])
    return {lr for lr in grid if best / 4.1 < lr < best * 4.1 or grid[lr][1] < 1.03 * grid[best][1]}


@pytest.mark.parametrize("key", grids(), ids=str)
def test_the_basin_survives_in_every_order_and_the_hopeless_do_not(key):
    pytest.importorskip("optuna")
    grid = grids()[key]
    rng = random.Random(0)
    stopped, steps = set(), 0
    for _ in range(ORDERS):
        order = rng.sample(sorted(grid), len(grid))
        found = replay(grid, order, basin_pruner(STEPS))
        stopped |= set(found)
        steps += sum(found.get(lr, STEPS) for lr in grid)
    assert len(basin(grid)) >= 4
    assert not stopped & basin(grid)
    assert min(grid) in stopped  # a thirty-second of the best rate
    assert steps < 0.96 * ORDERS * STEPS * len(grid)


def test_median_pruning_stops_members_of_the_basin():
    """The negative control: small rates bloom late, Optuna's default stops them, and sometimes the best."""
    optuna = pytest.importorskip("optuna")
    rng = random.Random(0)
    members, bests = 0, 0
    for grid in grids().values():
        best = min(grid, key=lambda lr: grid[lr][1])
        for _ in range(ORDERS):
            found = replay(grid, rng.sample(sorted(grid), len(grid)), optuna.pruners.MedianPruner())
            members += bool(set(found) & basin(grid))
            bests += best in found
    assert members > 0.5 * ORDERS * len(grids())
    assert bests > 0


def test_the_rule():
    fast = {5: 6.9, 10: 6.5, 20: 6.0, 40: 5.5, 80: 5.0}
    assert hopeless({80: 6.2}, [fast], STEPS)
    assert not hopeless({80: 6.05}, [fast], STEPS)  # the margin of 1 %
    assert not hopeless({80: 6.2}, [], STEPS)
    assert not hopeless({10: 9.0}, [fast], STEPS)  # no rung at a quarter of it
    assert not hopeless({80: 6.2}, [{20: float("nan")}, {40: 5.0}], STEPS)
    assert hopeless({80: float("nan")}, [], STEPS)
    assert not hopeless({}, [fast], STEPS)


def test_rungs_and_their_losses():
    assert rungs(320) == [5, 10, 20, 40, 80, 160]
    assert rungs(2) == [1]
    curve = [{"step": s, "loss": float(s)} for s in (1, 4, 8, 12, 16, 20)]
    assert rung_loss(curve, 16) == 16.0
    assert rung_loss(curve, 20) == 18.0
    assert rung_loss(curve, 3) == 1.0
    assert rung_loss([], 5) is None


def test_without_optuna(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigurationError, match="pip install"):
        basin_pruner(100)
