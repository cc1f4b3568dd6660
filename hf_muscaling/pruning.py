"""When a run of a sweep is hopeless: a rule that spares the optimum's basin, and a pruner of Optuna that applies it.

A run is stopped at step t only if its loss is still above what some other run had at t/4. Why this spares the runs that
matter:

* Too small a learning rate. While training is stable, a run with rate η/k follows the run with rate η, k times slower
  (gradient flow depends on η·t alone). A rate within a factor of 4 of the best is therefore never behind the best's
  loss at t/4. Linear warm-up, whose first t/4 steps have far less than a quarter of the rates' sum, widens this.
* Too large a learning rate. Such a run's loss falls last, when the schedule decays, so that its loss midway says
  little; but only one that hardly learns at all is above the others' loss at t/4.
* Noise. All runs see the same batches in the same order, and losses are means over a stretch of steps; a margin of 1 %,
  more than twice what two seeds of one width differ by at base width, is left on top.

Median pruning, Optuna's default, stops whatever is worse than half of the others midway, late bloomers among them:
tests/test_pruning.py replays recorded curves of a grid through both.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from hf_muscaling.errors import ConfigurationError

LAG = 4
MARGIN = 0.01
RUNGS = 6
"""Losses are compared at steps T/2, T/4, T/8 and T/16 with those at T/8, T/16, T/32 and T/64."""


def require_optuna() -> Any:
    """Return the module optuna. Raises ConfigurationError with the command that installs it."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigurationError("Sweeps need Optuna: pip install 'hf_muscaling[optuna]'.") from error
    return optuna


def rungs(steps: int) -> list[int]:
    """Return the steps at which runs of so many steps report their loss: T/2^k, from the first to T/2.

    >>> rungs(800)
    [13, 25, 50, 100, 200, 400]
    """
    return sorted({-(-steps // 2**k) for k in range(1, RUNGS + 1)} - {steps})


def rung_loss(curve: Iterable[Mapping[str, float]], rung: int) -> float | None:
    """Return the mean training loss of the rows in the last quarter before a rung, or of the last row before it.

    `curve` has rows with `step` and `loss` (`MuTrainer.curve`). None without a row.
    """
    rows = [row for row in curve if row["step"] <= rung]
    late = [row["loss"] for row in rows if row["step"] > 0.75 * rung] or [row["loss"] for row in rows[-1:]]
    return sum(late) / len(late) if late else None


def hopeless(losses: Mapping[int, float], others: Iterable[Mapping[int, float]], steps: int) -> bool:
    """Return whether to stop a run: at its last rung its loss is 1 % above another's at a quarter of the rung.

    `losses` maps rungs to losses, as do `others`, of runs with as many steps. A loss that is not finite is hopeless.

    >>> fast = {13: 6.0, 25: 5.5, 50: 5.0, 100: 4.5}
    >>> hopeless({25: 6.8, 50: 6.3, 100: 5.5}, [fast], steps=800), hopeless({100: 5.7}, [fast], steps=800)
    (False, True)
    """
    if not losses:
        return False
    rung = max(losses)
    if not math.isfinite(losses[rung]):
        return True
    steps_of = rungs(steps)
    if rung not in steps_of:
        return False
    earlier = steps_of.index(rung) - int(math.log2(LAG))
    if earlier < 0:
        return False
    bars = [other[steps_of[earlier]] for other in others if steps_of[earlier] in other]
    finite = [bar for bar in bars if math.isfinite(bar)]
    return bool(finite) and losses[rung] > (1 + MARGIN) * min(finite)


def basin_pruner(steps: int) -> Any:
    """Return an `optuna.pruners.BasePruner` that stops hopeless trials of so many steps.

    Trials report `rung_loss` at `rungs(steps)`. Raises ConfigurationError without Optuna.
    """
    Base: Any = require_optuna().pruners.BasePruner

    class BasinPruner(Base):
        """Stop a trial whose loss at a rung is above another's at a quarter of the rung."""

        def prune(self, study: Any, trial: Any) -> bool:
            """Return whether the trial should be stopped."""
            others = (t.intermediate_values for t in study.get_trials(deepcopy=False) if t.number != trial.number)
            return hopeless(trial.intermediate_values, others, steps)

    return BasinPruner()
