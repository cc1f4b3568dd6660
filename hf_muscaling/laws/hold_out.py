"""Which runs of a table are small and fitted, which are large and scored: the order behind `evaluate_extrapolation`.

Order is by size, never at random: a random hold-out interpolates. Rows of one run are checkpoints, ordered by a clock
(tokens, else steps or compute), so a run can also be cut to the first share of its training, or scored over the last.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ConfigurationError, FitError
from .base import ScalingLaw
from .table import _columns, read_table, run_labels

COMPUTE, SHARE = "largest_compute", 0.5  #: the target by compute, and the share of the largest from which runs are one
_AXES = ("D", "S", "step", "C")


@dataclass(frozen=True)
class OrderedRuns:
    """A table's rows with what they are ordered by: `size` (N, the law's own variable, or FLOPs) and `clock`."""

    raw: dict[str, np.ndarray]  # every column, as given
    numbers: dict[str, np.ndarray]  # the law's columns, N and the clock, validated
    size: np.ndarray
    clock: np.ndarray | None  # tokens seen, else steps or compute
    run: np.ndarray
    key: str

    @classmethod
    def of(cls, table: Any, law: ScalingLaw) -> OrderedRuns:
        """The rows of one family, with the columns that the law needs; `FitError` for several families."""
        raw = {name: np.asarray(values, _dtype(values)) for name, values in _columns(table).items()}
        axis = next((name for name in _AXES if name in raw), None)
        key = next(iter(law.columns.values()))
        key = "N" if "N" in law.columns.values() or ("N" in raw and key not in ("N_non_embedding",)) else key
        extra = [name for name in (axis, *("S", "B", "D")) if name is not None and name in raw]
        numbers = read_table(raw, list(dict.fromkeys([*_needed(law, raw), key, "loss"])), list(dict.fromkeys(extra)))
        families = {str(f) for f in raw.get("family", ()) if f not in (None, "")}
        if len(families) > 1:
            raise FitError(
                f"The table holds {len(families)} families ({', '.join(sorted(families)[:4])}, …) and a law describes "
                "one. Evaluate each on its own rows."
            )
        labels = _labels(raw, len(numbers["loss"]))
        return cls(raw, numbers, numbers[key], numbers.get(axis) if axis else None, labels, key)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Some of the rows, as a table."""
        return {name: values[rows] for name, values in self.raw.items()}

    def by_compute(self) -> OrderedRuns:
        """The same runs in the order of the FLOPs each ends with."""
        for names in (["C"], ["D", "C"]):  # C may follow from N and D, and D from S and B
            try:
                with warnings.catch_warnings():  # equal C are no copies: `of` has looked at the rows
                    warnings.simplefilter("ignore", UserWarning)
                    compute = read_table(self.raw, names)["C"]
                break
            except FitError as error:
                reason = error
        else:
            raise FitError(f"target={COMPUTE!r} needs the training FLOPs: a column C, or N and D. {reason}")
        _, run = np.unique(self.run, return_inverse=True)
        ends = np.zeros(run.max() + 1)
        np.maximum.at(ends, run.ravel(), compute)
        return replace(self, size=ends[run.ravel()], key="C")

    def targets(self, target: Any) -> np.ndarray:
        """Rows of the runs to be predicted."""
        if isinstance(target, str) and target == COMPUTE:
            return np.flatnonzero(self.size >= SHARE * self.size.max())
        if isinstance(target, str) and target == "largest":
            return np.flatnonzero(self.size == self.size.max())
        if isinstance(target, (int, float)) and not isinstance(target, bool) and target > 0:
            rows = np.flatnonzero(self.size >= target)
            if not len(rows):
                raise FitError(f"No run has {self.key} ≥ {target:g}; the largest is {self.size.max():.4g}.")
            return rows
        names = [target] if isinstance(target, str) else target
        if not isinstance(names, (list, tuple, set, np.ndarray)) or not len(names):
            raise ConfigurationError(
                f"target={repr(target)[:40]} must be 'largest', 'largest_compute', 'rolling', a number of "
                "parameters > 0, or run_ids."
            )
        rows = np.flatnonzero(np.isin(self.run, [str(name) for name in names]))
        missing = sorted({str(name) for name in names} - set(self.run[rows]))
        if missing:
            known = ", ".join(sorted(set(self.run))[:6])
            raise ConfigurationError(
                f"No run is called {missing[0]!r}; target may be 'largest', 'largest_compute', 'rolling' or of {known}."
            )
        return rows

    def before(self, targets: np.ndarray, seen: float, models: int | None) -> np.ndarray:
        """Rows to fit: the runs smaller than every target, the first `seen` of each, the `models` smallest."""
        train = self.size < self.size[targets].min()
        sizes = np.unique(self.size[train])
        if models is not None:
            if models > len(sizes):
                what = "budgets" if self.key == "C" else "sizes"
                raise FitError(f"models={models}, and the table has {len(sizes)} {what} below the target.")
            train &= self.size <= sizes[models - 1]
        if seen < 1 and self.clock is not None:
            train &= self.clock <= seen * self._end() * (1 + 1e-9)
        if not train.any():
            raise FitError(
                f"No row is left to fit: no run is smaller than the target ({self.key} = "
                f"{self.size[targets].min():.4g}) with training up to {100 * seen:g} %. Hold out larger runs."
            )
        return np.flatnonzero(train)

    def _end(self) -> np.ndarray:
        """The clock at the end of each row's run."""
        assert self.clock is not None
        _, run = np.unique(self.run, return_inverse=True)
        ends = np.zeros(run.max() + 1)
        np.maximum.at(ends, run.ravel(), self.clock)
        return ends[run.ravel()]

    def scored(self, targets: np.ndarray, last: float) -> np.ndarray:
        """Of the targets' rows, those in the last share of their run (0: its last checkpoint)."""
        if self.clock is None:
            return targets
        return targets[self.clock[targets] >= (1 - last) * self._end()[targets] * (1 - 1e-9)]

    def column(self, name: str) -> np.ndarray:
        """A column of the law, S from `step` or D and B where the table says it so."""
        if name in self.numbers:
            return self.numbers[name]
        if name == "S" and "step" in self.numbers:
            return self.numbers["step"]
        return self.numbers["D"] / self.numbers["B"]


def _needed(law: ScalingLaw, raw: dict[str, Any]) -> list[str]:
    """The law's columns; S may be missing where `step`, or D with B, says it."""
    needed = list(law.columns.values())
    if "S" in needed and "S" not in raw and ("step" in raw or "D" in raw):
        needed.remove("S")
        needed += ["step"] if "step" in raw else ["D", "B"]
    return needed


def _dtype(values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        return None
    return object


def _labels(raw: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """The run of every row, as the laws see it; where the table does not say, each row is a run."""
    labels = run_labels(raw)
    return np.array([f"row {i}" for i in range(rows)] if labels is None else labels, object)
