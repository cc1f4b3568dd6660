"""Raw columns → the tidy table that every law fits: N, D, loss and what else is known, each value checked.

What a file does not say (tokens, whether N counts embeddings, batch size) is never guessed: it is asked for by the
keyword that supplies it, or written down in `RunTable.notes`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigurationError, RecordError, UnknownQuantityError
from .files import RawTable
from .names import ALIASES, LOSSES, MISSING, PERPLEXITY, find_column, number, numbers, size_in_name
from .table import Given, RunTable

ORDER = (
    *("run_id", "family", "seed", "task", "N", "N_non_embedding", "D", "step", "S", "B", "C", "lr", "weight"),
    *("unique_tokens", "chance", "items", "score", "loss"),
)
_LABELS = ("run_id", "family", "seed", "task")
_FROM_ZERO = ("step", "D", "lr", "score", "chance")  #: a run starts at step 0, a schedule may end at rate 0
_ASK = {
    "N": "pass N=… (parameters): a number for every run, a dict run_id → number, or 'name' to read it from run names "
    "such as 125M, or columns={'N': …} for the column that holds it. On the command line: --N 1.2e8, --N RUN=1.2e8, "
    "--N name or --columns N=COLUMN",
    "D": "pass B=… (tokens per optimizer step, --B on the command line) so that D = B·step, or D=… (--D) when every "
    "run saw the same tokens. For a law without tokens pass need=('N', 'loss') (--law power)",
    "B": "pass B=… (tokens per optimizer step, --B on the command line)",
    "S": "pass B=… (tokens per optimizer step, --B on the command line) so that S = D/B",
    "loss": "pass loss=… (--loss on the command line), the name of the column",
    "C": "add a column C, or N and D",
    "lr": "add a column lr, the learning rate of the step",
    "step": "add a column step, the optimizer step of the row",
    "score": "add a column score, the task score as a share of 1",
}
_WHAT = {
    "N": "how many parameters a run has",
    "D": "how many tokens a run saw",
    "B": "how many tokens an optimizer step takes",
    "S": "how many optimizer steps were taken",
    "loss": "which column is the loss",
    "C": "what a run cost in FLOPs",
    "lr": "what the learning rate was",
    "step": "which optimizer step a row is",
    "score": "what the task score was",
}


def tidy(
    raw: RawTable, source: str, given: Given, notes: Sequence[str] = (), losses: Sequence[str] = LOSSES
) -> RunTable:
    """Build the tidy table from raw columns: choose them by name, add what is given, check every number."""
    return _Builder(raw, source, given, list(notes), losses).build()


class _Builder:
    def __init__(self, raw: RawTable, source: str, given: Given, notes: list[str], losses: Sequence[str]):
        self.raw, self.source, self.given, self.notes, self.losses = raw, source, given, notes, losses
        self.rows = len(next(iter(raw.values()), []))
        self.out: dict[str, np.ndarray] = {}
        self.unreadable: dict[str, str] = {}

    def build(self) -> RunTable:
        for column in self._named.values():
            if column not in self.raw:
                self._no_column(column)
        self._filter()
        self._labels()
        loss_name, unit = self._choose_loss()
        self._keep_rows_with(loss_name)
        self.out["loss"] = self._column("loss", loss_name)
        self._parameters()
        for name in ("step", "S", "D", "B", "C", "lr", "weight", "unique_tokens", "chance", "items", "score"):
            self._known(name)
        self._derive()
        self._drop_the_start()
        self._one_size_a_run()
        self._finish(unit)
        return RunTable({name: self.out[name] for name in ORDER if name in self.out}, self.source, self.notes)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _take(self, keep: np.ndarray) -> None:
        if not keep.any():
            raise RecordError(f"No row of {self.source} is left after leaving out rows without a usable value.")
        if keep.all():
            return
        index = np.flatnonzero(keep)
        self.raw = {name: [cells[i] for i in index] for name, cells in self.raw.items()}
        self.out = {name: values[index] for name, values in self.out.items()}
        self.rows = len(index)

    def _filter(self) -> None:
        for key, value in (self.given.where or {}).items():
            name = key if key in self.raw else find_column(self.raw, ALIASES.get(key, ())) or key
            if name not in self.raw:
                self._no_column(name)
            keep = np.array([str(cell).strip() == str(value) for cell in self.raw[name]], bool)
            if not keep.any():
                found = sorted({str(cell) for cell in self.raw[name]})[:8]
                raise ConfigurationError(f"No row of {self.source} has {name} = {value}; it holds {', '.join(found)}.")
            self._take(keep)

    def _keep_rows_with(self, name: str) -> None:
        if numbers(self.raw[name]) is not None:
            return
        empty = np.array([_missing(cell) for cell in self.raw[name]], bool)
        if empty.any():
            if not empty.all():
                self.notes.append(f"{int(empty.sum())} of {self.rows} rows have no {name} and were left out")
            self._take(~empty)

    def _drop_the_start(self) -> None:
        """Rows before the first optimizer step hold no training: a law has no value at D = 0."""
        zero = np.zeros(self.rows, bool)
        for name in ("step", "D"):
            if name in self.out:
                zero |= self.out[name] == 0
        if zero.any():
            self.notes.append(f"{int(zero.sum())} rows before the first step were left out")
            self._take(~zero)

    def _one_size_a_run(self) -> None:
        """One name for runs of several sizes would make checkpoints of one run of them."""
        if not {"run_id", "N"} <= set(self.out):
            return
        names, run = np.unique(self.out["run_id"].astype(str), return_inverse=True)
        low, high = np.full(len(names), np.inf), np.zeros(len(names))
        np.minimum.at(low, run.ravel(), self.out["N"])
        np.maximum.at(high, run.ravel(), self.out["N"])
        if (several := high > 1.01 * low).any():
            first = int(np.argmax(several))
            count = len(np.unique(self.out["N"][run.ravel() == first]))
            raise RecordError(
                f"{self.source}: run_id {str(names[first])!r} has {count} different N ({low[first]:.4g} to "
                f"{high[first]:.4g}), and rows of one run_id are checkpoints of one run. Give every run a name "
                "of its own, or leave that column out."
            )

    # -- columns -------------------------------------------------------------------------------------------------------

    def _labels(self) -> None:
        for name in _LABELS:
            column = self._find(name)
            if column is not None and not all(_missing(cell) for cell in self.raw[column]):
                self.out[name] = np.array(
                    ["" if _missing(c) else str(c).strip()[:200] for c in self.raw[column]], object
                )
            stated = getattr(self.given, name, None)
            if stated is not None:
                labels = [str(v) for v in self._per_run(name, stated)] if isinstance(stated, Mapping) else None
                self.out[name] = np.array(labels or [str(stated)] * self.rows, object)

    def _choose_loss(self) -> tuple[str, str]:
        chosen = self.given.loss
        if chosen is not None and chosen not in self.raw:
            self._no_column(chosen)
        present = [name for alias in self.losses if (name := find_column(self.raw, [alias])) and self._has_value(name)]
        present = list(dict.fromkeys(present))
        if chosen is None:
            perplexities = [name for name in self.raw if PERPLEXITY.search(name)]
            if not present and len(perplexities) != 1:
                if empty := [name for alias in self.losses if (name := find_column(self.raw, [alias]))]:
                    self._empty(empty[0])
                self._ask("loss", f"its columns are {', '.join(list(self.raw)[:12])}")
            chosen = present[0] if present else perplexities[0]
            if others := present[1:]:
                self.notes.append(f"loss is the column {chosen!r}; {', '.join(map(repr, others[:4]))} also present")
        unit = self.given.loss_unit or ("perplexity" if PERPLEXITY.search(chosen) else "nats")
        return chosen, unit

    @property
    def _named(self) -> Mapping[str, str]:
        """The columns whose names were given."""
        return self.given.columns or {}

    def _find(self, name: str) -> str | None:
        """What the file calls a column: the name given for it, else one of the usual ones."""
        return self._named.get(name) or find_column(self.raw, ALIASES[name])

    def _has_value(self, name: str) -> bool:
        return not all(_missing(cell) for cell in self.raw[name])

    def _parameters(self) -> None:
        given, count = self.given, self.given.count
        total, bare = self._find("N"), self._find("N_non_embedding")
        total = total if total is not None and self._has_value(total) else None
        bare = bare if bare is not None and self._has_value(bare) else None
        if given.N is not None:
            self.out["N"] = self._given_sizes()
        elif total is not None and "N" in self._named:
            self.out["N"] = self._column("N", total)
            self.notes.append(f"N is {total!r}, as stated: predict with the same count")
        elif count == "non_embedding" and bare is not None:
            self.out["N"] = self._column("N", bare)
            self.notes.append(f"N is {bare!r}, parameters without embeddings: predict with the same count")
        elif total is not None:
            self.out["N"] = self._column("N", total)
        elif bare is not None and "N" in given.need:
            self._ask("N", f"it has {bare!r} only: count='non_embedding' (--count non_embedding) takes that as N. Or")
        elif "N" in given.need:
            if empty := self._find("N"):
                self._empty(empty)
            self._ask("N", f"its columns are {', '.join(list(self.raw)[:12])}")
        if bare is not None:
            self._optional("N_non_embedding", bare)
        elif count == "non_embedding" and "N" in self.out:
            self.out["N_non_embedding"] = self.out["N"].copy()
        if "N" in self.out and count is None and bare is None and "N" not in self._named:
            self.notes.append(
                "it is not stated whether N counts embeddings (state it with count=, --count): predict alike"
            )

    def _given_sizes(self) -> np.ndarray:
        if self.given.N != "name":
            return np.array(self._per_run("N", self.given.N), float)
        names = self._run_names("N='name'")
        sizes = {name: size_in_name(name) for name in sorted(set(names))}
        if unknown := [name for name, size in sizes.items() if size is None]:
            self._ask("N", f"the run name {unknown[0]!r} states no size such as 125M")
        self.notes.append("N is the nominal size in each run's name, not a count")
        return np.array([sizes[name] for name in names], float)

    def _known(self, name: str) -> None:
        stated = getattr(self.given, name, None)
        if stated is not None:
            self.out[name] = np.array(self._per_run(name, stated), float)
            if name == "D":
                self._spread_tokens()
            return
        column = self._find(name)
        if column is not None and self._has_value(column):
            if name in self.given.need or name in self._named:
                self.out[name] = self._column(name, column)
            else:
                self._optional(name, column)

    def _spread_tokens(self) -> None:
        """D is what a run saw in all: its checkpoints saw D·step/(last step)."""
        if "step" not in self.out or not (self.out["step"] > 0).any():
            return
        names = self.out.get("run_id", np.array([str(n) for n in self.out.get("N", np.zeros(self.rows))], object))
        _, run = np.unique(names.astype(str), return_inverse=True)
        end = np.zeros(run.max() + 1)
        np.maximum.at(end, run.ravel(), self.out["step"])
        if (end > 0).all() and len(end) < self.rows:
            self.out["D"] = self.out["D"] * self.out["step"] / end[run.ravel()]
            self.notes.append("D of a checkpoint = the given D times its share of the run's logged steps")

    def _optional(self, name: str, column: str) -> None:
        """A column that no law asked for: taken when every row has a usable value, left out with a note otherwise."""
        fast = numbers(self.raw[column])
        try:
            values = [number(cell, short=True) for cell in self.raw[column]] if fast is None else list(fast)
        except ValueError:
            values = [None]
        least = 0.0 if name in _FROM_ZERO else math.ulp(0.0)
        if all(v is not None and math.isfinite(v) and v >= least for v in values):
            self.out[name] = np.array(values, float)
        else:
            why = next(
                (f": {cell!r}, expected numbers{hint}" for cell in self.raw[column] if (hint := _written(cell))), ""
            )
            if why:
                self.unreadable[name] = f"its column {column!r} cannot be read{why}"
            self.notes.append(f"{name} is incomplete ({column!r}{why}) and was left out")

    def _column(self, name: str, column: str) -> np.ndarray:
        """A column that must be usable in every row; 0 is let through where it may be one."""
        start = name in _FROM_ZERO
        fast = numbers(self.raw[column])
        if fast is not None and np.isfinite(fast).all() and ((fast >= 0) if start else (fast > 0)).all():
            return fast
        values, bad = np.full(self.rows, np.nan), np.zeros(self.rows, bool)
        for row, cell in enumerate(self.raw[column]):
            try:
                value = number(cell, short=name != "loss")
            except ValueError:
                value = None
            usable = value is not None and math.isfinite(value) and (value > 0 or (value == 0 and start))
            values[row], bad[row] = (value if usable else np.nan), not usable
        if bad.any():
            row = int(np.argmax(bad))
            hint = _written(self.raw[column][row])
            if not self.given.drop_bad:
                run = f", run {self.out['run_id'][row]!r}" if "run_id" in self.out else ""
                raise RecordError(
                    f"{self.source}, row {row + 1}{run}: {column!r} is {str(self.raw[column][row])[:30]!r}, expected a "
                    f"number > 0 for {name}{hint} ({int(bad.sum())} such rows). Leave them out with drop_bad=True "
                    "(--drop_bad), keep other rows with where= (--where COLUMN=VALUE), or correct the file."
                )
            self.notes.append(f"{int(bad.sum())} rows without a usable {name} were left out")
            self._take(~bad)
            values = values[~bad]
        return values

    def _per_run(self, name: str, stated: Any) -> list[Any]:
        """A stated value for every row: the same for all, or looked up by run."""
        if not isinstance(stated, Mapping):
            return [float(stated)] * self.rows
        names = self._run_names(f"{name}={{run: …}}")
        if missing := sorted(set(names) - set(map(str, stated))):
            self._ask(name, f"{name} is given for {', '.join(map(str, list(stated)[:4]))} but not for {missing[0]!r}")
        by_name = {str(run): value for run, value in stated.items()}
        return [by_name[run] for run in names]

    def _run_names(self, why: str) -> list[str]:
        if "run_id" not in self.out:
            raise ConfigurationError(f"{why} needs run names, and {self.source} has no column run_id.")
        return [str(run) for run in self.out["run_id"]]

    # -- what follows --------------------------------------------------------------------------------------------------

    def _derive(self) -> None:
        out, given = self.out, self.given
        if "S" not in out and "step" in out:
            out["S"] = out["step"].copy()
        if "D" not in out and "S" in out and "B" in out:
            out["D"] = out["B"] * out["S"]
        elif "D" not in out and "C" in out and "N" in out and "C" not in given.need:
            out["D"] = out["C"] / (6 * out["N"])
            self.notes.append("D = C/(6·N): the file gives compute, not tokens")
        if "D" in out and "S" in out and "B" not in out and (out["S"] > 0).all():
            out["B"] = out["D"] / out["S"]
        if "D" in out and "B" in out and "S" not in out:
            out["S"] = out["D"] / out["B"]
        if "C" not in out and "N" in out and "D" in out:
            out["C"] = 6 * out["N"] * out["D"]
        for name in given.need:
            if name not in out:
                self._ask(name if name in _ASK else "N", f"its columns are {', '.join(list(self.raw)[:12])}")
        if "D" not in out and "S" in out:
            self.notes.append("tokens are unknown: pass B= (--B, tokens per step) for laws in D")
        if "run_id" not in out and "step" not in out:
            self.notes.append("no run_id: every row counts as a run of its own")

    def _finish(self, unit: str) -> None:
        out = self.out
        if unit == "bits":
            out["loss"] = out["loss"] * math.log(2)
            self.notes.append("loss converted from bits to nats per token")
        elif unit == "perplexity":
            if (out["loss"] <= 1).any():
                raise RecordError(f"{self.source} holds a perplexity ≤ 1; pass loss_unit='nats' if it is a loss.")
            out["loss"] = np.log(out["loss"])
            self.notes.append("loss is log perplexity, nats per token")
        if out["loss"].max() > 30:
            self.notes.append(
                f"the largest loss is {out['loss'].max():.3g} nats: is it a perplexity (loss_unit=, --loss_unit)?"
            )

    def _no_column(self, name: str) -> None:
        shown = ", ".join(list(self.raw)[:12])
        raise ConfigurationError(f"{self.source} has no column {name!r}; its columns are {shown}.")

    def _empty(self, column: str) -> None:
        raise RecordError(f"{self.source}: the column {column!r} is empty in every row. Fill it in, or name another.")

    def _ask(self, name: str, detail: str) -> None:
        for source in {"D": ("D", "step", "S", "B"), "S": ("S", "step"), "C": ("C", "D")}.get(name, (name,)):
            if source in self.unreadable:
                raise RecordError(f"{self.source} does not say {_WHAT[name]}; {self.unreadable[source]}. Correct it.")
        detail = detail if detail.endswith("Or") else detail + ":"
        raise UnknownQuantityError(f"{self.source} does not say {_WHAT[name]}; {detail} {_ASK[name]}.")


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING)


def _written(cell: Any) -> str:
    """What about a cell's spelling keeps it from being a number, for an error; empty when nothing known does."""
    text = str(cell).strip()
    if re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+([.][0-9]*)?", text):
        return " without thousands separators (or, if the comma is a decimal one, with a point)"
    if re.fullmatch(r"[0-9]*,[0-9]+(e[+-]?[0-9]+)?", text, re.IGNORECASE):
        return " with a decimal point, not a comma"
    if re.fullmatch(r"[0-9.,]+ *%", text):
        return " without a percent sign"
    return ""
