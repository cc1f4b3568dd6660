"""Progress of a series on the terminal: one bar for the whole, one for the run at hand, and the time left."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

STEP_OVERHEAD = 2e6
"""Cost of a token that does not shrink with the model, in FLOPs: it makes the time left right for narrow widths."""


def run_cost(N: float, D: float) -> float:
    """Return the expected cost of a run in arbitrary units, D·(6N + overhead), for weighing runs against each other."""
    return D * (6.0 * N + STEP_OVERHEAD)


class SeriesProgress(TrainerCallback):
    """Two bars: the series, weighted by each run's cost so that its estimate of the time left holds, and the run."""

    def __init__(self, costs: Iterable[float], description: str = "series", enabled: bool = True):
        # a log file gets a line every ten seconds instead of one every frame
        pace = {"mininterval": 0.5 if sys.stderr.isatty() else 10.0, "disable": not enabled, "dynamic_ncols": True}
        self.pace: dict[str, Any] = pace
        layout = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed} elapsed, {remaining} left{postfix}"
        self.series = tqdm(total=sum(costs), desc=description, bar_format=layout, position=0, **pace)
        self.run: Any = None
        self.name = ""
        self.cost = 0.0
        self.done = 0.0

    def start(self, name: str, cost: float) -> None:
        """Announce the run that is trained next."""
        self.cost, self.done, self.name = cost, 0.0, name
        self.series.set_postfix_str(name, refresh=False)

    def finish(self) -> None:
        """Count the run at hand as done; one that was read back, not trained, leaves the total instead."""
        if self.run is None and self.done == 0.0:
            self.series.total = max(self.series.total - self.cost, self.series.n)
            self.series.refresh()
        else:
            self._advance(1.0)
        if self.run is not None:
            self.run.close()
        self.run, self.cost, self.done = None, 0.0, 0.0

    def close(self) -> None:
        """Leave the series bar on the screen and stop."""
        if self.run is not None:
            self.run.close()
        self.series.close()

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.run = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.name, unit="step", leave=False, position=1,
                **self.pace,
            )  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        if self.run is not None:
            self.run.update(1)
            self._advance(state.global_step / state.max_steps)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.run is not None and logs and "loss" in logs:
            self.run.set_postfix_str(f"loss {logs['loss']:.4f}", refresh=False)

    def _advance(self, fraction: float) -> None:
        ahead = (fraction - self.done) * self.cost
        self.series.update(min(ahead, self.series.total - self.series.n))  # never past the end by a rounding error
        self.done = fraction
