"""Any table of runs → validated NumPy columns; everything that can be wrong with a table is caught here, by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FitError
from ..runs import Run, Series

NUMBERS = (
    *("N", "N_non_embedding", "D", "S", "B", "C", "loss", "weight", "step"),
    *("lr", "S1", "S2", "score", "chance", "items"),
)
FROM_ZERO = ("weight", "lr", "score", "chance")  #: columns that may hold 0
ANY_SIGN = ("S2",)
LABELS = ("run_id", "seed", "family")
MEANING = {
    "N": "parameters with embeddings",
    "N_non_embedding": "parameters without embeddings",
    "D": "training tokens",
    "S": "optimizer steps",
    "B": "tokens per batch",
    "C": "training FLOPs",
    "loss": "nats per token",
    "weight": "weight of the row",
    "step": "optimizer steps",
    "lr": "learning rate of the step",
    "S1": "sum of the learning rates",
    "S2": "annealing area of the learning rates",
    "score": "task score, a share of 1",
    "chance": "score of guessing, a share of 1",
    "items": "questions behind the score",
}
_USUAL_NAMES = {
    "N": ("params", "n_params", "num_params", "parameters", "size", "n"),
    "N_non_embedding": ("params_non_embed", "non_embedding_params"),
    "D": ("tokens", "n_tokens", "num_tokens", "d"),
    "C": ("flops", "compute", "c"),
    "S": ("steps", "step"),
    "B": ("batch_tokens", "batch_size"),
    "lr": ("learning_rate", "train/learning_rate"),
    "score": ("acc", "accuracy", "acc,none", "acc_norm", "acc_norm,none", "exact_match"),
    "loss": ("Loss", "eval_loss", "val_loss", "final_loss", "L"),
}


def read_table(data: Any, columns: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The columns a law needs, as validated float arrays of equal length (labels stay as they are).

    `data` is a `Series`, a list of `Run`s, a pandas or polars frame, a pyarrow or datasets table, a NumPy record array,
    a dict of columns or a list of dicts. Numbers must be finite and > 0 (a weight may be 0).

    Raises `FitError` when `data` has another layout, no rows, a missing column, or a value that is not a positive
    number. Warns when rows are repeated or D < N / 1000. A needed D, S, B or C that is absent is derived: D = S·B,
    S = `step` or D/B, B = D/S, C = 6·N·D.

    >>> read_table([{"N": 1e6, "loss": 4.1}, {"N": 2e6, "loss": 3.9}], ["N", "loss"])["loss"]
    array([4.1, 3.9])
    """
    raw = _derived(_columns(data), columns)
    missing = [name for name in columns if name not in raw]
    if missing:
        raise FitError(_missing(missing[0], list(raw)))
    wanted = list(dict.fromkeys([*columns, *(name for name in optional if name in raw)]))
    lengths = {name: len(raw[name]) for name in wanted}
    if len(set(lengths.values())) > 1:
        raise FitError(f"The columns have different lengths: {lengths}. Every run needs one value in each column.")
    if not lengths or next(iter(lengths.values())) == 0:
        raise FitError("The table has no rows. Pass at least one row per run, with columns " + ", ".join(columns) + ".")
    labels = [str(v) for v in raw["run_id"]] if "run_id" in raw and len(raw["run_id"]) == lengths[wanted[0]] else None
    out = {
        name: _numbers(name, raw[name], labels) if name in NUMBERS else np.asarray(raw[name], object) for name in wanted
    }
    _warn_repeated(out, raw)
    if {"N", "D"} <= set(out) and np.any(out["D"] < out["N"] * 1e-3):
        row = int(np.argmin(out["D"] / out["N"]))
        _warn(
            f"Row {row} has D = {out['D'][row]:g} tokens for N = {out['N'][row]:g} parameters, under one token per "
            f"1000 "
            "parameters: check that both columns are in plain units, not one in millions or billions."
        )
    return out


