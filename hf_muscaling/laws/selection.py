"""Which rows of a table a law is fitted to: whole curves lose their beginning, and every run counts the same.

A table holds *curves* when several of its rows are checkpoints of one run, and *finals* when every row is a run of
its own. The loss of the first steps follows the warm-up and the initialisation, not the law: the Hitchhiker's Guide
leaves it out, and dropping the first 30 % of each run, by tokens, measured better than its fixed number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigurationError

WINDOW = 0.3
ROWS = ("all", "upper_half")
SAME = 1e-3  #: sizes or horizons this close are one: what they change is less than the noise of a run
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Selection:
    """The rows kept, with their weights, and one sentence about what was left out."""

    columns: Columns
    curves: bool
    text: str


def check_window(window: float, rows: str) -> None:
    """Raise `ConfigurationError` unless 0 ≤ window < 1 and `rows` is known."""
    if isinstance(window, (bool, str)) or not isinstance(window, (int, float)) or not 0 <= window < 1:
        raise ConfigurationError(
            f"window={window!r} must be a share of each run from 0 to below 1: 0.3 drops the first 30 % of a curve."
        )
    if rows not in ROWS:
        raise ConfigurationError(f"rows={rows!r} is not known. Choose one of: {', '.join(ROWS)}.")


def count_distinct(values: np.ndarray) -> int:
    """How many values there are: one if they lie within `SAME` of each other, where no run tells them apart.

    >>> count_distinct(np.array([1e9, 1.0001e9, 1e9])), count_distinct(np.array([1e9, 2e9, 1e9]))
    (1, 2)
    """
    return len(np.unique(values)) if values.max() > (1 + SAME) * values.min() else 1


def run_index(columns: Columns) -> np.ndarray:
    """The run of every row: rows that share a `run_id`; without that column, each row alone."""
    if "run_id" not in columns:
        return np.arange(len(columns["loss"]))
    return np.unique(columns["run_id"].astype(str), return_inverse=True)[1].ravel()


def progress(columns: Columns, run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each row is into its run, as a share of the run's last row, and whether it is that row.

    Counted in tokens, else steps or compute, whichever the table has; without any, in rows. Not in rows otherwise:
    checkpoints are often spaced evenly in log tokens, and the first 30 % of them are then the first few per cent.
    """
    clock = next((columns[name] for name in ("D", "S", "step", "C") if name in columns), None)
    if clock is None:
        clock = np.ones(len(run))
        order = np.argsort(run, kind="stable")
        clock[order] = np.arange(1.0, len(run) + 1) - np.searchsorted(run[order], run[order])
    order = np.lexsort((clock, run))
    last = order[np.cumsum(np.bincount(run)) - 1]
    is_last = np.zeros(len(run), bool)
    is_last[last] = True
    return clock / clock[last][run], is_last


def select(columns: Columns, window: float = WINDOW, rows: str = "all", last: bool = False) -> Selection:
    """The rows a law is fitted to.

    Curves: the first `window` of each run's training, by tokens, is left out and every run's weights sum to the same
    (times its rows' own mean `weight`); `last` keeps nothing but the last checkpoint of each run, for a law that does
    not know how long a run was. Finals: all rows, or with "upper_half" those whose compute N·D is at least the median.
    """
    run = run_index(columns)
    total, runs = len(run), int(run.max()) + 1
    curves = runs < total
    if curves:
        share, final = progress(columns, run)
        keep = final if last else share > window * (1 + 1e-9)
        what = "the last checkpoint of each" if last else f"the first {100 * window:g} % of each left out"
        text = f"curves of {runs} runs: {what}, {int(keep.sum())} of {total} rows kept, equal weight by run"
    elif rows == "upper_half" and {"N", "D"} <= set(columns):
        compute = columns["N"] * columns["D"]
        keep = compute >= np.median(compute)
        text = f"finals: the upper half by compute, {int(keep.sum())} of {total} rows"
    else:
        keep = np.ones(total, bool)
        text = f"finals: all {total} rows"
    columns = {name: values[keep] for name, values in columns.items()}
    if curves:
        _, run, counts = np.unique(run[keep], return_inverse=True, return_counts=True)
        weight = columns.get("weight", np.ones(len(run))) / counts[run.ravel()]
        columns["weight"] = weight * len(weight) / weight.sum()
    return Selection(columns, curves, text)
