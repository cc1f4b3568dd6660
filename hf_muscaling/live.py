"""A live view of a series in trackio or TensorBoard: every width's curve over tokens, the predicted target, time left.

The process that shows the progress bars also feeds the view, from what it trains itself and from what its workers
report; runs of other launched processes appear when they are finished. The view only listens: it takes no part in any
run, and when it fails it says so once and training goes on without it.
"""

from __future__ import annotations

import contextvars
import functools
import importlib.util
import io
import logging
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hf_muscaling.errors import ConfigurationError
from hf_muscaling.runs import Run

logger = logging.getLogger(__name__)

VIEWS = ("none", "auto", "trackio", "tensorboard")
PACE = 2.0
"""Seconds between two updates of the time left."""
SERIES = "series"
"""Name of the view's run that holds what belongs to no width: the prediction and the time left."""


class Sink(Protocol):
    """Where a view writes: `log` takes the view's run, its values, and the tokens that they are at."""

    where: str

    def log(self, run: str, values: dict[str, float], tokens: int) -> None:
        """Write values."""

    def close(self) -> None:
        """Write what is left and stop."""


@dataclass(frozen=True)
class Label:
    """Which curve a training run is: one run of the view a width, one curve in it a seed (or a learning rate)."""

    role: str
    width: int
    lr: float
    seed: int
    tokens_per_step: int

    @classmethod
    def of(cls, run: Run) -> Label:
        """Return the label of a finished run."""
        return cls(run.role, run.width, run.lr, run.seed, run.B)

    @property
    def run(self) -> str:
        """The view's run."""
        prefix = {"grid": "search, ", "target": "target, "}.get(self.role, "")
        return f"{prefix}width {self.width:04d}"

    @property
    def curve(self) -> str:
        """The curve in it: the same name at every width, so that all widths share a chart."""
        return f"lr {self.lr:.3g}" if self.role == "grid" else f"seed {self.seed}"


def _safe(method: Callable[..., None]) -> Callable[..., None]:
    """Let a view's method fail once, with a warning; random states stay as they were."""

    @functools.wraps(method)
    def call(self: LiveView, *args: Any) -> None:
        if self.failed:
            return
        states = random.getstate(), np.random.get_state()
        try:
            method(self, *args)
        except Exception as error:  # whatever a tracker, its disk or its server does, training goes on
            self.failed = True
            logger.warning(
                "The live view stopped (%s: %s). Training goes on without it; its records are complete.",
                type(error).__name__, error,
            )  # fmt: skip
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])

    return call


class LiveView:
    """Writes a series to a sink as it is trained.

    `predict` takes the finished proxies and returns a `Prediction` of the target, or None while there are too few. An
    error in any method ends the view with one warning and nothing else.
    """

    def __init__(self, sink: Sink, predict: Callable[[Sequence[Run]], Any] | None = None):
        self.sink, self.predict = sink, predict
        self.proxies: dict[str, Run] = {}
        self.tokens: dict[Label, int] = {}
        self.failed = False
        self._told = -math.inf

    @_safe
    def row(self, label: Label, step: int, loss: float) -> None:
        """Show the training loss of a step."""
        tokens = step * label.tokens_per_step
        if tokens > self.tokens.get(label, 0):  # a run that is continued repeats the steps since its checkpoint
            self.tokens[label] = tokens
            self.sink.log(label.run, {f"loss/{label.curve}": loss}, tokens)

    @_safe
    def finished(self, run: Run) -> None:
        """Show a run's held-out loss, what its curve has beyond what was seen, and the prediction that now follows."""
        label = Label.of(run)
        for row in run.curve:
            if "loss" in row and "step" in row:
                self.row(label, int(row["step"]), row["loss"])
        self.tokens[label] = run.D
        if run.loss is not None:
            self.sink.log(label.run, {f"held-out loss/{label.curve}": run.loss}, run.D)
        if run.role == "proxy" and run.finished and run.run_id not in self.proxies:
            self.proxies[run.run_id] = run
            self._predict()

    @_safe
    def time_left(self, done: float, seconds: float | None) -> None:
        """Show the share of the series that is done and the seconds left, at most every `PACE` seconds."""
        if time.monotonic() - self._told < PACE:
            return
        self._told = time.monotonic()
        values = {"progress/done, %": 100 * done}
        if seconds is not None:
            values["progress/time left, minutes"] = seconds / 60
        self.sink.log(SERIES, values, self._trained())

    @_safe
    def close(self) -> None:
        """Write what is left."""
        self.sink.close()

    def _predict(self) -> None:
        p = self.predict(list(self.proxies.values())) if self.predict is not None else None
        if p is not None:
            values = {"predicted loss": p.loss, "low": p.low, "high": p.high, "proxies": len(self.proxies)}
            self.sink.log(SERIES, {f"target/{name}": float(value) for name, value in values.items()}, self._trained())

    def _trained(self) -> int:
        """Tokens trained so far, over all runs."""
        return sum(self.tokens.values())