def _derived(raw: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """The raw columns, with those of D, S, B, C that are wanted, absent and follow from others."""

    def number(name: str) -> np.ndarray:
        return _numbers(name, raw[name], None)

    raw = dict(raw)
    for _ in range(2):
        for name in (name for name in wanted if name not in raw):
            if name == "S" and "step" in raw:
                raw["S"] = raw["step"]
            elif name == "S" and {"D", "B"} <= set(raw):
                raw["S"] = number("D") / number("B")
            elif name == "B" and {"D", "S"} <= set(raw):
                raw["B"] = number("D") / number("S")
            elif name == "D" and {"S", "B"} <= set(raw):
                raw["D"] = number("S") * number("B")
            elif name == "C" and {"N", "D"} <= set(raw):
                raw["C"] = 6 * number("N") * number("D")
    return raw


def run_labels(raw: dict[str, Any]) -> list[str] | None:
    """Which run each row belongs to: `run_id`, or, when `step` says that rows are checkpoints, what else they share."""
    if "run_id" in raw:
        return [str(value) for value in raw["run_id"]]
    if "step" not in raw:
        return None
    shared = [raw[name] for name in ("family", "N", "N_non_embedding", "B", "seed") if name in raw]
    return [" ".join(map(str, row)) for row in zip(*shared, strict=False)] if shared else None


def _columns(data: Any) -> dict[str, Any]:
    """The columns of any supported layout, not yet validated."""
    if isinstance(data, Sequence) and len(data) and all(isinstance(run, Run) for run in data):
        data = Series(list(data))
    if hasattr(data, "to_rows"):
        data = data.to_rows()
    if isinstance(data, Mapping):
        columns = dict(data)
    elif isinstance(data, np.ndarray) and data.dtype.names:
        columns = {name: data[name] for name in data.dtype.names}
    elif hasattr(data, "to_pydict"):  # pyarrow
        columns = data.to_pydict()
    elif hasattr(data, "column_names"):  # datasets
        columns = {name: data[name][:] for name in data.column_names}
    elif hasattr(data, "columns") and hasattr(data, "__getitem__"):  # pandas, polars
        columns = {str(name): list(data[name]) for name in data.columns}
    elif (
        isinstance(data, Sequence) and not isinstance(data, (str, bytes)) and all(isinstance(r, Mapping) for r in data)
    ):
        names = list(dict.fromkeys(key for row in data for key in row))
        columns = {name: [row.get(name) for row in data] for name in names}
    else:
        hint = (
            " Read the file first, for example with pandas.read_csv."
            if isinstance(data, (str, bytes)) or hasattr(data, "__fspath__")
            else ""
        )
        raise FitError(
            f"Cannot read a table from {type(data).__name__!r}. Pass a Series, a list of Runs, a pandas, pyarrow or "
            "datasets table, a dict of columns or a list of dicts." + hint
        )
    for name, values in columns.items():
        if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
            raise FitError(
                f"Column {name!r} must hold one value per run, not {short(values)}. Wrap a single run in a list."
            )
    return columns


def _numbers(name: str, values: Any, labels: list[str] | None) -> np.ndarray:
    """One column as positive finite floats, or an error that names the row."""
    array = None
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iuf":
        array = values.astype(float)
    else:
        values = list(values)
        for row, value in enumerate(values):
            if isinstance(value, (bool, np.bool_, str, bytes)) or not _is_number(value):
                raise FitError(
                    f"Column {name!r}, {_row(row, labels)}: expected a number ({MEANING[name]}), found "
                    f"{short(value)}. "
                    "Convert the column, or drop rows of runs that have no value."
                )
        array = np.array([float(value) for value in values])
    bad = ~np.isfinite(array)
    if name not in ANY_SIGN:
        bad |= (array < 0) if name in FROM_ZERO else (array <= 0)
    if bad.any():
        row = int(np.argmax(bad))
        remedy = (
            "Drop runs that diverged or did not finish." if name == "loss" else "Correct the value or drop the row."
        )
        raise FitError(
            f"Column {name!r}, {_row(row, labels)}: expected a finite number "
            f"{'≥' if name in FROM_ZERO else '>'} 0 ({MEANING[name]}), found "
            f"{array[row]:g}"
            f"{f' and {int(bad.sum()) - 1} more' if bad.sum() > 1 else ''}. {remedy}"
        )
    if name == "weight" and not array.any():
        raise FitError("Every weight is 0. Give at least some rows a positive weight.")
    return array


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, complex)


def _row(row: int, labels: list[str] | None) -> str:
    return f"row {row}" + (f" (run {labels[row]!r})" if labels else "")


def short(value: Any) -> str:
    """A value as an error shows it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits
        return "a number too large"
    return text if len(text) <= 40 else text[:37] + "..."


def _missing(name: str, present: list[str]) -> str:
    renamed = [other for other in _USUAL_NAMES.get(name, ()) if other in present]
    remedy = f"Rename {renamed[0]!r} to {name!r}." if renamed else f"Add it ({MEANING.get(name, 'see the law')})."
    if name == "N_non_embedding":
        remedy += " Or fit with count=\"total\", which needs the column 'N'."
    shown = ", ".join(map(str, present[:12])) or "none"
    return f"The table has no column {name!r}; its columns are: {shown}. {remedy}"


def _warn_repeated(columns: dict[str, np.ndarray], raw: Mapping[str, Any]) -> None:
    """Two identical rows are more often a copy than a coincidence; they would count as two runs.

    Rows that differ in any column of `raw` with a known name, whether or not the law uses it, are no copies.
    """
    loss = columns.get("loss")
    if loss is not None and len(np.unique(loss)) == len(loss):
        return
    same, copies = _repeated(columns)
    if not copies:
        return
    known = dict.fromkeys(name for name in (*NUMBERS, *LABELS) if name in raw and len(raw[name]) == len(same))
    others = [name for name in known if name not in columns]
    if others:
        rows = np.flatnonzero(np.bincount(same)[same] > 1)
        part = {name: values[rows] for name, values in columns.items()}
        for name in others:
            values = raw[name] if isinstance(raw[name], np.ndarray) else list(raw[name])
            part[name] = np.array([str(values[row]) for row in rows])
        copies = _repeated(part)[1]
    if copies:
        _warn(
            f"{copies} rows repeat another row exactly (same {', '.join([*columns, *others])}): if they are copies and "
            "not separate runs, drop them; copies count as if they were independent."
        )


def _repeated(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, int]:
    """Which rows are equal (n,), and how many repeat an earlier one."""
    keys = [c.astype(str) if c.dtype == object else c for c in columns.values()]
    _, same, counts = np.unique(np.rec.fromarrays(keys), return_inverse=True, return_counts=True)
    return same.ravel(), int((counts - 1).sum())


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)
