"""Every law × window × number of models × percentage of training on one table: the Hitchhiker's Guide's heat maps."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from ..errors import ConfigurationError, FitError
from .base import ScalingLaw
from .evaluation import evaluate_extrapolation, evaluate_together, prototype
from .hold_out import OrderedRuns
from .selection import run_index
from .table import _columns, run_labels
from .together import batched

AT_ONCE = 512  #: cells fitted together
_Task = tuple[ScalingLaw, Any, list[tuple[float, float, int]]]  #: a law, the target, and (window, seen, models)
PERCENTAGES = tuple(round(0.1 * k, 1) for k in range(1, 11))


@dataclass(frozen=True)
class ExtrapolationGrid:
    """ARE at the largest model, one number per law, window, number of models and share of training seen.

    `are` has the shape (laws, windows, models, seen), NaN where the law could not be fitted. `fits` laws were fitted in
    `seconds`.
    """

    laws: tuple[str, ...]
    windows: tuple[float, ...]
    models: tuple[int, ...]
    seen: tuple[float, ...]
    are: np.ndarray
    fits: int
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """One dict a cell: law, window, models, seen, are (None where no law could be fitted)."""
        return [
            {
                "law": self.laws[i],
                "window": self.windows[j],
                "models": self.models[k],
                "seen": self.seen[m],
                "are": None if np.isnan(value) else float(value),
            }
            for (i, j, k, m), value in np.ndenumerate(self.are)
        ]

    def plot(self, title: str = "") -> Any:
        """The heat maps, a matplotlib figure; see `laws.heatmap.plot_extrapolation_grid`."""
        from .heatmap import plot_extrapolation_grid

        return plot_extrapolation_grid(self, title)

    def __str__(self) -> str:
        """The ARE with all models and all of their training, a line a law and window."""
        lines = [f"{self.fits} laws fitted in {self.seconds:.1f} s. ARE at the largest model, in %:"]
        lines.append(f"{'law':>14} {'window':>7} {'all models, all training':>25} {'median over the map':>20}")
        for i, law in enumerate(self.laws):
            for j, window in enumerate(self.windows):
                cells = self.are[i, j]
                known = cells[np.isfinite(cells)]
                median = f"{100 * np.median(known):.2f}" if len(known) else "–"
                last = cells[-1, -1]
                full = f"{100 * last:.2f}" if np.isfinite(last) else "–"
                lines.append(f"{law:>14} {window:>7g} {full:>25} {median:>20}")
        return "\n".join(lines)


def extrapolation_grid(
    table: Any,
    laws: Mapping[str, ScalingLaw] | Iterable[ScalingLaw | type[ScalingLaw]],
    windows: Sequence[float] = (0.0, 0.1, 0.3, 0.5),
    seen: Sequence[float] = PERCENTAGES,
    models: Sequence[int] | None = None,
    *,
    target: Any = "largest",
    checkpoints: int | None = 30,
    progress: Callable[[int, int], None] | None = None,
    processes: int = 1,
) -> ExtrapolationGrid:
    """Fit every law on the first `seen` of the `models` smallest models, after leaving out the first `window` of what
    is left of each run, and score each at the target (`evaluate_extrapolation`, without intervals).

    `laws` is {name: law}, or a list of laws, which go by their classes' names (and objectives, if one comes twice);
    `models` defaults to 3 up to all sizes below the target; `checkpoints` thins each run to about so many rows, evenly
    (None keeps all); `progress(done, all)` is called after every fit; `processes` share the work. Cells that cannot be
    fitted are NaN.

    Raises `ConfigurationError` without laws or for what is none, `FitError` for a table with fewer than three sizes
    below the target.
    """
    laws = _by_name(laws)
    if not laws or not len(windows) or not len(seen):
        raise ConfigurationError("Give at least one law, one window and one share of training.")
    raw = {name: np.asarray(values) for name, values in _columns(table).items()}
    if checkpoints is not None:
        raw = thin(raw, checkpoints)
    _warn_once(raw, laws)
    if models is None:
        whole = _whole(raw, laws, target)
        models = tuple(range(3, whole + 1))
        if not models:
            raise FitError(f"The table has {whole} sizes below the target; a map needs at least 3. Add sizes.")
    shape = (len(laws), len(windows), len(models), len(seen))
    settings = [(window, share, count) for window in windows for count in models for share in seen]
    tasks: list[_Task] = []
    for law in laws.values():
        together = min(AT_ONCE, -(-len(settings) // max(processes, 1)))  # every process has a share
        size = together if batched(law) and target != "rolling" else 1
        tasks += [(law, target, settings[i : i + size]) for i in range(0, len(settings), size)]
    start, found = time.perf_counter(), []
    for values in _evaluated(raw, tasks, processes):
        for value in values:
            found.append(value)
            if progress is not None:
                progress(len(found), len(laws) * len(settings))
    are = np.array(found).reshape(shape)
    fits = int(np.isfinite(are).sum())
    if not fits:
        evaluate_extrapolation(raw, next(iter(laws.values())), target, level=None)  # raises the reason
    seconds = time.perf_counter() - start
    return ExtrapolationGrid(
        tuple(laws), tuple(map(float, windows)), tuple(models), tuple(map(float, seen)), are, fits, seconds
    )


def _by_name(laws: Any) -> dict[str, ScalingLaw]:
    """Unfitted laws under the names that the map shows."""
    if isinstance(laws, Mapping):
        return {str(name): prototype(law) for name, law in laws.items()}
    if isinstance(laws, str) or not isinstance(laws, Iterable):
        laws = [laws]  # one law, or what `prototype` refuses
    found = [prototype(law) for law in laws]
    names = [type(law).__name__ for law in found]
    for marks in ([law.objective for law in found], range(1, len(found) + 1)):
        names = [n if names.count(n) == 1 else f"{n} {mark}" for n, mark in zip(names, marks, strict=True)]
    return dict(zip(names, found, strict=True))


def _evaluated(raw: dict[str, np.ndarray], tasks: Sequence[_Task], processes: int) -> Iterator[list[float]]:
    """ARE of every cell in order, NaN where no law could be fitted (too few rows or sizes, blank in the map)."""
    if processes <= 1:
        _share(raw)
        yield from map(_cells, tasks)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _share, (raw,)) as pool:
        yield from pool.map(_cells, tasks, chunksize=max(1, min(16, len(tasks) // (4 * processes))))


_TABLE: dict[str, np.ndarray] = {}


def _share(raw: dict[str, np.ndarray]) -> None:
    """Keep the table in this process, so that it travels once and not with every cell."""
    _TABLE.clear()
    _TABLE.update(raw)


def _warn_once(raw: dict[str, np.ndarray], laws: Mapping[str, ScalingLaw]) -> None:
    """What reading the table for these laws warns of, each sentence once and not from every process and cell."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for law in laws.values():
            try:
                OrderedRuns.of(raw, law)
            except FitError:  # `extrapolation_grid` raises it if no law can be fitted
                continue
            law._warn_of_table(raw)
    for message in dict.fromkeys(str(w.message) for w in caught):
        warnings.warn(message, UserWarning, stacklevel=3)