class TrackioSink:
    """One trackio project a call, one of its runs a width; `trackio show` opens it."""

    def __init__(self, project: str):
        import trackio

        self.trackio, self.project = trackio, project
        self.where = f"trackio show --project {project}"
        self.runs: dict[str, Any] = {}
        self._run(SERIES)

    def log(self, run: str, values: dict[str, float], tokens: int) -> None:
        """Write values at a step that is the number of tokens."""
        self._run(run).log(values, step=tokens)

    def close(self) -> None:
        """Finish every run."""
        with redirect_stdout(io.StringIO()):
            for run in self.runs.values():
                run.finish()
        self.runs = {}

    def _run(self, name: str) -> Any:
        if name not in self.runs:
            # in a context of its own: `init` would otherwise finish the run before
            with redirect_stdout(io.StringIO()):
                self.runs[name] = contextvars.Context().run(
                    self.trackio.init, project=self.project, name=name, embed=False,
                    auto_log_gpu=False, auto_log_cpu=False,
                )  # fmt: skip
        return self.runs[name]


class TensorBoardSink:
    """Event files in a folder, a sub-folder a width; `tensorboard --logdir` opens it."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer, self.folder = SummaryWriter, folder
        self.where = f"tensorboard --logdir {folder}"
        self.writers: dict[str, Any] = {}
        self._writer(SERIES)

    def log(self, run: str, values: dict[str, float], tokens: int) -> None:
        """Write values at a step that is the number of tokens."""
        for name, value in values.items():
            self._writer(run).add_scalar(name, value, tokens)

    def close(self) -> None:
        """Close every file."""
        for writer in self.writers.values():
            writer.close()
        self.writers = {}

    def _writer(self, name: str) -> Any:
        if name not in self.writers:
            self.writers[name] = self.writer(str(self.folder / name), flush_secs=5)
        return self.writers[name]


def check_view(view: str) -> str:
    """Return which view an option asks for, "auto" resolved; "none" where it finds nothing installed.

    Raises ConfigurationError for an unknown one, or one that is not installed.

    >>> check_view("none")
    'none'
    """
    if view not in VIEWS:
        raise ConfigurationError(f"live={view!r} is unknown; use one of {', '.join(VIEWS)}.")
    there = {name: importlib.util.find_spec(name) is not None for name in VIEWS[2:]}
    if view == "auto":
        found = [name for name in VIEWS[2:] if there[name]]
        if not found:
            logger.warning("No live view: neither trackio nor tensorboard is installed (`pip install trackio`).")
        return found[0] if found else "none"
    if view != "none" and not there[view]:
        raise ConfigurationError(f"live={view!r} needs the package {view}: `pip install {view}`, or use live='none'.")
    return view


def open_view(view: str, folder: Path, predict: Callable[[Sequence[Run]], Any] | None = None) -> LiveView | None:
    """Return the view that an option asks for, None for "none" or where it cannot be opened (said in a warning).

    Every call makes a new project (trackio) or folder (`live/` below `folder`, TensorBoard), named by the time, and
    shows finished runs again: a series that is continued is complete in the last one.
    """
    view = check_view(view)
    if view == "none":
        return None
    name = time.strftime("%Y%m%d-%H%M%S")
    sink: Sink
    try:
        if view == "trackio":
            sink = TrackioSink(f"{folder.resolve().name}-{name}")
        else:
            sink = TensorBoardSink(folder / "live" / name)
    except Exception as error:  # a tracker may raise anything when it starts
        logger.warning("No live view: %s could not start (%s: %s).", view, type(error).__name__, error)
        return None
    print(f"Live view: {sink.where}", file=sys.stderr)
    return LiveView(sink, predict)
