"""Which reader a path needs, decided by what lies there; `read_runs` is the one call for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from .exports import is_chart, read_colpret, read_ladder, read_table, read_tracker
from .files import column_names, find, refuse
from .names import ALIASES, find_column
from .table import RunTable
from .training_logs import read_series, read_tensorboard, read_trainer

FORMATS: dict[str, Callable[..., RunTable]] = {
    "series": read_series,
    "trainer": read_trainer,
    "tensorboard": read_tensorboard,
    "tracker": read_tracker,
    "colpret": read_colpret,
    "ladder": read_ladder,
    "table": read_table,
}


def read_runs(path: str | os.PathLike[str], format: str | None = None, **options: Any) -> RunTable:
    """Read last year's runs, whatever wrote them, into the tidy table (N, D, loss, …) that every law fits.

    `path` is a folder of Trainer checkpoints, of this package's runs, of TensorBoard event files or of CSVs, or one
    CSV, JSON, JSONL or parquet file. `format` is one of "trainer", "series", "tensorboard", "tracker" (wandb, trackio),
    "colpret", "ladder" (OLMo) and "table"; by default it is recognised.

    Options, for what the files do not say: `N` (parameters: a number, {run: number}, or "name" for sizes in run
    names), `B` (tokens per optimizer step), `D` (tokens), `columns` ({"N": "my_params"}: what the file calls a column
    where its name is not a usual one), `count` ("total" or "non_embedding": what N counts), `loss`
    (the column), `loss_unit` ("nats", "bits" per token, "perplexity"), `family`, `seed`, `where` ({column: value},
    keep these rows), `drop_bad` (leave out rows without a usable number instead of refusing the file), `need` (columns
    that must come out, ("N", "D", "loss")).

    Raises UnknownQuantityError naming the option when something is unknown, RecordError when a file is damaged,
    ConfigurationError for an unknown format, column or option.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "runs.csv"
    >>> _ = path.write_text("name,params,tokens,val_loss\\na,125M,2.5B,3.21\\nb,350M,7B,2.86\\n")
    >>> table = read_runs(path, count="total")
    >>> table["N"], table["loss"]
    (array([1.25e+08, 3.50e+08]), array([3.21, 2.86]))
    """
    name = detect_format(path, options.get("columns") or ()) if format is None else format
    if name not in FORMATS:
        raise ConfigurationError(f"format={str(name)[:40]!r} is not known. Choose one of: {', '.join(FORMATS)}.")
    return FORMATS[name](path, **options)


def detect_format(path: str | os.PathLike[str], known: Iterable[str] = ()) -> str:
    """The name of the format that lies at a path, one of `FORMATS`. Raises RecordError when none is recognised.

    `known` are columns that the file has under other names.
    """
    path = Path(path)
    if path.is_dir():
        for pattern, name in (("run.json", "series"), ("trainer_state.json", "trainer"), ("*tfevents*", "tensorboard")):
            if find(path, pattern):
                return name
        tables = find(path, "*.csv", depth=3)
        if not tables:
            refuse(
                path,
                "it holds no trainer_state.json, run.json, event files or CSVs",
                f"Point at the folder of the runs, or name the format: {', '.join(FORMATS)}.",
            )
        return "ladder" if "batch_size_in_tokens" in column_names(tables[0]) else "tracker"
    if path.name == "trainer_state.json":
        return "trainer"
    if path.name == "run.json":
        return "series"
    if "tfevents" in path.name:
        return "tensorboard"
    raw = [*column_names(path), *known]
    if is_chart(raw):
        return "tracker"
    if "loss_cols" in raw or {"num_params", "model_name"} <= set(raw) and {"tokens_seen", "token_num"} & set(raw):
        return "colpret"
    if "batch_size_in_tokens" in raw and find_column(raw, ALIASES["N"]) is None:
        return "ladder"
    if find_column(raw, ALIASES["N"]) is None and find_column(raw, ALIASES["step"]) is not None:
        return "table" if find_column(raw, ALIASES["N_non_embedding"]) else "tracker"
    return "table"