def _cells(task: _Task) -> list[float]:
    """The ARE of some cells; what there is to say of the table, `_warn_once` has said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return _errors(*task)


def _errors(law: ScalingLaw, target: Any, settings: Sequence[tuple[float, float, int]]) -> list[float]:
    if batched(law) and target != "rolling":
        return evaluate_together(_TABLE, law, target, settings)
    found = []
    for window, share, count in settings:
        one = type(law)(**{**law.settings(), "window": window})
        try:
            found.append(evaluate_extrapolation(_TABLE, one, target, seen=share, models=count, level=None).are)
        except FitError:
            found.append(float("nan"))
    return found


def _whole(raw: dict[str, np.ndarray], laws: Mapping[str, ScalingLaw], target: Any) -> int:
    """Number of sizes below the target, from whichever law fits."""
    reason: FitError | None = None
    for law in laws.values():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return evaluate_extrapolation(raw, law, target, level=None).targets[0].models
        except FitError as error:
            reason = error
    assert reason is not None
    raise reason


def thin(columns: Mapping[str, np.ndarray], checkpoints: int) -> dict[str, np.ndarray]:
    """Keep about `checkpoints` rows of every run, evenly spaced in its order, the last always among them.

    >>> table = {"run_id": np.array(["a"] * 10), "D": np.arange(1, 11)}
    >>> thin(table, 4)["D"]
    array([ 1,  4,  7, 10])
    """
    if isinstance(checkpoints, bool) or not isinstance(checkpoints, int) or checkpoints < 2:
        raise ConfigurationError(f"checkpoints={checkpoints!r} must be a whole number of at least 2.")
    labels = run_labels(dict(columns))
    if labels is None:
        return dict(columns)
    run = run_index({"run_id": np.array(labels, object), "loss": np.empty(len(labels))})
    clock = next((columns[name] for name in ("D", "S", "step", "C") if name in columns), np.arange(len(run)))
    keep = []
    for one in range(run.max() + 1):
        rows = np.flatnonzero(run == one)
        rows = rows[np.argsort(clock[rows], kind="stable")]
        keep.append(rows[np.unique(np.linspace(0, len(rows) - 1, min(checkpoints, len(rows))).round().astype(int))])
    index = np.sort(np.concatenate(keep))
    return {name: np.asarray(values)[index] for name, values in columns.items()}
