"""Training curves as the table that laws fit: losses averaged over windows that grow like the steps do.

In a run that sees no block twice, a batch's loss is taken before the model has learnt from it: an unbiased estimate of
the loss on the text it trains on, noisy by a few hundredths. (On documents of which it has seen nothing the loss is
higher, by the 1 % that blocks of one document tell about each other.) Averaged over windows with edges in constant
ratio, every window has the same error relative to the curve's own fall.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.runs import Run

RATIO = 1.15
"""Last step of a window over that of the window before: a power law bends by less than 0.1 % of its fall within."""


def curve_table(runs: Iterable[Run], *, ratio: float = RATIO, skip: float = 0.0) -> list[dict[str, Any]]:
    """Return the training curves of finished runs as rows for a law: one row a window of steps.

    Each row holds N, N_non_embedding, D (tokens), S and step (optimizer steps), B (tokens a step), loss (nats per
    token, the mean over the window), lr, width, seed, family and run_id. A window ends `ratio` times later than it
    begins, or at the next logged row; S is the geometric mean of the updates done at its ends. Windows that begin
    before the share `skip` of a run are left out: the warm-up.

    The rows of a curve are means since the row before, so that nothing that was logged is lost. Raises
    ConfigurationError if the ratio is not above 1, or no run has a curve.

    >>> run = Run("r", "finished", N=100, N_non_embedding=60, D=8000, S=80, B=100, C=1.0, loss=2.0, width=8, seed=0,
    ...           lr=0.1, curve=[{"step": s, "tokens": 100 * s, "loss": 4.0, "lr": 0.1} for s in range(1, 81)])
    >>> [round(row["S"], 1) for row in curve_table([run], ratio=2.0)]
    [2.3, 5.1, 10.8, 22.1, 44.7, 71.1]
    """
    if not ratio > 1:
        raise ConfigurationError(f"ratio={ratio!r} must be above 1: the end of a window over its beginning.")
    if not 0 <= skip < 1:
        raise ConfigurationError(f"skip={skip!r} must be a share of each run from 0 to below 1.")
    rows = []
    for run in runs:
        if not run.finished:
            continue
        fixed = {name: getattr(run, name) for name in ("N", "N_non_embedding", "B", "seed", "width", "family")}
        for begin, end, loss, lr in _windows(run, ratio):
            if begin >= skip * run.S:
                # A batch's loss is taken before its update: these are the losses after begin … end - 1 updates.
                step = float(np.sqrt((begin - 0.5) * (end - 0.5)))
                rows.append({"run_id": run.run_id, **fixed, "S": step, "step": step, "D": step * run.B} | {
                    "loss": loss, "lr": lr})  # fmt: skip
    if not rows:
        raise ConfigurationError("No finished run has a curve: train with logging_steps, and without divergence.")
    return rows


def _windows(run: Run, ratio: float) -> Iterable[tuple[float, float, float, float]]:
    """First and last step, mean loss and last learning rate of each window, from step 1 on."""
    begin, weight, total = 0, 0, 0.0
    before = 0
    for row in (row for row in run.curve if "loss" in row):
        step = int(row["step"])
        total += row["loss"] * (step - before)
        weight += step - before
        before = step
        if step >= max(begin, 1) * ratio or step >= run.S:
            if begin and weight:
                yield float(begin), float(step), total / weight, float(row["lr"])
            begin, weight, total = step, 0, 0.0


def steps_to_loss(steps: Any, losses: Any, level: float) -> float:
    """Return the step at which a measured curve first reaches a loss, on straight lines between log steps; inf if not.

    The running minimum decides, so that noise on the way does not.

    >>> round(steps_to_loss([100, 200, 400], [4.0, 3.5, 3.0], 3.5), 3)
    200.0
    """
    order = np.argsort(np.asarray(steps, float))
    log = np.log(np.asarray(steps, float)[order])
    lowest = np.minimum.accumulate(np.asarray(losses, float)[order])
    if level > lowest[0] or level < lowest[-1]:
        return float("inf") if level < lowest[-1] else float("nan")
    return float(np.exp(np.interp(-level, -lowest, log)))
