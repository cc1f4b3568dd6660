"""Tables others have written: wandb and trackio exports, ColPret's and OLMo-ladder's tables, any CSV, JSON, parquet."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, UnknownQuantityError
from .files import RawTable, find, read_json, read_table_file, refuse
from .names import ALIASES, LOSSES, PERPLEXITY, find_column
from .table import Given, RunTable, concatenate, stem
from .tidy import tidy
from .training_logs import losses_of_every_run

LADDER_LOSS = "eval/c4_en-validation/CrossEntropyLoss"
_STEPS = ("train/global_step", "global_step", "step", "_step")
_COUNTER = (
    "steps are the tracker's own counter, which may count log calls: where it differs from optimizer steps, export "
    "train/global_step or tokens as the x axis"
)
_BOUNDS = ("__MIN", "__MAX")


def read_table(path: str | os.PathLike[str], **options: Any) -> RunTable:
    """Read a CSV, TSV, JSON, JSONL or parquet file with one row per run or checkpoint.

    Columns are found by their usual names (`readers.names.ALIASES`; `params`, `tokens`, `loss`, `step`, …); numbers may
    be written 125M or 1.4T. Missing D follows from B·step or C/(6·N), and the table's notes say so. `options` are those
    of `read_runs`.
    """
    path = Path(path)
    return tidy(read_table_file(path), path.name, Given.of(options))


def read_tracker(path: str | os.PathLike[str], **options: Any) -> RunTable:
    """Read what wandb or trackio exports as CSV (or parquet): a chart, a run's history, several runs, or a folder.

    * a wandb chart: `Step, "run-a - train/loss", "run-a - train/loss__MIN", …`, over steps or tokens;
    * a history: `step` or `_step`, metrics, and the run's name in a column (`run_name`) or, else, in the file's name;
    * a table of runs with summary values: `Name, num_params, eval/loss`.

    Such files rarely state N and the batch size: give `N` (number, {run: number} or "name") and `B` (tokens per step).
    Other `options` are those of `read_runs`.
    """
    given, path = Given.of(options), Path(path)
    if path.is_dir():
        files = [f for f in find(path, "*", depth=2) if re.search(r"\.(csv(\.gz)?|parquet)$", f.name)]
    else:
        files = [path]
    if not files:
        refuse(path, "it holds no .csv or .parquet file", "Export the runs as CSV.")
    tables = []
    for file in files:
        raw = read_table_file(file)
        raw = _chart(raw, file, given) if is_chart(raw) else raw
        if find_column(raw, ALIASES["run_id"]) is None:
            raw["run_id"] = [stem(file)] * len(next(iter(raw.values())))
        tables.append(raw)
    raw = concatenate(tables)
    name = find_column(raw, ALIASES["run_id"])
    if name is None:
        refuse(path, "its files name their runs in different columns", "Read them one by one.")
    losses = losses_of_every_run({**raw, "run_id": raw[name]}, LOSSES)
    notes = [_COUNTER] if "tracker step" in raw or find_column(raw, ALIASES["step"]) == "_step" else []
    if "tracker step" in raw:
        raw["step"] = raw.pop("tracker step")
    return tidy(raw, path.name, given, notes, losses)


def is_chart(names: Iterable[str]) -> bool:
    """Whether columns are those of a wandb chart: one x, and `run - metric` for the rest."""
    first, *rest = [name for name in names if name] or [""]
    return bool(rest) and " - " not in first and all(" - " in name for name in rest)


def _chart(raw: RawTable, path: Path, given: Given) -> RawTable:
    """A wide chart as rows (run, step or tokens, metric)."""
    x, *series = raw
    as_step = find_column([x], ALIASES["step"]) is not None
    as_tokens = find_column([x], ALIASES["D"]) is not None
    parsed = [name.removeprefix("Group: ").rsplit(" - ", 1) for name in series if not name.endswith(_BOUNDS)]
    metrics = list(dict.fromkeys(metric for _, metric in parsed if metric not in _STEPS))
    chosen = given.loss or find_column(metrics, LOSSES) or (metrics[0] if len(metrics) == 1 else None)
    if chosen is None or chosen not in metrics:
        raise UnknownQuantityError(
            f"{path.name} does not say which column is the loss; its metrics are {', '.join(metrics[:8])}: pass loss=… "
            "(--loss on the command line), the name of the column."
        )
    own = x.lower() == "step" and not any(name.endswith(" - train/global_step") for name in series)
    clock = "tracker step" if own else "step"
    out: RawTable = {"run_id": [], clock: [], "D": [], chosen: []}
    for column, (run, metric) in zip((n for n in series if not n.endswith(_BOUNDS)), parsed, strict=True):
        if metric != chosen:
            continue
        prefix = column.rsplit(" - ", 1)[0]
        steps = next((raw[f"{prefix} - {s}"] for s in _STEPS if f"{prefix} - {s}" in raw), None)
        steps = steps if steps is not None else raw[x] if as_step else [None] * len(raw[x])
        for step, tokens, loss in zip(steps, raw[x], raw[column], strict=True):
            if loss not in (None, ""):
                out["run_id"].append(run)
                out[clock].append(step)
                out["D"].append(tokens if as_tokens else None)
                out[chosen].append(loss)
    if not out["run_id"]:
        refuse(path, f"no run in it has a {chosen}", "Export the chart of the loss.")
    if given.loss is None and chosen not in LOSSES:
        out["loss"] = out.pop(chosen)
    if all(value is None for value in out["D"]):
        del out["D"]
    return out


def read_colpret(path: str | os.PathLike[str], **options: Any) -> RunTable:
    """Read a table of the Hitchhiker's Guide (github.com/IBM/ColPret): one row per checkpoint of a model.

    Columns there: `model_name` (the run), `scaled_set` (the family), `num_params` ("7B" or a number), `tokens_seen` or
    `token_num`, `flops`, `seed`, and the losses that `loss_cols` lists; a perplexity becomes its logarithm. Runs with
    the same name and different seeds are separate runs. `options` are those of `read_runs`; with several families pass
    `where={"scaled_set": …}`.
    """
    given, path = Given.of(options), Path(path)
    raw = read_table_file(path)
    if "model_name" not in raw:
        key = next((name for name in ("model_args", "index") if name in raw), None)
        if key is not None:
            raw["model_name"] = [str(cell) for cell in raw[key]]
    if "seed" in raw and "model_name" in raw and len(set(map(str, raw["seed"]))) > 1:
        raw["model_name"] = [f"{n}-seed{s}" for n, s in zip(raw["model_name"], raw["seed"], strict=True)]
    if "scaled_set" in raw and any(cell in (None, "") for cell in raw["scaled_set"]):
        other = raw.get("model_type", [""] * len(raw["scaled_set"]))
        raw["scaled_set"] = [a if a not in (None, "") else b for a, b in zip(raw["scaled_set"], other, strict=True)]
    return tidy(raw, path.name, given, losses=_listed_losses(raw))


def _listed_losses(raw: RawTable) -> tuple[str, ...]:
    """The losses that a ColPret table declares, held-out ones first; plain names when it declares none."""
    listed: dict[str, None] = {}
    for cell in dict.fromkeys(str(cell)[:10_000] for cell in raw.get("loss_cols", [])):
        try:
            names = ast.literal_eval(cell) if cell[:1] in "([" else (cell,)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(names, (tuple, list)):
            listed.update(dict.fromkeys(name for name in names if isinstance(name, str) and name in raw))
    losses = [name for name in listed if "loss" in name.lower() or PERPLEXITY.search(name)]
    return (*LOSSES, *losses) if losses else LOSSES


def read_ladder(path: str | os.PathLike[str], config: str | os.PathLike[str] | None = None, **options: Any) -> RunTable:
    """Read OLMo-ladder CSVs (github.com/allenai/OLMo-ladder): one file per run, such as `190M-1xC.csv`, or a folder.

    D is `throughput/total_tokens`, or `_step`·`batch_size_in_tokens`. The loss is held-out C4 cross-entropy
    (`eval/c4_en-validation/CrossEntropyLoss`, nats per token) unless `loss` names another column. The files do not say
    N: give the ladder's JSON `config` ({name: {"paths": […], "n": …}}, parameters without embeddings), or `N`, as a
    number, {run: number} or "name" for the size in the file's name. Other `options` are those of `read_runs`.
    """
    given, path = Given.of(options), Path(path)
    files = find(path, "*.csv", depth=3) if path.is_dir() else [path]
    if not files:
        refuse(path, "it holds no .csv file", "Point at the folder of the ladder's CSVs.")
    notes = []
    tables = []
    for file in files:
        raw = read_table_file(file)
        name = stem(file) if not path.is_dir() else file.relative_to(path).with_suffix("").as_posix()
        raw["run_id"] = [name] * len(next(iter(raw.values())))
        tables.append(raw)
    raw = concatenate(tables)
    if config is not None:
        if given.N is not None:
            raise ConfigurationError("Give either config= or N=, both say how many parameters the runs have.")
        sizes = _ladder_sizes(Path(config))
        raw["N"] = [sizes.get(Path(run).name) for run in raw["run_id"]]
        raw["N_non_embedding"] = list(raw["N"])
        notes.append("N is the n of the ladder's config, parameters without embeddings: predict with the same count")
    return tidy(raw, path.name, given, notes, (LADDER_LOSS, *LOSSES))


def _ladder_sizes(path: Path) -> dict[str, Any]:
    """Run name → n, from the ladder's JSON config."""
    document = read_json(path, 16 * 2**20)
    if not isinstance(document, Mapping):
        refuse(path, "it is not a JSON object", 'Pass the ladder\'s config: {name: {"paths": […], "n": …}}.')
    sizes = {}
    for name, entry in document.items():
        if not isinstance(entry, Mapping) or isinstance(entry.get("n"), bool) or not isinstance(entry.get("n"), int):
            refuse(path, f"its entry {str(name)[:40]!r} has no integer n", "Pass the ladder's config.")
        paths = entry.get("paths", [entry.get("path", "")])
        for one in paths if isinstance(paths, list) else [paths]:
            sizes[stem(Path(str(one)))] = entry["n"]
    return sizes
