"""The tidy table that readers return, and what a user may state about files that do not say it themselves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from .files import RawTable
from .names import ALIASES


@dataclass(frozen=True)
class Given:
    """What the user says about files that do not say it themselves; every reader takes these as keywords.

    * `columns`: {column: what the file calls it}, such as {"N": "params_non_embed", "D": "tokens"}, where the usual
      names (`readers.names`) are not used or mean something else;
    * `loss`: name of the loss column; `loss_unit`: "nats" (per token, the default), "bits" (per token) or
      "perplexity", converted to nats;
    * `N`: parameters: a number, {run_id: number}, or "name" for sizes in run names; `count`: "total" or
      "non_embedding", which parameters the file's (or your) N counts;
    * `D`: tokens a run saw; `B`: tokens per optimizer step: numbers or {run_id: number};
    * `family`, `seed`: labels for all runs, or {run_id: label};
    * `where`: {column: value}, keep only these rows; `drop_bad`: leave out rows that hold no usable number instead of
      refusing the file (diverged runs);
    * `need`: columns that must come out, ("N", "D", "loss") by default.
    """

    loss: str | None = None
    loss_unit: str | None = None
    N: Any = None
    D: Any = None
    B: Any = None
    count: str | None = None
    family: Any = None
    seed: Any = None
    where: Mapping[str, Any] | None = None
    drop_bad: bool = False
    need: Sequence[str] = ("N", "D", "loss")
    columns: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.count not in (None, "total", "non_embedding"):
            raise ConfigurationError(f"count={self.count!r} is not known. Choose 'total' or 'non_embedding'.")
        if self.loss_unit not in (None, "nats", "bits", "perplexity"):
            raise ConfigurationError(f"loss_unit={self.loss_unit!r} is not known. Choose 'nats', 'bits', 'perplexity'.")
        if self.where is not None and not isinstance(self.where, Mapping):
            raise ConfigurationError(f"where={self.where!r} must be a dict of column → value.")
        self._check_columns()
        for name in ("N", "D", "B"):
            value = getattr(self, name)
            if value is None or (name == "N" and value == "name"):
                continue
            for one in value.values() if isinstance(value, Mapping) else [value]:
                if isinstance(one, bool) or not isinstance(one, (int, float)) or not (0 < one < math.inf):
                    raise ConfigurationError(f"{name}={str(value)[:60]} must be positive numbers.")
        known = {"N", "N_non_embedding", "D", "S", "B", "C", "loss", "step", "lr", "score"}
        unknown = set(self.need) - known
        if isinstance(self.need, str) or unknown:
            raise ConfigurationError(
                f"need={self.need!r} must list columns among N, D, S, B, C, step, lr, score, loss."
            )

    def _check_columns(self) -> None:
        columns = self.columns
        if columns is not None and not isinstance(columns, Mapping):
            raise ConfigurationError(f"columns={str(columns)[:60]!r} must be a dict of column → name in the file.")
        for name in columns or ():
            if name not in ALIASES:
                raise ConfigurationError(f"columns names {name!r}; it may name {', '.join(ALIASES)} and loss.")
            if getattr(self, name, None) is not None:
                raise ConfigurationError(
                    f"{name} is given twice, by {name}= and by columns= (--columns): leave one out."
                )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Given:
        """The options of a reader, checked; unknown ones are refused. The loss among `columns` is `loss`."""
        columns = options.get("columns")
        if isinstance(columns, Mapping) and "loss" in columns:
            if options.get("loss") is not None:
                raise ConfigurationError("loss is given twice, by loss= and by columns= (--columns): leave one out.")
            rest = {name: column for name, column in columns.items() if name != "loss"}
            options = {**options, "loss": columns["loss"], "columns": rest}
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise ConfigurationError(f"Unknown option {unknown[0]!r}; readers take {', '.join(known)}.")
        return cls(**options)


class RunTable(dict[str, np.ndarray]):
    """The tidy table: a dict column → array that every law's `fit` takes, one row a run or checkpoint.

    Columns: `N`, `D`, `loss` (nats per token) and, where known, `run_id`, `family`, `seed`, `N_non_embedding`, `step`,
    `S`, `B` (tokens per step), `C` (FLOPs), `lr`, `weight`, `unique_tokens` (less than D where data repeat), and of
    task scores `task`, `score`, `chance`, `items`.
    `source` names the file, `notes` says what was assumed, left out or stays unknown.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], source: str = "", notes: Sequence[str] = ()):
        super().__init__(columns)
        self.source, self.notes = source, tuple(notes)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self["loss"])

    def take(self, rows: Any) -> RunTable:
        """The table of some rows: a boolean mask or indices."""
        return RunTable({name: values[rows] for name, values in self.items()}, self.source, self.notes)

    def families(self) -> list[str]:
        """The families in the table, sorted; empty when it names none."""
        return sorted({str(f) for f in self["family"]}) if "family" in self else []

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table as CSV, in plain units; `read_runs` reads it back to the last digit."""
        from ..runs import write_text

        lines = [",".join(self)]
        for row in zip(*self.values(), strict=True):
            lines.append(",".join(_cell(v) for v in row))
        write_text(path, "\n".join(lines) + "\n")

    def __str__(self) -> str:
        runs = f" of {len(set(map(str, self['run_id'])))} runs" if "run_id" in self else ""
        spans = [
            f"{name} {self[name].min():.4g} to {self[name].max():.4g}"
            for name in ("N", "D", "B", "loss")
            if name in self
        ]
        text = f"{self.n_rows} rows{runs} from {self.source or 'a table'}: {', '.join(spans)}"
        return "\n".join([text, *(f"  note: {note}" for note in self.notes)])


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return repr(float(value))
    text = value.replace("\r", " ").replace("\n", " ")
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"') else text


def concatenate(tables: Sequence[RawTable]) -> RawTable:
    """Raw tables below each other; a column that one lacks is empty there."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    out: RawTable = {name: [] for name in names}
    for table in tables:
        rows = len(next(iter(table.values()), []))
        for name in names:
            out[name] += table.get(name, [None] * rows)
    return out


def stem(path: Path) -> str:
    """A file's name without .csv, .csv.gz and the like: the run's name where a file is a run."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).stem
