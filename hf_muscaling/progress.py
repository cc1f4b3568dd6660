"""Progress of a series on the terminal: one bar for the whole, one for each run under way, and the time left."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

if TYPE_CHECKING:
    from hf_muscaling.live import Label, LiveView
    from hf_muscaling.runs import Run

STEP_OVERHEAD = 2e6
"""Cost of a token that does not shrink with the model, in FLOPs: it makes the time left right for narrow widths."""


def run_cost(N: float, D: float) -> float:
    """Return the expected cost of a run in arbitrary units, D·(6N + overhead), for weighing runs against each other."""
    return D * (6.0 * N + STEP_OVERHEAD)


class SeriesProgress:
    """The bars of a series: one weighted by each run's cost, so that its estimate of the time left holds however many
    runs are trained side by side, and one for each of these. A `view` hears what they show.
    """

    def __init__(
        self,
        costs: Iterable[float],
        description: str = "series",
        enabled: bool = True,
        view: "LiveView | None" = None,
    ):
        self.view, self.total, self.done, self.began = view, sum(costs := list(costs)), 0.0, time.monotonic()
        # a log file gets a line every ten seconds instead of one every frame
        pace = {"mininterval": 0.5 if sys.stderr.isatty() else 10.0, "disable": not enabled, "dynamic_ncols": True}
        self.pace: dict[str, Any] = pace
        layout = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed} elapsed, {remaining} left{postfix}"
        self.bar = _steady(tqdm(total=sum(costs), desc=description, bar_format=layout, position=0, **pace))
        self.runs: dict[int, RunProgress] = {}

    @property
    def seconds_left(self) -> float | None:
        """The time that what is not done takes at the pace so far; None before anything is done."""
        return (time.monotonic() - self.began) * (self.total - self.done) / self.done if self.done > 0 else None

    def start(self, name: str, cost: float, label: "Label | None" = None) -> "RunProgress":
        """Announce a run that is trained next; its bar takes the first free line, its curve goes to the view."""
        line = next(k for k in range(1, len(self.runs) + 2) if k not in self.runs)
        self.runs[line] = run = RunProgress(self, name, cost, line, label)
        self.bar.set_postfix_str(name if len(self.runs) == 1 else f"{len(self.runs)} runs", refresh=False)
        return run

    def skip(self, cost: float, run: "Run | None" = None) -> None:
        """Leave a run that was read back, not trained, out of the total; the view shows it."""
        self.total = max(self.total - cost, self.done)
        if self.view is not None and run is not None:
            self.view.finished(run)
        self.bar.total = max(self.bar.total - cost, self.bar.n)
        self.bar.refresh()

    def advance(self, cost: float) -> None:
        """Count some cost as done, never past the end by a rounding error."""
        self.done = min(self.done + cost, self.total)
        if self.view is not None and self.total > 0:
            self.view.time_left(self.done / self.total, self.seconds_left)
        self.bar.update(min(cost, self.bar.total - self.bar.n))

    def say(self, text: str) -> None:
        """Print a line above the bars, if they are shown."""
        if not self.bar.disable:
            self.bar.write(text)

    def close(self) -> None:
        """Leave the series bar on the screen and stop."""
        for run in list(self.runs.values()):
            run.drop()
        self.bar.close()


class RunProgress(TrainerCallback):
    """One run's bar: a callback of the Trainer in this process, or told by another process's messages."""

    def __init__(self, series: SeriesProgress, name: str, cost: float, line: int, label: "Label | None" = None):
        self.series, self.name, self.cost, self.line, self.label = series, name, cost, line, label
        self.bar: Any = None
        self.done = 0.0
        self.steps = 1

    def begin(self, steps: int, first: int) -> None:
        """Show the bar of a run of so many steps that starts after the first few."""
        self.steps = steps
        if self.bar is not None:  # the process that trained it was lost, another one continues
            self.bar.close()
        bar = tqdm(
            total=steps, initial=first, desc=self.name, unit="step", leave=False, position=self.line, **self.series.pace
        )
        self.bar = _steady(bar)

    def reach(self, step: int) -> None:
        """Show that a step is done."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
        self._advance(step / self.steps)

    def show_loss(self, loss: float, step: int | None = None) -> None:
        """Show the loss of the last row, that of a step."""
        if self.series.view is not None and self.label is not None and step is not None:
            self.series.view.row(self.label, step, loss)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)

    def finish(self, run: "Run | None" = None) -> None:
        """Count the run as done; one that was read back, not trained, leaves the total instead."""
        if self.series.view is not None and run is not None:
            self.series.view.finished(run)
        if self.bar is None and self.done == 0.0:
            self.series.skip(self.cost)
        else:
            self._advance(1.0)
        self.drop()

    def drop(self) -> None:
        """Free the run's line."""
        if self.bar is not None:
            self.bar.close()
        self.series.runs.pop(self.line, None)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.begin(state.max_steps, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.reach(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.show_loss(logs["loss"], state.global_step)

    def _advance(self, fraction: float) -> None:
        self.series.advance(max(fraction - self.done, 0.0) * self.cost)
        self.done = max(fraction, self.done)


def _steady(bar: Any) -> Any:
    """Return a tqdm bar on the monotonic clock: on tqdm's own, the wall clock, a jump back freezes it until then."""
    if not bar.disable:
        bar._time = time.monotonic  # there is no public way; a test notices if the name goes
        bar.start_t = bar.last_print_t = time.monotonic()
    return bar
